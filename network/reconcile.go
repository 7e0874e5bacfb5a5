package network

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"

	"github.com/cradlevm/cradle/network/dns"
)

// Live is what Reconcile leaves alone.
type Live struct {
	Sandboxes []string // whose endpoints stay
	TAPs      []string // that stay without an endpoint, such as the pool's
}

// Report is what Reconcile has found.
type Report struct {
	Removed []string // interfaces and endpoints of nobody
	Made    []string // what a live one missed and has again
	Lost    []string // endpoints whose TAP is gone: a running machine cannot be given another
}

// Reconcile makes the host agree with what lives: endpoints, TAPs, bridges and rules of nobody are removed; bridges, rules,
// guards, resolvers and listeners that a live endpoint misses are made again. Call it after Open, and whenever in doubt;
// from the first call on, a watch does the latter part by itself when somebody changes interfaces or rules. Endpoints that are
// streams need their Plug then.
func (n *Networks) Reconcile(ctx context.Context, live Live) (Report, error) {
	var (
		r    Report
		errs []error
	)
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, e := range n.endpoints {
		if slices.Contains(live.Sandboxes, e.Sandbox) {
			continue
		}
		if err := n.detach(e); err != nil {
			errs = append(errs, err)
			continue
		}
		r.Removed = append(r.Removed, "endpoint "+e.ID)
	}
	errs = append(errs, n.path.reconcile(live.TAPs, &r))
	return r, errors.Join(errs...)
}

// reconcile implements datapath.
func (n *kernel) reconcile(taps []string, r *Report) error {
	err := errors.Join(n.removeDead(taps, r), n.known(), n.repair(r, true))
	n.startWatching()
	return err
}

// known has other daemons know of our networks: the host may have been started anew.
func (n *kernel) known() error {
	for _, net := range n.networks {
		if len(net.Subnets) > 0 {
			release, err := n.claims.enter()
			if err == nil {
				release()
			}
			return err
		}
	}
	return nil
}

// removeDead removes the interfaces that nobody owns, but for some TAPs.
func (n *kernel) removeDead(live []string, r *Report) error {
	var errs []error
	keep := map[string]bool{}
	for _, t := range live {
		keep[t] = true
	}
	spare, release := n.spares.hold()
	defer release()
	for _, t := range spare {
		keep[t] = true
	}
	for _, e := range n.endpoints {
		keep[e.TAP] = true
	}
	taps, err := n.links.taps()
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	indexes := map[int]bool{}
	var dead []string
	for name, link := range taps {
		if keep[name] {
			indexes[link.Attrs().Index] = true
		} else {
			dead = append(dead, name)
		}
	}
	errs = append(errs, n.removeTAPs(dead, r))
	bridges, err := n.links.bridges()
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	for _, net := range n.networks {
		delete(bridges, net.Bridge)
	}
	for name := range bridges {
		if err := n.links.removeBridge(name); err != nil {
			errs = append(errs, err)
			continue
		}
		r.Removed = append(r.Removed, "interface "+name)
	}
	assigned, err := n.links.guards.Assigned()
	for _, i := range assigned {
		if !indexes[i] {
			errs = append(errs, n.links.guards.Forget(i))
		}
	}
	return errors.Join(append(errs, err)...)
}

// removeTAPs removes many at a time.
func (n *kernel) removeTAPs(names []string, r *Report) error {
	var (
		mu      sync.Mutex
		errs    []error
		running sync.WaitGroup
		places  = make(chan struct{}, deletionsAtOnce)
	)
	for _, name := range names {
		places <- struct{}{}
		running.Go(func() {
			defer func() { <-places }()
			err := n.links.removeTAP(name)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				errs = append(errs, err)
				return
			}
			r.Removed = append(r.Removed, "interface "+name)
		})
	}
	running.Wait()
	return errors.Join(errs...)
}

