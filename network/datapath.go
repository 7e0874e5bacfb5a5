package network

import (
	"context"
	"net"
	"net/netip"

	"github.com/cradlevm/cradle/network/bpf"
	"github.com/cradlevm/cradle/network/egress"
)

// datapath is what networks and endpoints are made of: the kernel's bridges and TAPs (kernel), or streams of frames and a
// stack of the daemon's own (streams). Networks.mu is held by who calls, but for close and reset.
type datapath interface {
	// claim keeps others of the host from picking subnets until release is called; claimed are those that they have.
	claim() (release func(), err error)
	claimed() ([]netip.Prefix, error)
	// adapt completes a network that is to be made. ErrUnsupported for what it cannot make.
	adapt(net *Network) error
	// ensure makes what a network needs, resolvers too, from whatever there is of it; dismantle leaves nothing of it.
	ensure(net *network) error
	dismantle(net *network) error
	// connect puts an endpoint on its network; disconnect takes it away, whether it is there or not.
	connect(net *network, e *Endpoint) error
	disconnect(e *Endpoint) error
	// addPorts leads an endpoint's ports to its guest where their listeners (ports) do not.
	addPorts(e *Endpoint) error
	removePorts(e *Endpoint)
	// dialer opens connections from the host to the guest. It may be used at any time.
	dialer(e *Endpoint) dialFunc
	// enforce puts e.Policy in force; before are the host's services that its last policy has opened.
	enforce(net *Network, e *Endpoint, before []hostElement) error
	// counters are what Networks.Counters tells, decided what rules have decided about, by their ids.
	counters(e *Endpoint) (from, to bpf.Counters, err error)
	decided(e *Endpoint) (map[uint64]egress.Count, error)
	// reconcile is the part of Networks.Reconcile that is not about whose endpoints live: taps stay without one.
	reconcile(taps []string, r *Report) error
	// close ends what lives in this process; reset removes all from the host, when there are no networks any more but those gone.
	close() error
	reset(gone map[string]*network, r *Report) error
}

// dialFunc is net.Dialer.DialContext, for "tcp" and "udp". Its TCP connections have CloseWrite.
type dialFunc func(ctx context.Context, network, address string) (net.Conn, error)
