package network

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/cradlevm/cradle/network/bpf"
)

// Policy is what a container may send, and how much. The zero Policy allows all but the host's own services, which only a
// rule opens.
type Policy struct {
	Rules   []Rule     `json:"rules,omitempty"` // the first that matches decides
	Names   []NameRule `json:"names,omitempty"` // allow what no rule denies, while our resolver's answer holds
	Deny    bool       `json:"deny,omitzero"`   // what neither speaks of is denied, otherwise allowed
	Egress  Rate       `json:"egress,omitzero"` // what the guest sends
	Ingress Rate       `json:"ingress,omitzero"`
}

// Rate limits one direction; zeros are no limit. What is over it is dropped.
type Rate struct {
	BytesPerSecond   uint64        `json:"bytes_per_second,omitzero"`
	PacketsPerSecond uint64        `json:"packets_per_second,omitzero"`
	Burst            time.Duration `json:"burst,omitzero"` // of traffic at the full rate that may come at once; 0: 100 ms
}

// Rule speaks of the other side of a packet by its address.
type Rule struct {
	Allow    bool         `json:"allow"`
	Host     bool         `json:"host,omitzero"`      // the host, at the network's gateways; Prefix is zero then
	Prefix   netip.Prefix `json:"prefix,omitzero"`    // other addresses
	Protocol string       `json:"protocol,omitempty"` // "tcp", "udp", "icmp"; empty: any
	Low      uint16       `json:"low,omitzero"`       // ports; 0 and 0: any
	High     uint16       `json:"high,omitzero"`
}

// NameRule allows the addresses that a name stands for.
type NameRule struct {
	Name     string `json:"name"` // "example.org", or "*.example.org" for what is below it
	Protocol string `json:"protocol,omitempty"`
	Low      uint16 `json:"low,omitzero"`
	High     uint16 `json:"high,omitzero"`
}

const (
	maxRules     = 256
	maxNameRules = 256
	maxHostPorts = 128 // that rules open of the host, one by one
)

