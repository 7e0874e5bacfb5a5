package node

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cradlevm/cradle/api"
	"github.com/cradlevm/cradle/network"
)

// Bounds of a policy as users write it. What rules come to is bounded by package network.
const (
	maxPolicyRules  = 256
	maxTarget       = 512 // bytes
	maxTargetPorts  = 32  // ports and ranges in one target
	maxPolicyLength = 64 << 10
)

// parsePolicy reads a policy from a label.
func parsePolicy(text string) (*api.NetworkPolicy, error) {
	if len(text) > maxPolicyLength {
		return nil, invalid("invalid network policy: it has %d bytes, and may have %d", len(text), maxPolicyLength)
	}
	var p api.NetworkPolicy
	d := json.NewDecoder(bytes.NewReader([]byte(text)))
	d.DisallowUnknownFields()
	if err := d.Decode(&p); err != nil {
		return nil, invalid("invalid network policy: %v", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, invalid("invalid network policy: there is something behind its end")
	}
	_, err := compilePolicy(&p)
	return &p, err
}

// compilePolicy is a policy as the networks have it; nil is none. All of it is checked.
func compilePolicy(p *api.NetworkPolicy) (out network.Policy, err error) {
	if p == nil {
		return out, nil
	}
	if len(p.Rules) > maxPolicyRules {
		return out, invalid("invalid network policy: %d rules, and %d are possible", len(p.Rules), maxPolicyRules)
	}
	opens := false
	for i, r := range p.Rules {
		if (r.Allow == "") == (r.Deny == "") {
			return out, invalid("invalid network policy: rule %d must have either \"allow\" or \"deny\"", i+1)
		}
		others, err := addTarget(&out, r.Allow+r.Deny, r.Allow != "")
		if err != nil {
			return out, err
		}
		opens = opens || (r.Allow != "" && others)
	}
	switch {
	case p.Default == "deny":
		out.Deny = true
	case p.Default != "" && p.Default != "allow":
		return out, invalid("invalid network policy: default is %q, and can be \"allow\" or \"deny\"", p.Default)
	case p.Default == "" && opens:
		return out, invalid("invalid network policy: it allows something and must say by its default what becomes of the rest: \"deny\" or \"allow\"")
	case len(out.Names) > 0 && !slices.ContainsFunc(out.Names, func(r network.NameRule) bool { return r.Deny }):
		return out, invalid("invalid network policy: allowing %s does nothing while the default is \"allow\"", out.Names[0].Name)
	}
	if out.Egress, err = compileRate(p.Egress); err != nil {
		return out, err
	}
	if out.Ingress, err = compileRate(p.Ingress); err != nil {
		return out, err
	}
	if err := out.Check(); err != nil {
		return out, networkError(err)
	}
	return out, nil
}

func compileRate(r api.TrafficRate) (network.Rate, error) {
	out := network.Rate{BytesPerSecond: r.BytesPerSecond, PacketsPerSecond: r.PacketsPerSecond}
	if r.Burst == "" {
		return out, nil
	}
	var err error
	if out.Burst, err = time.ParseDuration(r.Burst); err != nil || out.Burst <= 0 {
		return out, invalid("invalid network policy: a burst is a time such as 50ms, not %q", r.Burst)
	}
	return out, nil
}

// addTarget adds the rules that a target comes to; others tells whether it speaks of others than the host.
func addTarget(p *network.Policy, target string, allow bool) (others bool, err error) {
	place, ports, protocol, err := splitTarget(target)
	if err != nil {
		return false, err
	}
	var prefixes []netip.Prefix
	name := ""
	switch {
	case place == "host":
		prefixes = []netip.Prefix{{}}
	case place == "any":
		prefixes = []netip.Prefix{netip.PrefixFrom(netip.IPv4Unspecified(), 0), netip.PrefixFrom(netip.IPv6Unspecified(), 0)}
	default:
		prefix, isAddress, err := parsePrefix(place)
		switch {
		case err != nil:
			return false, invalid("invalid network policy: %q: %v", target, err)
		case isAddress:
			prefixes = []netip.Prefix{prefix}
		default:
			name = place
		}
	}
	for _, r := range ports {
		if name != "" {
			p.Names = append(p.Names, network.NameRule{Deny: !allow, Name: name, Protocol: protocol, Low: r.low, High: r.high})
		}
		for _, prefix := range prefixes {
			p.Rules = append(p.Rules, network.Rule{
				Allow: allow, Host: place == "host", Prefix: prefix, Protocol: protocol, Low: r.low, High: r.high,
			})
		}
	}
	return place != "host", nil
}

// portSpan is a range of ports; zeros are all.
type portSpan struct{ low, high uint16 }

// splitTarget takes PLACE[:PORTS][/PROTOCOL] apart.
func splitTarget(target string) (place string, ports []portSpan, protocol string, err error) {
	bad := func(format string, a ...any) (string, []portSpan, string, error) {
		return "", nil, "", invalid("invalid network policy: %q: %s", target, fmt.Sprintf(format, a...))
	}
	if target == "" || len(target) > maxTarget {
		return bad("a target has 1 to %d bytes", maxTarget)
	}
	place = target
	if i := strings.LastIndexByte(place, '/'); i >= 0 && strings.Trim(place[i+1:], "0123456789") != "" {
		protocol, place = place[i+1:], strings.TrimSuffix(place[:i], ":")
		if protocol != "tcp" && protocol != "udp" && protocol != "icmp" {
			return bad("the protocol %q is none of tcp, udp, icmp", protocol)
		}
	}
	list := ""
	if inner, ok := strings.CutPrefix(place, "["); ok {
		var rest string
		if place, rest, ok = strings.Cut(inner, "]"); !ok || (rest != "" && !strings.HasPrefix(rest, ":")) {
			return bad("an address in brackets is followed by a colon and ports")
		}
		list = strings.TrimPrefix(rest, ":")
	} else if strings.Count(place, ":") == 1 {
		place, list, _ = strings.Cut(place, ":")
	}
	if list == "" {
		return place, []portSpan{{}}, protocol, nil
	}
	for _, one := range strings.Split(list, ",") {
		low, high, isRange := strings.Cut(one, "-")
		if !isRange {
			high = low
		}
		a, errA := strconv.ParseUint(low, 10, 16)
		b, errB := strconv.ParseUint(high, 10, 16)
		if errA != nil || errB != nil || a == 0 || a > b {
			return bad("%q is neither a port nor a range of ports", one)
		}
		ports = append(ports, portSpan{uint16(a), uint16(b)})
	}
	switch {
	case len(ports) > maxTargetPorts:
		return bad("%d ports and ranges, and %d are possible", len(ports), maxTargetPorts)
	case protocol == "icmp":
		return bad("ICMP has no ports")
	}
	return place, ports, protocol, nil
}

// parsePrefix reads an address or a prefix. What is neither is a name.
func parsePrefix(s string) (p netip.Prefix, isAddress bool, err error) {
	if strings.Contains(s, "/") {
		p, err = netip.ParsePrefix(s)
		if err == nil && p != p.Masked() {
			err = fmt.Errorf("%s has bits set behind its length: it should be %s", s, p.Masked())
		}
		return p, true, err
	}
	a, err := netip.ParseAddr(s)
	switch {
	case err == nil && a.Zone() != "":
		return p, true, errors.New("an address has no zone here")
	case err == nil:
		return netip.PrefixFrom(a, a.BitLen()), true, nil
	case strings.Contains(s, ":"):
		return p, true, errors.New("it is not an IPv6 address; with ports the address stands in brackets")
	case strings.Trim(s, "0123456789.") == "":
		return p, true, errors.New("it is not an IPv4 address")
	}
	return p, false, nil
}

// policyOf is the policy of a container on one of its networks; nil: there is none.
func (r *record) policyOf(l link) *api.NetworkPolicy {
	if l.Policy != nil {
		return l.Policy
	}
	return r.Policy
}

// NetworkPolicySet gives a container a policy: on one of its networks, or with an empty name on all that it is or will be on, in
// place of those of single ones. nil takes it away. It is in force when this returns, for conversations that have begun too, and
// lasts as long as the container, in its clones too.
func (n *Node) NetworkPolicySet(ctx context.Context, container, networkName string, p *api.NetworkPolicy) error {
	if _, err := compilePolicy(p); err != nil {
		return err
	}
	c, err := n.find(container)
	if err != nil {
		return err
	}
	c.op.Lock()
	defer c.op.Unlock()
	old := c.snapshot()
	rec, err := n.withPolicy(old, networkName, p)
	if err != nil {
		return err
	}
	if err := n.canHavePolicy(&rec); err != nil && p != nil {
		return err
	}
	// The record is first: from it a daemon that finds another policy in force puts this one there.
	if err := c.storePolicies(rec); err != nil {
		return errors.Join(err, c.storePolicies(old))
	}
	if err := n.enforce(ctx, rec); err != nil {
		return errors.Join(err, c.storePolicies(old), n.enforce(context.WithoutCancel(ctx), old))
	}
	return c.askAnother(ctx, old, rec)
}

// askAnother has a running container ask the resolver that its new policy needs.
func (c *ctr) askAnother(ctx context.Context, old, rec record) error {
	r, notRunning := c.current()
	links := slices.DeleteFunc(slices.Clone(rec.Links), func(l link) bool { return l.Endpoint == nil })
	if notRunning != nil || c.node.addressing(old, links).Resolver == c.node.addressing(rec, links).Resolver {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), connectLimit)
	defer cancel()
	return c.configure(ctx, r, rec, links)
}

