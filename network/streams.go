package network

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/cradlevm/cradle/network/bpf"
	"github.com/cradlevm/cradle/network/dns"
	"github.com/cradlevm/cradle/network/egress"
	"github.com/cradlevm/cradle/network/user"
)

// streams is the datapath of an ordinary user's daemon: endpoints are streams of frames, networks are stacks in this process.
// It is of one Networks.
type streams struct {
	*Networks
	flows chan struct{} // a place for each connection of all guests: they take descriptors of the daemon's

	plugging sync.RWMutex          // the resolvers look for ports, too, and must not wait for networks
	plugged  map[string]*user.Port // by endpoint
}

func newStreams(n *Networks) *streams {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		limit.Cur = 1024
	}
	s := &streams{Networks: n, plugged: map[string]*user.Port{}, flows: make(chan struct{}, min(limit.Cur/2, 1<<16))}
	n.names.opener = s
	return s
}

// portOf is where an endpoint's guest is; nil when it is not there.
func (n *streams) portOf(endpoint string) *user.Port {
	n.plugging.RLock()
	defer n.plugging.RUnlock()
	return n.plugged[endpoint]
}

// Streams tells whether endpoints are streams, which Plug takes, and not TAPs.
func (n *Networks) Streams() bool {
	_, yes := n.path.(*streams)
	return yes
}

// Plug gives an endpoint the stream of its guest's interface: frames, each after its length as a big-endian uint32. The networks
// own the stream from then on, also on error, and close it when the endpoint goes or gets another one. It is to be called
// after Attach and, for every endpoint that lives, after the first Reconcile. Errors: ErrNotFound; ErrInvalid where endpoints are TAPs.
func (n *Networks) Plug(endpoint string, stream net.Conn) error {
	s, ok := n.path.(*streams)
	if !ok {
		return errors.Join(fail(ErrInvalid, "endpoint %s is no stream", endpoint), stream.Close())
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	e := n.endpoints[endpoint]
	if e == nil {
		return errors.Join(fail(ErrNotFound, "endpoint %s not found", endpoint), stream.Close())
	}
	mac, err := net.ParseMAC(e.MAC)
	if err != nil {
		return errors.Join(err, stream.Close())
	}
	k := n.networks[e.Network]
	if err := s.ensure(k); err != nil {
		return errors.Join(err, stream.Close())
	}
	if err := s.disconnect(e); err != nil {
		return errors.Join(err, stream.Close())
	}
	port, err := k.stack.Attach(user.Guest{MAC: mac, Addr: e.IPv4.Addr(), Host: e.Host, Policy: e.Policy.egress(k.gateways()),
		Services: services(e)}, stream)
	if err != nil {
		return err
	}
	s.plugging.Lock()
	defer s.plugging.Unlock()
	s.plugged[e.ID] = port
	return nil
}

// claim implements datapath: subnets are the daemon's own.
func (n *streams) claim() (release func(), err error) { return func() {}, nil }

// claimed implements datapath.
func (n *streams) claimed() ([]netip.Prefix, error) { return nil, nil }

// adapt implements datapath.
func (n *streams) adapt(net *Network) error {
	refused := ""
	switch {
	case net.IPv6:
		refused = "have no IPv6"
	case net.Options[OptionBridge] != "":
		refused = "have no bridge on the host to name"
	case net.option(OptionMetadata):
		refused = "do not lead to the metadata range"
	case !net.Internal && !net.masquerade():
		refused = "always borrow the host's address"
	case net.MTU > user.MaxMTU:
		return fail(ErrUnsupported, "user-mode networks have an MTU of %d at most", user.MaxMTU)
	default:
		return nil
	}
	return fail(ErrUnsupported, "user-mode networks %s", refused)
}

// ensure implements datapath.
func (n *streams) ensure(net *network) (err error) {
	if net.stack != nil {
		return nil
	}
	resolver := dns.NewResolver(directory{n.names, net.ID}, n.resolver)
	net.stack, err = user.New(user.Options{
		Subnet: net.Subnets[0].Prefix, Gateway: net.Subnets[0].Gateway, MTU: net.MTU, Internal: net.Internal, Isolate: net.Isolated(),
		Resolve: resolver.Answer, Published: n.ports.published, Flows: n.flows, Log: n.log,
	})
	return err
}

// dismantle implements datapath.
func (n *streams) dismantle(net *network) error {
	if net.stack != nil {
		net.stack.Close()
		net.stack = nil
	}
	return nil
}

// connect implements datapath. Frames pass from Plug on.
func (n *streams) connect(*network, *Endpoint) error { return nil }

// enforce implements datapath.
func (n *streams) enforce(net *Network, e *Endpoint, _ []hostElement) error {
	if p := n.portOf(e.ID); p != nil {
		p.SetPolicy(e.Policy.egress(net.gateways()), services(e))
	}
	return nil
}

// services are those of the host that an endpoint's policy opens.
func services(e *Endpoint) []user.Service {
	var all []user.Service
	for _, h := range hostElements(e) {
		protocol := "tcp"
		if h.protocol == unix.IPPROTO_UDP {
			protocol = "udp"
		}
		all = append(all, user.Service{Protocol: protocol, Port: h.port})
	}
	return all
}

// decided implements datapath. They begin anew with each Plug, as counters do.
func (n *streams) decided(e *Endpoint) (map[uint64]egress.Count, error) {
	if p := n.portOf(e.ID); p != nil {
		return p.Filter().Counts(), nil
	}
	return nil, nil
}

// disconnect implements datapath.
func (n *streams) disconnect(e *Endpoint) error {
	n.plugging.Lock()
	defer n.plugging.Unlock()
	if p := n.plugged[e.ID]; p != nil {
		p.Close()
		delete(n.plugged, e.ID)
	}
	return nil
}

// addPorts implements datapath: the listeners carry everything.
func (n *streams) addPorts(*Endpoint) error { return nil }

// removePorts implements datapath.
func (n *streams) removePorts(*Endpoint) {}

// dialer implements datapath.
func (n *streams) dialer(e *Endpoint) dialFunc {
	stack := n.networks[e.Network].stack
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		if stack == nil {
			return nil, fail(ErrLost, "network %s is not there", e.NetworkName)
		}
		return stack.Dial(ctx, network, address)
	}
}

