package network

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/cradlevm/cradle/network/bpf"
	"github.com/cradlevm/cradle/network/egress"
)

// kernel is the datapath of a daemon that is root: bridges, TAPs with a guard, a firewall, and a watch that keeps it all in
// place. It is of one Networks, and sees all of it.
type kernel struct {
	*Networks
	links    *links
	claims   *claims
	counting sync.Mutex // of refused questions
	firewall *firewall
	spares   *spares
	watching *watch
	lost     func(endpoint string) bool // Options.Lost
	waiting  atomic.Bool                // a network is blocked
}

func newKernel(n *Networks, o Options) (*kernel, error) {
	k := &kernel{Networks: n, lost: o.Lost, links: &links{tapPrefix: "ct" + n.tag + "-", alias: "cradle " + n.dir}, firewall: &firewall{"cradle-" + n.tag}}
	k.spares = newSpares(k.links, n.log, o.SpareTAPs)
	var err error
	n.names.opener = k
	if k.claims, err = newClaims(claimsDir, n.dir, n.log); err != nil {
		return nil, err
	}
	taps, err := k.links.taps()
	if err != nil {
		return nil, err
	}
	var indexes []int
	for _, t := range taps {
		indexes = append(indexes, t.Attrs().Index)
	}
	if k.links.guards, err = bpf.Adopt(indexes); err != nil {
		return nil, err
	}
	return k, nil
}

// claim implements datapath.
func (n *kernel) claim() (release func(), err error) { return n.claims.enter() }

// claimed implements datapath.
func (n *kernel) claimed() (all []netip.Prefix, err error) {
	others, err := n.claims.others()
	for _, net := range others {
		for _, s := range net.Subnets {
			all = append(all, s.Prefix)
		}
	}
	return all, err
}

// shortBridge is the bridge of the first daemon's default network.
const shortBridge = "cradle0"

// adapt implements datapath. Bridges have names.
func (n *kernel) adapt(net *Network) error {
	others, err := n.claims.others()
	switch {
	case err != nil:
		return err
	case net.Options[OptionBridge] != "":
		net.Bridge = net.Options[OptionBridge]
	case net.Name == Default && !linkExists(shortBridge) &&
		!slices.ContainsFunc(others, func(o Network) bool { return o.Bridge == shortBridge }):
		net.Bridge = shortBridge
	default:
		net.Bridge = n.bridgeName(net)
	}
	return nil
}

// bridgeName is one that nobody else's has.
func (n *kernel) bridgeName(net *Network) string { return "cr" + n.tag + "-" + net.ID[:8] }

// ensure implements datapath.
func (n *kernel) ensure(net *network) error {
	if err := n.links.ensureBridge(&net.Network); err != nil {
		return err
	}
	if !net.Internal {
		if err := forward(net.IPv6); err != nil {
			return err
		}
	}
	if err := n.firewall.replace(n.hostState()); err != nil {
		return err
	}
	return n.serve(net)
}

// bringBack makes a network again whose bridge is not there, unless its subnet is somebody else's by now. When it is only the name,
// the bridge has another one.
func (n *kernel) bringBack(net *network) error {
	release, err := n.claims.enter()
	if err != nil {
		return err
	}
	defer release()
	if net.Options[OptionBridge] == "" && linkExists(net.Bridge) {
		net.Bridge = n.bridgeName(&net.Network)
		if err := n.save(); err != nil {
			return err
		}
	}
	if net.blocked = inTheWay(&net.Network); net.blocked != nil {
		n.waiting.Store(true)
		return net.blocked
	}
	return n.ensure(net)
}

// dismantle implements datapath.
func (n *kernel) dismantle(net *network) error {
	return errors.Join(net.silence(), n.links.removeBridge(net.Bridge), n.firewall.replace(n.hostState()))
}

// connect implements datapath.
func (n *kernel) connect(net *network, e *Endpoint) error {
	if err := n.firewall.addHosts(hostElements(e)); err != nil {
		return err
	}
	if net.blocked != nil {
		if err := n.bringBack(net); err != nil {
			return err
		}
	}
	err := n.links.connect(&net.Network, e)
	if notFound(err) && !n.links.hasBridge(&net.Network) { // somebody has just deleted it
		if err := n.bringBack(net); err != nil {
			return err
		}
		return n.links.connect(&net.Network, e)
	}
	return err
}

