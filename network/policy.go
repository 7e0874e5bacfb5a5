package network

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cradlevm/cradle/network/bpf"
	"github.com/cradlevm/cradle/network/egress"
)

// Policy is what a container may send, and how much. The zero Policy allows all but the host's own services, which only a
// rule opens.
type Policy struct {
	Rules   []Rule     `json:"rules,omitempty"` // the first that matches decides
	Names   []NameRule `json:"names,omitempty"` // come after Rules; of those too the first that matches decides
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

// NameRule allows the addresses that a name stands for, while our resolver's answer holds, or has the resolver not answer for it.
type NameRule struct {
	Deny     bool   `json:"deny,omitzero"` // then of all ports and protocols, and of what is below the name too
	Name     string `json:"name"`          // "example.org", or "*.example.org" for what is below it
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
		if r.Deny && (r.Protocol != "" || r.High > 0) {
			return fail(ErrInvalid, "invalid policy: %s is denied for all protocols and ports, or not at all: its addresses are not known", r.Name)
		}
		if err := checkPorts(r.Protocol, r.Low, r.High); err != nil {
			return err
		}
		if len(p.namesOf(strings.ToLower(strings.TrimPrefix(r.Name, "*.")))) > egress.MaxOpenRules ||
			len(p.namesOf("x."+strings.ToLower(strings.TrimPrefix(r.Name, "*.")))) > egress.MaxOpenRules {
			return fail(ErrInvalid, "invalid policy: more than %d rules speak of %s", egress.MaxOpenRules, r.Name)
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

// asks tells whether more is asked of a packet than its rate.
func (p Policy) asks() bool { return len(p.Rules) > 0 || p.Deny }

// defaultID is what packets are counted by that no rule speaks of.
func (p Policy) defaultID() uint64 {
	if p.Deny {
		return egress.DefaultDeny
	}
	return egress.DefaultAllow
}

// id is what the rule's packets are counted by: the same wherever it stands, so that it goes on counting when others change.
func (r Rule) id() uint64 {
	return hashed(fmt.Sprintf("rule %t %t %s %s %d %d", r.Allow, r.Host, r.Prefix, r.Protocol, r.Low, r.High))
}

func (r NameRule) id() uint64 {
	return hashed(fmt.Sprintf("name %t %s %s %d %d", r.Deny, strings.ToLower(r.Name), r.Protocol, r.Low, r.High))
}

// hashed is no id of a default.
func hashed(words string) uint64 {
	sum := sha256.Sum256([]byte(words))
	return binary.BigEndian.Uint64(sum[:]) | 1<<63
}

// egress is the policy as the datapaths have it, on a network with these gateways.
func (p Policy) egress(gateways []netip.Addr) egress.Policy {
	out := egress.Policy{Rules: p.rules(gateways), Deny: p.Deny, Egress: egress.Rate(p.Egress), Ingress: egress.Rate(p.Ingress)}
	if p.asks() {
		out.Counted = append(out.Counted, p.defaultID())
	}
	for _, r := range p.Names {
		out.Counted = append(out.Counted, r.id())
	}
	return out
}

// rules are those of a guest on a network with these gateways, in order.
func (p Policy) rules(gateways []netip.Addr) []egress.Rule {
	var all []egress.Rule
	for _, r := range p.Rules {
		n, _ := protocolNumber(r.Protocol)
		if !r.Host {
			all = append(all, egress.Rule{Allow: r.Allow, Prefix: r.Prefix, Protocol: n, Low: r.Low, High: r.High, ID: r.id()})
			continue
		}
		for _, g := range gateways {
			all = append(all, egress.Rule{Allow: r.Allow, Prefix: netip.PrefixFrom(g, g.BitLen()), Protocol: n, Low: r.Low, High: r.High, ID: r.id()})
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

// speaksOf tells whether a rule is about a name in lower case.
func (r NameRule) speaksOf(name string) bool {
	want := strings.ToLower(r.Name)
	below, any := strings.CutPrefix(want, "*.")
	return !any && name == want || (any || r.Deny) && strings.HasSuffix(name, "."+below)
}

// namesOf are the rules that open a name in lower case: those before the first that denies it.
func (p Policy) namesOf(name string) []NameRule {
	var all []NameRule
	for _, r := range p.Names {
		if !r.speaksOf(name) {
			continue
		}
		if r.Deny {
			break
		}
		all = append(all, r)
	}
	return all
}

// denies tells which rule decides that a name is not to be answered for.
func (p Policy) denies(name string) (NameRule, bool) {
	for _, r := range p.Names {
		if r.speaksOf(name) {
			return r, r.Deny
		}
	}
	return NameRule{}, false
}

// SetPolicy changes an endpoint's policy; it is in force on return, for conversations that have begun too. Counters of rules that
// stay go on. Errors: ErrNotFound, ErrInvalid, ErrLost.
func (n *Networks) SetPolicy(ctx context.Context, endpoint string, p Policy) error {
	if err := p.Check(); err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	e := n.endpoints[endpoint]
	if e == nil {
		return fail(ErrNotFound, "endpoint %s not found", endpoint)
	}
	net := &n.networks[e.Network].Network
	if err := p.checkAt(net.gateways()); err != nil {
		return err
	}
	old := e.Policy
	use := func(p Policy) error {
		before := hostElements(e)
		e.Policy = p
		n.names.put(e) // first: what earlier rules have opened, the datapath closes
		return n.path.enforce(net, e, before)
	}
	err := use(p)
	if err == nil {
		err = n.store.putEndpoint(*e) // last: what the store has is in force
	}
	if err != nil {
		return errors.Join(err, use(old))
	}
	return nil
}

// RuleCount is what one rule has decided about.
type RuleCount = egress.Count

// RuleCounts tell what has become of packets under an endpoint's policy. Of a name that is denied the questions are counted that
// were refused.
type RuleCounts struct {
	Rules   map[Rule]RuleCount
	Names   map[NameRule]RuleCount
	Default *RuleCount // what no rule spoke of; nil where the policy says nothing of addresses
}

// RuleCounts counts since each rule is there. ErrNotFound, ErrLost.
func (n *Networks) RuleCounts(endpoint string) (RuleCounts, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	c := RuleCounts{Rules: map[Rule]RuleCount{}, Names: map[NameRule]RuleCount{}}
	e := n.endpoints[endpoint]
	if e == nil {
		return c, fail(ErrNotFound, "endpoint %s not found", endpoint)
	}
	counts, err := n.path.decided(e)
	if err != nil {
		return c, err
	}
	for _, r := range e.Policy.Rules {
		c.Rules[r] = counts[r.id()]
	}
	for _, r := range e.Policy.Names {
		c.Names[r] = counts[r.id()]
	}
	if e.Policy.asks() {
		rest := counts[e.Policy.defaultID()]
		c.Default = &rest
	}
	return c, nil
}