var domainPattern = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^(\*\.)?[A-Za-z0-9_]([A-Za-z0-9_-]{0,62})(\.[A-Za-z0-9_-]{1,63})*$`)
})

// Check reports the first thing in p that cannot be enforced, as ErrInvalid.
func (p Policy) Check() error {
	if len(p.Rules) > maxRules {
		return fail(ErrInvalid, "invalid policy: more than %d rules", maxRules)
	}
	for _, r := range p.Rules {
		if r.Host != (r.Prefix == netip.Prefix{}) || r.Prefix != r.Prefix.Masked() || r.Prefix.Addr().Is4In6() {
			return fail(ErrInvalid, "invalid policy: %s is not a prefix", r.Prefix)
		}
		if err := checkPorts(r.Protocol, r.Low, r.High); err != nil {
			return err
		}
	}
	if n := len(p.hostPorts(netip.IPv4Unspecified())); n > maxHostPorts {
		return fail(ErrInvalid, "invalid policy: %d ports of the host: all can be opened, or at most %d", n, maxHostPorts)
	}
	if err := p.checkAt(nil); err != nil {
		return err
	}
	if len(p.Names) > maxNameRules {
		return fail(ErrInvalid, "invalid policy: more than %d names", maxNameRules)
	}
	for _, r := range p.Names {
		if len(r.Name) > 253 || !domainPattern().MatchString(r.Name) {
			return fail(ErrInvalid, "invalid policy: %q is not a name", r.Name)
		}
		if err := checkPorts(r.Protocol, r.Low, r.High); err != nil {
			return err
		}
		if len(p.namesOf(strings.ToLower(strings.TrimPrefix(r.Name, "*.")))) > bpf.MaxOpenRules ||
			len(p.namesOf("x."+strings.ToLower(strings.TrimPrefix(r.Name, "*.")))) > bpf.MaxOpenRules {
			return fail(ErrInvalid, "invalid policy: more than %d rules speak of %s", bpf.MaxOpenRules, r.Name)
		}
	}
	for _, r := range []Rate{p.Egress, p.Ingress} {
		if r.Burst < 0 || r.Burst > time.Minute || r.BytesPerSecond > 1<<40 || r.PacketsPerSecond > 1e9 {
			return fail(ErrInvalid, "invalid policy: a rate is out of bounds")
		}
	}
	return nil
}

// checkAt is the part of Check that depends on the gateways of the network.
func (p Policy) checkAt(gateways []netip.Addr) error {
	if err := bpf.CheckRules(p.rules(gateways)); err != nil {
		return fail(ErrInvalid, "invalid policy: %v", err)
	}
	return nil
}

// Equal tells whether two policies say the same in the same words.
func (p Policy) Equal(q Policy) bool {
	return slices.Equal(p.Rules, q.Rules) && slices.Equal(p.Names, q.Names) && p.Deny == q.Deny && p.Egress == q.Egress && p.Ingress == q.Ingress
}

func checkPorts(protocol string, low, high uint16) error {
	if _, ok := protocolNumber(protocol); !ok {
		return fail(ErrInvalid, "invalid policy: protocol %q is none of tcp, udp, icmp", protocol)
	}
	if high < low || (protocol == "icmp" && high > 0) {
		return fail(ErrInvalid, "invalid policy: ports %d to %d", low, high)
	}
	return nil
}

func protocolNumber(name string) (byte, bool) {
	n, ok := map[string]byte{"": 0, "icmp": 1, "tcp": 6, "udp": 17}[name]
	return n, ok
}

// empty tells whether nothing is asked of a packet but its rate.
func (p Policy) empty() bool { return len(p.Rules) == 0 && len(p.Names) == 0 && !p.Deny }

// rules are those of a guest on a network with these gateways, in order.
func (p Policy) rules(gateways []netip.Addr) []bpf.Rule {
	var all []bpf.Rule
	for _, r := range p.Rules {
		n, _ := protocolNumber(r.Protocol)
		if !r.Host {
			all = append(all, bpf.Rule{Allow: r.Allow, Prefix: r.Prefix, Protocol: n, Low: r.Low, High: r.High})
			continue
		}
		for _, g := range gateways {
			all = append(all, bpf.Rule{Allow: r.Allow, Prefix: netip.PrefixFrom(g, g.BitLen()), Protocol: n, Low: r.Low, High: r.High})
		}
	}
	return all
}

// hostPorts are the host's services that the firewall lets a guest at this address reach; what of them a rule denies, the
// TAP's program drops.
func (p Policy) hostPorts(guest netip.Addr) []hostElement {
	var all []hostElement
	add := func(e hostElement) {
		if !slices.Contains(all, e) {
			all = append(all, e)
		}
	}
	for _, r := range p.Rules {
		n, _ := protocolNumber(r.Protocol)
		if !r.Host || !r.Allow || r.Protocol == "icmp" { // which the gateway answers anyway
			continue
		}
		for _, protocol := range []byte{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
			if n != 0 && n != protocol {
				continue
			}
			if r.High == 0 {
				add(hostElement{guest, protocol, 0})
				continue
			}
			for port := uint32(r.Low); port <= uint32(r.High) && len(all) <= maxHostPorts; port++ {
				add(hostElement{guest, protocol, uint16(port)})
			}
		}
	}
	return all
}

// namesOf are the rules that speak of a name in lower case.
func (p Policy) namesOf(name string) []NameRule {
	var all []NameRule
	for _, r := range p.Names {
		want := strings.ToLower(r.Name)
		below, any := strings.CutPrefix(want, "*.")
		if name == want || (any && strings.HasSuffix(name, "."+below)) {
			all = append(all, r)
		}
	}
	return all
}

// SetPolicy changes an endpoint's policy; it is in force on return, for conversations that have begun too.
// Errors: ErrNotFound, ErrInvalid, ErrLost; ErrUnsupported where endpoints are streams.
func (n *Networks) SetPolicy(ctx context.Context, endpoint string, p Policy) error {
	if err := p.Check(); err != nil {
		return err
	}
	k, ok := n.path.(*kernel)
	if !ok {
		if p.Equal(Policy{}) {
			return nil
		}
		return errNoPolicies()
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	e, index, err := k.tapOf(endpoint)
	if err != nil {
		return err
	}
	net := &n.networks[e.Network].Network
	if err := p.checkAt(net.gateways()); err != nil {
		return err
	}
	old, before := e.Policy, hostElements(e)
	use := func(p Policy) error {
		e.Policy = p
		n.names.put(e) // first: what earlier rules have opened, assign closes
		return k.links.assign(net, e, index)
	}
	err = use(p)
	if err == nil {
		err = n.store.putEndpoint(*e) // last: what the store has is in force
	}
	if err != nil {
		return errors.Join(err, use(old))
	}
	if slices.Equal(before, hostElements(e)) {
		return nil
	}
	return k.firewall.replace(k.hostState())
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

// maxOpened bounds the addresses that names have opened for one endpoint: a guest can ask for as many as it likes.
const maxOpened = 1024

// opened lets a guest reach what the resolver is about to answer.
func (n *kernel) opened(endpoint, tap string, rules []NameRule, addresses []netip.Addr, ttl time.Duration) {
	link, err := netlink.LinkByName(tap)
	if err != nil {
		return
	}
	index := link.Attrs().Index
	open, err := n.links.guards.Expire()
	if err != nil || open[index] >= maxOpened {
		n.log.Warn("a name opens no more addresses", "endpoint", endpoint, "open", open[index], "error", err)
		return
	}
	var list []bpf.Rule
	for _, r := range rules {
		protocol, _ := protocolNumber(r.Protocol)
		list = append(list, bpf.Rule{Allow: true, Protocol: protocol, Low: r.Low, High: r.High})
	}
	list = slices.Clip(list)
	for _, a := range addresses {
		if err := n.links.guards.Open(index, a, ttl, list); err != nil {
			n.log.Warn("an address could not be opened", "endpoint", endpoint, "address", a, "error", err)
		}
	}
}
