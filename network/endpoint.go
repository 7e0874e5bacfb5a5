package network

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"

	"github.com/cradlevm/cradle/network/bpf"
)

// EndpointSpec is what an endpoint is made from.
type EndpointSpec struct {
	Network   string            // name, id, or beginning of one
	Sandbox   string            // whose it is: Reconcile asks whether it lives
	Container string            // its id, which our resolver knows too
	Name      string            // the container's, without a slash
	Aliases   []string          // further names on this network
	Links     map[string]string // names that only this container has for others, by name: a name, alias or id of the other's
	TAP       string            // from MakeTAP; not on another network; empty where endpoints are streams
	IPv4      netip.Addr        // a fixed address, or the zero Addr
	IPv6      netip.Addr        // the same
	MAC       net.HardwareAddr  // a fixed address, or nil
	DNS       []netip.Addr      // asked in place of the host's resolvers; empty: the host's
	Ports     []PortSpec        // published; none on an internal network
	Policy    Policy            // what the guest may send; the zero Policy: all
	Host      bool              // the guest of a stream may reach the host's own services; one with a TAP never may
}

// Endpoint is a guest's interface on a network.
type Endpoint struct {
	ID          string            `json:"id"`      // 64 hexadecimal digits
	Network     string            `json:"network"` // id
	NetworkName string            `json:"network_name"`
	Sandbox     string            `json:"sandbox"`
	Container   string            `json:"container"`
	Name        string            `json:"name"`
	Aliases     []string          `json:"aliases,omitempty"`
	Links       map[string]string `json:"links,omitempty"` // see EndpointSpec
	TAP         string            `json:"tap,omitempty"`   // empty: a stream, see Plug
	MAC         string            `json:"mac,omitempty"`
	MTU         int               `json:"mtu,omitzero"`      // bytes
	IPv4        netip.Prefix      `json:"ipv4,omitzero"`     // with the subnet's length
	IPv6        netip.Prefix      `json:"ipv6,omitzero"`     // the same; the zero Prefix: none
	Gateway4    netip.Addr        `json:"gateway4,omitzero"` // the way out; the zero Addr on an internal network
	Gateway6    netip.Addr        `json:"gateway6,omitzero"`
	Resolvers   []netip.Addr      `json:"resolvers,omitempty"` // for /etc/resolv.conf
	DNS         []netip.Addr      `json:"dns,omitempty"`
	Ports       []Port            `json:"ports,omitempty"`
	Policy      Policy            `json:"policy,omitzero"`
	Host        bool              `json:"host,omitzero"`
}

// guarded is what the guard on the endpoint's TAP has to know.
func (e *Endpoint) guarded(n *Network) (bpf.Endpoint, error) {
	mac, err := net.ParseMAC(e.MAC)
	if err != nil {
		return bpf.Endpoint{}, fmt.Errorf("endpoint %s: %w", e.ID, err)
	}
	g := bpf.Endpoint{MAC: mac, Gateway4: n.gateway(true), Gateway6: n.gateway(false), Metadata: n.option(OptionMetadata),
		Policy: e.Policy.asks(), Deny: e.Policy.Deny}
	if e.IPv4.IsValid() {
		g.IPv4 = e.IPv4.Addr()
	}
	if e.IPv6.IsValid() {
		g.IPv6 = e.IPv6.Addr()
	}
	return g, nil
}

