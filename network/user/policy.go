package user

import (
	"context"
	"net/netip"

	"github.com/cradlevm/cradle/network/egress"
)

// Filter is what decides about the guest's packets: it knows what its rules have decided, and opens what names stand for.
func (p *Port) Filter() *egress.Filter { return p.filter }

// SetPolicy changes what the guest may send, and what of the host it may reach; it is in force on return. Connections out of the
// network that it does not allow end.
func (p *Port) SetPolicy(policy egress.Policy, services []Service) {
	p.mu.Lock()
	p.services = services
	p.mu.Unlock()
	p.filter.Set(policy)
	p.mu.Lock()
	var open []*outbound
	for o := range p.open {
		open = append(open, o)
	}
	p.mu.Unlock()
	for _, o := range open {
		if !p.allows(o.protocol, o.to) {
			o.end()
		}
	}
}

// allows tells whether a connection may go on.
func (p *Port) allows(protocol string, to netip.AddrPort) bool {
	number := map[string]uint8{"tcp": 6, "udp": 17}[protocol]
	_, ok := p.reach(protocol, to)
	return ok && p.filter.Allows(number, to)
}

// outbound is a connection of the guest's that leaves the network.
type outbound struct {
	protocol string
	to       netip.AddrPort // as the guest sees it
	ctx      context.Context
	end      context.CancelFunc
}

// begin keeps a connection until done is called. Its ctx ends with the port, and when the policy does not allow it any more.
func (p *Port) begin(protocol string, to netip.AddrPort) (o *outbound, done func()) {
	o = &outbound{protocol: protocol, to: to}
	o.ctx, o.end = context.WithCancel(p.ctx)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.open[o] = true
	return o, func() {
		o.end()
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.open, o)
	}
}