// repair makes again what is missing. It changes nothing where all is well. Only when it is to be thorough does it look at what
// nobody touches by accident and what takes long: the programs on every TAP, the firewall element by element.
func (n *kernel) repair(r *Report, thorough bool) error {
	var errs []error
	n.waiting.Store(false)
	v6 := false
	routed := false
	for _, net := range n.networks {
		if len(net.Subnets) == 0 {
			continue
		}
		routed = routed || !net.Internal
		v6 = v6 || (net.IPv6 && !net.Internal)
		if !n.links.hasBridge(&net.Network) {
			if err := n.bringBack(net); err != nil {
				errs = append(errs, err)
				continue
			}
			r.Made = append(r.Made, "interface "+net.Bridge)
		}
		if err := n.links.ensureBridge(&net.Network); err != nil {
			errs = append(errs, err)
			continue
		}
		errs = append(errs, n.serve(net))
	}
	if routed {
		errs = append(errs, forward(v6))
	}
	if thorough {
		errs = append(errs, n.repairFirewall(r))
	}
	_, release := n.spares.hold()
	defer release()
	taps, err := n.links.taps()
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	for name, tap := range taps { // those of older versions too, and those without an endpoint
		if thorough && !n.links.guards.Guarded(tap.Attrs().Index) {
			errs = append(errs, n.guardAgain(name, tap, r))
		}
	}
	bridges, err := n.links.bridges()
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	for _, e := range n.endpoints {
		tap, there := taps[e.TAP]
		if !there {
			r.Lost = append(r.Lost, e.ID)
			continue
		}
		net := n.networks[e.Network]
		if !connected(&net.Network, tap, bridges[net.Bridge]) {
			if err := n.links.connect(&net.Network, e); err != nil {
				errs = append(errs, err)
				continue
			}
			r.Made = append(r.Made, "endpoint "+e.ID)
		}
		if err := n.ports.resume(e); err != nil {
			n.log.Warn("a published port is not reachable from loopback", "endpoint", e.ID, "error", err)
		}
	}
	return errors.Join(errs...)
}

func (n *kernel) repairFirewall(r *Report) error {
	h := n.hostState()
	if len(h.networks) == 0 {
		there, err := n.firewall.exists()
		if err != nil || !there {
			return err
		}
		r.Removed = append(r.Removed, "firewall")
		return n.firewall.remove()
	}
	if n.firewall.intact(h) {
		return nil
	}
	r.Made = append(r.Made, "firewall")
	return n.firewall.replace(h)
}

// guardAgain puts our programs on a TAP that has none or other ones; its endpoint's entry is there before they are.
func (n *kernel) guardAgain(name string, tap netlink.Link, r *Report) error {
	for _, e := range n.endpoints {
		if e.TAP == name {
			if err := n.links.assign(&n.networks[e.Network].Network, e, tap.Attrs().Index); err != nil {
				return err
			}
		}
	}
	if err := n.links.guards.Guard(tap.Attrs().Index); err != nil {
		return fmt.Errorf("guard %s: %w", name, err)
	}
	r.Made = append(r.Made, "guard of "+name)
	return nil
}

// serve starts a network's resolvers; those that run go on.
func (n *kernel) serve(net *network) error {
	if len(net.servers) > 0 {
		return nil
	}
	for _, s := range net.Subnets {
		server, err := dns.Serve(netip.AddrPortFrom(s.Gateway, 53), directory{n.names, net.ID}, n.resolver)
		if err != nil {
			return errors.Join(fmt.Errorf("network %s: %w", net.Name, err), net.silence())
		}
		net.servers = append(net.servers, server)
	}
	return nil
}

// silence ends a network's resolvers.
func (net *network) silence() error {
	var errs []error
	for _, s := range net.servers {
		errs = append(errs, s.Close())
	}
	net.servers = nil
	return errors.Join(errs...)
}

// Reset removes everything from the host and the store, networks too; endpoints whose sandboxes live lose their network.
// The Networks are of no use afterwards but for Close.
func (n *Networks) Reset(ctx context.Context) error {
	n.mu.Lock()
	var errs []error
	for _, e := range n.endpoints {
		errs = append(errs, n.detach(e))
	}
	gone := n.networks
	n.networks = map[string]*network{}
	errs = append(errs, n.save())
	n.mu.Unlock()
	var r Report
	errs = append(errs, n.path.reset(gone, &r))
	n.log.Info("networks are reset", "removed", strings.Join(r.Removed, ", "))
	return errors.Join(errs...)
}

// reset implements datapath.
func (n *kernel) reset(gone map[string]*network, r *Report) error {
	n.stopWatching()
	n.mu.Lock()
	defer n.mu.Unlock()
	var errs []error
	for _, net := range gone {
		errs = append(errs, net.silence())
	}
	return errors.Join(append(errs, n.removeTAPs(n.spares.close(), r), n.removeDead(nil, r), n.firewall.remove(), n.claims.leave())...)
}