// counters implements datapath. They begin anew with each Plug.
func (n *streams) counters(e *Endpoint) (from, to bpf.Counters, err error) {
	from.Dropped, to.Dropped = map[string]uint64{}, map[string]uint64{}
	p := n.portOf(e.ID)
	if p == nil {
		return from, to, nil
	}
	c := p.Counters()
	from.Packets, from.Bytes = c.SentFrames, c.SentBytes
	to.Packets, to.Bytes = c.ReceivedFrames, c.ReceivedBytes
	for reason, count := range c.Dropped {
		from.Dropped[reason.String()] = count
	}
	for reason, count := range c.Refused {
		to.Dropped[reason.String()] = count
	}
	return from, to, nil
}

// reconcile implements datapath. There is nothing on the host but the listeners of ports.
func (n *streams) reconcile(_ []string, r *Report) error {
	var errs []error
	for _, net := range n.networks {
		if len(net.Subnets) > 0 {
			errs = append(errs, n.ensure(net))
		}
	}
	for _, e := range n.endpoints {
		if err := n.ports.resume(e); err != nil {
			n.log.Warn("a published port is not reachable", "endpoint", e.ID, "error", err)
		}
	}
	return errors.Join(errs...)
}

// close implements datapath.
func (n *streams) close() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.reset(n.networks, nil)
}

// reset implements datapath.
func (n *streams) reset(gone map[string]*network, _ *Report) error {
	var errs []error
	for _, net := range gone {
		errs = append(errs, n.dismantle(net))
	}
	return errors.Join(errs...)
}