// Attach gives a sandbox an interface: leases, ports, guard, bridge, in this order; on error nothing of it is left. On
// return the TAP is up, or Plug is to be called, and the resolver knows the names. ctx bounds the call.
// Errors: ErrNotFound, ErrInvalid, ErrExists (the container has one on this network, or the TAP is used), ErrExhausted,
// ErrPortTaken, ErrUnsupported.
func (n *Networks) Attach(ctx context.Context, s EndpointSpec) (_ Endpoint, err error) {
	if err := ctx.Err(); err != nil {
		return Endpoint{}, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	net, err := n.find(s.Network)
	if err != nil {
		return Endpoint{}, err
	}
	if net.Driver != "bridge" {
		return Endpoint{ID: randomID(), Network: net.ID, NetworkName: net.Name, Sandbox: s.Sandbox, Container: s.Container, Name: s.Name}, nil
	}
	if err := n.ready(net); err != nil {
		return Endpoint{}, err
	}
	if err := n.checkEndpoint(net, s); err != nil {
		return Endpoint{}, err
	}
	var undo cleanup
	defer func() {
		if err != nil {
			undo.run(n.log)
		}
	}()
	e := &Endpoint{ID: randomID(), Network: net.ID, NetworkName: net.Name, Sandbox: s.Sandbox, Container: s.Container, Name: s.Name,
		Aliases: slices.Clone(s.Aliases), Links: maps.Clone(s.Links), TAP: s.TAP, MTU: net.MTU, DNS: slices.Clone(s.DNS), Policy: s.Policy, Host: s.Host}
	if err := net.lease(e, s); err != nil {
		return Endpoint{}, err
	}
	undo.add(func() error { net.release(e); return nil })
	if !net.Internal {
		opened, err := n.ports.open(e, s.Ports, net.Options[OptionHostIP])
		if err != nil {
			return Endpoint{}, err
		}
		e.Ports = opened
		undo.add(func() error { return n.ports.close(e.ID) })
	}
	if err := n.store.putEndpoint(*e); err != nil {
		return Endpoint{}, err
	}
	undo.add(func() error { return n.store.removeEndpoint(e.ID) })
	if err := n.path.addPorts(e); err != nil {
		return Endpoint{}, err
	}
	undo.add(func() error { n.path.removePorts(e); return nil })
	undo.add(func() error { return n.path.disconnect(e) })
	if err := n.path.connect(net, e); err != nil {
		return Endpoint{}, err
	}
	n.endpoints[e.ID] = e
	n.names.put(e)
	return *e, nil
}

func (n *Networks) checkEndpoint(net *network, s EndpointSpec) error {
	if (s.TAP == "") != n.Streams() || s.Sandbox == "" || s.Container == "" {
		return fail(ErrInvalid, "an endpoint needs a TAP, if it is no stream, a sandbox and a container")
	}
	for _, e := range n.endpoints {
		if e.Network == net.ID && e.Container == s.Container {
			return fail(ErrExists, "endpoint with name %s already exists in network %s", s.Name, net.Name)
		}
		if s.TAP != "" && e.TAP == s.TAP {
			return fail(ErrExists, "interface %s is on network %s already", s.TAP, e.NetworkName)
		}
	}
	if (s.IPv4.IsValid() || s.IPv6.IsValid()) && net.Name == Default {
		return fail(ErrInvalid, "user specified IP address is supported on user defined networks only")
	}
	if s.MAC != nil && (len(s.MAC) != 6 || s.MAC[0]&1 != 0) {
		return fail(ErrInvalid, "invalid MAC address: %s", s.MAC)
	}
	if err := s.Policy.Check(); err != nil {
		return err
	}
	return s.Policy.checkAt(net.gateways())
}

// lease takes addresses for e; on error none.
func (k *network) lease(e *Endpoint, s EndpointSpec) error {
	var taken []func()
	for i := range k.Subnets {
		sub, l := &k.Subnets[i], k.leases[i]
		want, v4 := s.IPv4, sub.Prefix.Addr().Is4()
		if !v4 {
			want = s.IPv6
		}
		a, err := k.address(sub, l, want)
		if err != nil {
			for _, f := range taken {
				f()
			}
			return err
		}
		taken = append(taken, func() { l.release(a) })
		gateway := sub.Gateway
		e.Resolvers = append(e.Resolvers, gateway)
		if k.Internal {
			gateway = netip.Addr{}
		}
		if v4 {
			e.IPv4, e.Gateway4 = netip.PrefixFrom(a, sub.Prefix.Bits()), gateway
		} else {
			e.IPv6, e.Gateway6 = netip.PrefixFrom(a, sub.Prefix.Bits()), gateway
		}
	}
	mac := hardwareAddr(e.IPv4.Addr())
	e.MAC = net.HardwareAddr(mac[:]).String()
	if s.MAC != nil {
		e.MAC = s.MAC.String()
	}
	return nil
}

func (k *network) address(sub *Subnet, l *leases, want netip.Addr) (netip.Addr, error) {
	if !want.IsValid() {
		a, ok := l.take()
		if !ok {
			family := "IPv4"
			if sub.Prefix.Addr().Is6() {
				family = "IPv6"
			}
			return a, fail(ErrExhausted, "no available %s addresses on this network's address pools: %s (%s)", family, k.Name, k.ID)
		}
		return a, nil
	}
	if !sub.Chosen {
		return want, fail(ErrInvalid, "user specified IP address is supported only when connecting to networks with user configured subnets")
	}
	if !sub.Prefix.Contains(want) {
		return want, fail(ErrInvalid, "no configured subnet or ip-range contain the IP address %s", want)
	}
	if !l.claim(want) {
		return want, fail(ErrExists, "Address already in use")
	}
	return want, nil
}

// release gives e's addresses back.
func (k *network) release(e *Endpoint) {
	for i, l := range k.leases {
		p := e.IPv4
		if k.Subnets[i].Prefix.Addr().Is6() {
			p = e.IPv6
		}
		if p.IsValid() {
			l.release(p.Addr())
		}
	}
}

// Detach takes an endpoint away: its ports, names and leases are free, its TAP passes nothing and is on no bridge; the
// TAP stays. Idempotent.
func (n *Networks) Detach(ctx context.Context, id string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	e := n.endpoints[id]
	if e == nil {
		return nil
	}
	return n.detach(e)
}

// DetachAll is Detach for all endpoints of a sandbox. RemoveTAP does so for those that have TAPs.
func (n *Networks) DetachAll(ctx context.Context, sandbox string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	var errs []error
	for _, e := range n.endpoints {
		if e.Sandbox == sandbox {
			errs = append(errs, n.detach(e))
		}
	}
	return errors.Join(errs...)
}

func (n *Networks) detach(e *Endpoint) error {
	n.names.remove(e)
	err := n.path.disconnect(e)
	n.path.removePorts(e)
	if err := errors.Join(err, n.ports.close(e.ID)); err != nil {
		return fmt.Errorf("detach %s from %s: %w", e.Name, e.NetworkName, err)
	}
	if err := n.store.removeEndpoint(e.ID); err != nil {
		return err
	}
	delete(n.endpoints, e.ID)
	if net := n.networks[e.Network]; net != nil {
		net.release(e)
	}
	return nil
}

// Rename gives the names of all endpoints of a container: its new own, and the same aliases.
func (n *Networks) Rename(container, name string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, e := range n.endpoints {
		if e.Container != container {
			continue
		}
		n.names.remove(e)
		e.Name = name
		n.names.put(e)
		if err := n.store.putEndpoint(*e); err != nil {
			return err
		}
	}
	return nil
}

// Endpoints are all endpoints of a network, or of all networks when the name is empty, in no order.
func (n *Networks) Endpoints(network string) ([]Endpoint, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	id := ""
	if network != "" {
		net, err := n.find(network)
		if err != nil {
			return nil, err
		}
		id = net.ID
	}
	var all []Endpoint
	for _, e := range n.endpoints {
		if id == "" || e.Network == id {
			all = append(all, *e)
		}
	}
	return all, nil
}

func randomID() string {
	var b [32]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}