// namesMatter tells whether the policy on a network says something of names.
func (r *record) namesMatter(l link) bool {
	p, err := compilePolicy(r.policyOf(l))
	return err == nil && (p.Deny || len(p.Names) > 0)
}

// canHavePolicy tells why a container's policy could not be in force.
func (n *Node) canHavePolicy(rec *record) error {
	if rec.HostConfig.NetworkMode.IsContainer() {
		return invalid("a container on another one's network has no network policy of its own: that one's is in force")
	}
	return nil
}

// storePolicies records the policies of another version of the record, and nothing else of it: its machine may just be ending.
func (c *ctr) storePolicies(from record) error {
	return c.change(func(r *record) {
		r.Policy, r.Links = from.Policy, slices.Clone(r.Links)
		for i := range r.Links {
			for _, l := range from.Links {
				if l.Name == r.Links[i].Name {
					r.Links[i].Policy = l.Policy
				}
			}
		}
	})
}

// withPolicy is a record with a policy set or, with nil, taken away.
func (n *Node) withPolicy(rec record, networkName string, p *api.NetworkPolicy) (record, error) {
	links := slices.Clone(rec.Links)
	if networkName == "" {
		for i := range links {
			links[i].Policy = nil
		}
		rec.Policy, rec.Links = p, links
		return rec, nil
	}
	name := networkName
	if found, err := n.findNetwork(networkName); err == nil {
		name = found.Name
	}
	for i := range links {
		if links[i].Name == name {
			links[i].Policy, rec.Links = p, links
			return rec, nil
		}
	}
	return rec, notFound("container %s is not connected to network %s", rec.Name, networkName)
}

