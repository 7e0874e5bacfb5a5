package network

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/cradlevm/cradle/network/egress"
)

// opener is what a datapath does of what the resolvers say. It has no locks of the networks': they may wait for the resolvers.
type opener interface {
	// open lets an endpoint's guest reach what a name stands for, as far as these rules say.
	open(k *named, rules []NameRule, addresses []netip.Addr, ttl time.Duration)
	// refused counts a question for a name that a rule denies.
	refused(k *named, rule NameRule)
}

// openRules are a name's rules as the datapaths have them.
func openRules(rules []NameRule) []egress.Rule {
	var list []egress.Rule
	for _, r := range rules {
		protocol, _ := protocolNumber(r.Protocol)
		list = append(list, egress.Rule{Allow: true, Protocol: protocol, Low: r.Low, High: r.High, ID: r.id()})
	}
	return list
}

// tapOf finds an endpoint and the index of its interface.
func (n *kernel) tapOf(endpoint string) (*Endpoint, int, error) {
	e := n.endpoints[endpoint]
	if e == nil {
		return nil, 0, fail(ErrNotFound, "endpoint %s not found", endpoint)
	}
	link, err := netlink.LinkByName(e.TAP)
	if notFound(err) {
		return nil, 0, fmt.Errorf("%w: %s of %s", ErrLost, e.TAP, e.Name)
	}
	if err != nil {
		return nil, 0, fmt.Errorf("find TAP %s: %w", e.TAP, err)
	}
	return e, link.Attrs().Index, nil
}

// open implements opener.
func (n *kernel) open(k *named, rules []NameRule, addresses []netip.Addr, ttl time.Duration) {
	link, err := netlink.LinkByName(k.tap)
	if err != nil {
		return
	}
	index := link.Attrs().Index
	open, err := n.links.guards.Expire()
	if err != nil || open[index] >= egress.MaxOpened {
		n.log.Warn("a name opens no more addresses", "endpoint", k.id, "open", open[index], "error", err)
		return
	}
	list := openRules(rules)
	for _, a := range addresses {
		if err := n.links.guards.Open(index, a, ttl, list); err != nil {
			n.log.Warn("an address could not be opened", "endpoint", k.id, "address", a, "error", err)
		}
	}
}

// refused implements opener.
func (n *kernel) refused(k *named, rule NameRule) {
	link, err := netlink.LinkByName(k.tap)
	if err != nil {
		return
	}
	n.counting.Lock()
	defer n.counting.Unlock()
	if err := n.links.guards.Count(link.Attrs().Index, rule.id()); err != nil {
		n.log.Warn("a refused question is not counted", "endpoint", k.id, "error", err)
	}
}

// open implements opener.
func (n *streams) open(k *named, rules []NameRule, addresses []netip.Addr, ttl time.Duration) {
	p := n.portOf(k.id)
	if p == nil {
		return
	}
	list := openRules(rules)
	for _, a := range addresses {
		if err := p.Filter().Open(a, ttl, list); err != nil {
			n.log.Warn("an address could not be opened", "endpoint", k.id, "address", a, "error", err)
			return
		}
	}
}

// refused implements opener.
func (n *streams) refused(k *named, rule NameRule) {
	if p := n.portOf(k.id); p != nil {
		p.Filter().Count(rule.id())
	}
}