// disconnect implements datapath.
func (n *kernel) disconnect(e *Endpoint) error {
	if err := n.firewall.removeHosts(hostElements(e)); err != nil { // as with ports
		n.poke()
	}
	return n.links.disconnect(e.TAP)
}

// addPorts implements datapath.
func (n *kernel) addPorts(e *Endpoint) error { return n.firewall.addPorts(portElements(e)) }

// removePorts implements datapath. When elements are not there, the table was flushed, and the watch has it made again.
func (n *kernel) removePorts(e *Endpoint) {
	if err := n.firewall.removePorts(portElements(e)); err != nil {
		n.poke()
	}
}

// dialer implements datapath: the host has a way to the guest.
func (n *kernel) dialer(*Endpoint) dialFunc { return new(net.Dialer).DialContext }

// counters implements datapath.
func (n *kernel) counters(e *Endpoint) (from, to bpf.Counters, err error) {
	_, index, err := n.tapOf(e.ID)
	if err != nil {
		return from, to, err
	}
	return n.links.guards.Counters(index)
}

// decided implements datapath.
func (n *kernel) decided(e *Endpoint) (map[uint64]egress.Count, error) {
	_, index, err := n.tapOf(e.ID)
	if err != nil {
		return nil, err
	}
	return n.links.guards.Decided(index)
}

// enforce implements datapath.
func (n *kernel) enforce(net *Network, e *Endpoint, before []hostElement) error {
	_, index, err := n.tapOf(e.ID)
	if err != nil {
		return err
	}
	if err := n.links.assign(net, e, index); err != nil {
		return err
	}
	if slices.Equal(before, hostElements(e)) {
		return nil
	}
	return n.firewall.replace(n.hostState())
}

// hostState is what the firewall has to know.
func (n *kernel) hostState() hostState {
	var h hostState
	for _, net := range n.networks {
		if len(net.Subnets) > 0 && net.blocked == nil {
			h.networks = append(h.networks, net.Network)
		}
	}
	for _, e := range n.endpoints {
		h.ports = append(h.ports, portElements(e)...)
		h.hosts = append(h.hosts, hostElements(e)...)
	}
	return h
}

// close implements datapath.
func (n *kernel) close() error {
	n.stopWatching()
	n.mu.Lock()
	defer n.mu.Unlock()
	var r Report
	errs := []error{n.removeTAPs(n.spares.close(), &r)}
	if len(n.endpoints) == 0 {
		errs = append(errs, n.moveOut())
	}
	for _, net := range n.networks {
		errs = append(errs, net.silence())
	}
	return errors.Join(append(errs, n.links.guards.Close())...)
}

// moveOut removes what networks without endpoints have on the host. The store keeps them.
func (n *kernel) moveOut() error {
	var errs []error
	for _, net := range n.networks {
		if len(net.Subnets) > 0 {
			errs = append(errs, net.silence(), n.links.removeBridge(net.Bridge))
		}
	}
	return errors.Join(append(errs, n.firewall.remove())...)
}

// MakeTAP makes a TAP that passes nothing yet, for Attach. It is persistent, made with IFF_VNET_HDR, and stays until
// RemoveTAP, or until Reconcile is not told of it. ErrUnsupported where endpoints are streams.
func (n *Networks) MakeTAP(ctx context.Context) (string, error) {
	k, ok := n.path.(*kernel)
	if !ok {
		return "", fail(ErrUnsupported, "these networks have no TAP devices: endpoints are streams")
	}
	if err := ctx.Err(); err != nil {
		return "", err
	}
	if name, ok := k.spares.take(); ok {
		return name, nil
	}
	return k.links.makeTAP()
}

// RemoveTAP removes a TAP whose machine has gone, and the endpoint that has it. The TAP passes nothing when RemoveTAP returns, and is
// gone soon after. Idempotent.
func (n *Networks) RemoveTAP(ctx context.Context, name string) error {
	k, ok := n.path.(*kernel)
	if !ok {
		return fail(ErrUnsupported, "TAP %s is not of these networks: endpoints are streams", name)
	}
	if !strings.HasPrefix(name, k.links.tapPrefix) {
		return fail(ErrInvalid, "%s is not one of our TAPs", name)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, e := range n.endpoints {
		if e.TAP == name {
			if err := n.detach(e); err != nil {
				return err
			}
		}
	}
	if err := k.links.disconnect(name); err != nil {
		return err
	}
	return k.spares.remove(name)
}