// enforce puts a container's policies in force on the networks that its machine is on.
func (n *Node) enforce(ctx context.Context, rec record) error {
	for _, l := range rec.Links {
		if l.Endpoint == nil {
			continue
		}
		p, err := compilePolicy(rec.policyOf(l))
		if err != nil {
			return err
		}
		err = n.networks.SetPolicy(ctx, l.Endpoint.ID, p)
		if err != nil && !errors.Is(err, network.ErrNotFound) && !errors.Is(err, network.ErrLost) { // nothing passes there
			return networkError(err)
		}
	}
	return nil
}

// enforceAgain puts in force what a daemon that was killed had written down only.
func (n *Node) enforceAgain(ctx context.Context, recs []record) error {
	all, err := n.networks.Endpoints("")
	if err != nil {
		return err
	}
	inForce := map[string]network.Policy{}
	for _, e := range all {
		inForce[e.ID] = e.Policy
	}
	var errs []error
	for _, rec := range recs {
		for _, l := range rec.Links {
			if l.Endpoint == nil {
				continue
			}
			p, err := compilePolicy(rec.policyOf(l))
			if now, there := inForce[l.Endpoint.ID]; err == nil && there && !now.Equal(p) {
				err = n.networks.SetPolicy(ctx, l.Endpoint.ID, p)
			}
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// NetworkPolicy tells of a container's policies and what has become of its traffic.
func (n *Node) NetworkPolicy(_ context.Context, container string) (api.ContainerNetworkPolicy, error) {
	c, err := n.find(container)
	if err != nil {
		return api.ContainerNetworkPolicy{}, err
	}
	return n.policyStatus(c.snapshot()), nil
}

// NetworkPolicies tells of all containers that are on a network or have a policy, by name.
func (n *Node) NetworkPolicies(context.Context) []api.ContainerNetworkPolicy {
	all := []api.ContainerNetworkPolicy{}
	for _, c := range n.all() {
		if rec := c.snapshot(); len(rec.Links) > 0 || rec.Policy != nil {
			all = append(all, n.policyStatus(rec))
		}
	}
	slices.SortFunc(all, func(a, b api.ContainerNetworkPolicy) int { return strings.Compare(a.Name, b.Name) })
	return all
}

func (n *Node) policyStatus(rec record) api.ContainerNetworkPolicy {
	out := api.ContainerNetworkPolicy{Container: rec.ID, Name: rec.Name, Policy: rec.Policy}
	for _, l := range rec.Links {
		s := api.NetworkPolicyStatus{Network: l.Name, Own: l.Policy != nil, Policy: rec.policyOf(l)}
		if l.Endpoint != nil {
			if from, to, err := n.networks.Counters(l.Endpoint.ID); err == nil { // else it is just going
				s.Egress = &api.Traffic{Packets: from.Packets, Bytes: from.Bytes, Dropped: from.Dropped}
				s.Ingress = &api.Traffic{Packets: to.Packets, Bytes: to.Bytes, Dropped: to.Dropped}
			}
			if counts, err := n.networks.RuleCounts(l.Endpoint.ID); err == nil && s.Policy != nil {
				s.Rules, s.Default = ruleTraffic(s.Policy.Rules, counts), (*api.Decided)(counts.Default)
			}
		}
		out.Networks = append(out.Networks, s)
	}
	return out
}

// ruleTraffic gives rules as users write them what the rules have decided about that they come to. Of two that say the same, the
// second decides about nothing.
func ruleTraffic(rules []api.PolicyRule, counts network.RuleCounts) []api.RuleTraffic {
	var all []api.RuleTraffic
	add := func(to *api.RuleTraffic, c network.RuleCount) {
		to.Packets += c.Packets
		to.Bytes += c.Bytes
	}
	for _, r := range rules {
		t := api.RuleTraffic{PolicyRule: r}
		var p network.Policy
		if _, err := addTarget(&p, r.Allow+r.Deny, r.Allow != ""); err != nil {
			continue // it was checked when it was set
		}
		for _, one := range p.Rules {
			add(&t, counts.Rules[one])
			delete(counts.Rules, one)
		}
		for _, one := range p.Names {
			add(&t, counts.Names[one])
			delete(counts.Names, one)
		}
		all = append(all, t)
	}
	return all
}
