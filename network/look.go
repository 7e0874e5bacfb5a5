package network

import (
	"errors"
	"net"

	"github.com/vishvananda/netlink"

	"github.com/cradlevm/cradle/network/dump"
)

// look repairs what is wrong, of what has changed or of all. Most changes are our own, and nobody is to wait for a look at them: it is
// had without the lock.
func (n *kernel) look(r *Report, c changes, thorough bool) error {
	fine := n.linksAreFine
	if thorough || c.all {
		fine = n.allAreFine
	}
	linked, err := fine(c.links)
	if err != nil {
		return err
	}
	intact := !c.rules && !c.all && !thorough || n.rulesAreIntact()
	n.mu.Lock()
	defer n.mu.Unlock()
	if thorough || !intact || !linked {
		err = n.repair(r, thorough)
	}
	if !intact && !thorough {
		err = errors.Join(err, n.repairFirewall(r))
	}
	r.Lost = nil
	for _, e := range n.endpoints {
		_, lost := c.lost[e.ID]
		if (thorough || c.all || c.links[e.TAP] || lost) && !linkExists(e.TAP) {
			r.Lost = append(r.Lost, e.ID)
		}
	}
	return err
}

func (n *kernel) rulesAreIntact() bool {
	n.mu.Lock()
	h := n.hostState()
	n.mu.Unlock()
	return len(h.networks) == 0 || n.firewall.intact(h)
}

// allAreFine tells whether all bridges are up, and all TAPs on theirs.
func (n *kernel) allAreFine(map[string]bool) (bool, error) {
	all, err := dump.Whole(netlink.LinkList)
	if err != nil {
		return false, err
	}
	byName := map[string]netlink.Link{}
	for _, l := range all {
		byName[l.Attrs().Name] = l
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, k := range n.networks {
		if len(k.Subnets) > 0 && !n.isUp(byName[k.Bridge]) {
			return false, nil
		}
	}
	for _, e := range n.endpoints {
		k, tap := n.networks[e.Network], byName[e.TAP]
		if tap != nil && !connected(&k.Network, tap, byName[k.Bridge]) {
			return false, nil
		}
	}
	return true, nil
}

// linksAreFine is allAreFine for those of these names that networks and endpoints have. The host may have thousands of others.
func (n *kernel) linksAreFine(names map[string]bool) (bool, error) {
	var bridges []string
	var taps []Endpoint
	networks := map[string]Network{}
	n.mu.Lock()
	for _, k := range n.networks {
		if len(k.Subnets) > 0 && names[k.Bridge] {
			bridges = append(bridges, k.Bridge)
		}
	}
	for _, e := range n.endpoints {
		if names[e.TAP] {
			taps, networks[e.Network] = append(taps, *e), n.networks[e.Network].Network
		}
	}
	n.mu.Unlock()
	for _, name := range bridges {
		if b, err := netlink.LinkByName(name); err != nil || !n.isUp(b) {
			return false, nil
		}
	}
	for _, e := range taps {
		k := networks[e.Network]
		tap, err := netlink.LinkByName(e.TAP)
		if err != nil {
			continue // it is lost
		}
		if b, err := netlink.LinkByName(k.Bridge); err != nil || !connected(&k, tap, b) {
			return false, nil
		}
	}
	return true, nil
}

// isUp tells whether an interface, or none, is a bridge of ours that passes frames.
func (n *kernel) isUp(b netlink.Link) bool {
	return b != nil && b.Attrs().Alias == n.links.alias && b.Attrs().Flags&net.FlagUp != 0
}
