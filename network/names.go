package network

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cradlevm/cradle/network/dns"
)

// names is what the resolvers know. It has a lock of its own, so that a question never waits for a network to be made.
type names struct {
	mu        sync.RWMutex
	endpoints map[string]*named
	opener    opener // set before the first resolver
}

// named is the part of an endpoint that has to do with names; it does not change once it is in the table.
type named struct {
	id, network, networkName, container, tap string
	names                                    []string          // lower case
	links                                    map[string]string // lower case; what the container calls others, and their names
	v4, v6                                   netip.Addr
	internal                                 bool
	upstreams                                []netip.AddrPort
	policy                                   Policy
}

func newNames() *names { return &names{endpoints: map[string]*named{}} }

// put makes an endpoint known, in place of what was known of it.
func (t *names) put(e *Endpoint) {
	k := &named{id: e.ID, network: e.Network, networkName: strings.ToLower(e.NetworkName), container: e.Container, tap: e.TAP,
		v4: e.IPv4.Addr(), v6: e.IPv6.Addr(), internal: !e.Gateway4.IsValid(), policy: e.Policy}
	if e.NetworkName != Default { // docker's default network has no names
		short := e.Container[:min(12, len(e.Container))]
		for _, name := range append([]string{e.Name, e.Container, short}, e.Aliases...) {
			if name = strings.ToLower(name); name != "" && !slices.Contains(k.names, name) {
				k.names = append(k.names, name)
			}
		}
	}
	for name, other := range e.Links {
		if k.links == nil {
			k.links = map[string]string{}
		}
		k.links[strings.ToLower(name)] = strings.ToLower(other)
	}
	for _, a := range e.DNS {
		k.upstreams = append(k.upstreams, netip.AddrPortFrom(a, 53))
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.endpoints[e.ID] = k
}

func (t *names) remove(e *Endpoint) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.endpoints, e.ID)
}

// directory is what the resolver of one network is given: who asks is told by an address of that network.
type directory struct {
	names   *names
	network string
}

// Asker implements dns.Directory.
func (d directory) Asker(source netip.Addr) (dns.Asker, bool) {
	t := d.names
	t.mu.RLock()
	defer t.mu.RUnlock()
	var who *named
	for _, k := range t.endpoints {
		if k.network == d.network && (k.v4 == source || k.v6 == source) {
			who = k
		}
	}
	if who == nil {
		return dns.Asker{}, false
	}
	// A container may know all networks that it is on, and has a way out when one of them has.
	on := map[string]bool{}
	forward := false
	policies, links := []*named{}, map[string]string{}
	for _, k := range t.endpoints {
		if k.container == who.container {
			on[k.network] = true
			forward = forward || !k.internal
			maps.Copy(links, k.links)
			if k.policy.Deny || len(k.policy.Names) > 0 {
				policies = append(policies, k)
			}
		}
	}
	asker := dns.Asker{
		Lookup:    func(name string) ([]netip.Addr, bool) { return t.lookup(on, cmp.Or(links[name], name)) },
		Reverse:   func(a netip.Addr) (string, bool) { return t.reverse(on, a) },
		Forward:   forward,
		Upstreams: who.upstreams,
	}
	if len(policies) > 0 {
		asker.Allow = func(name string) bool { return allows(policies, name) }
		asker.Denied = func(name string) bool { return t.denied(policies, name) }
		asker.Opened = func(name string, addresses []netip.Addr, ttl time.Duration) {
			for _, k := range policies {
				if rules := k.policy.namesOf(name); k.policy.Deny && len(rules) > 0 {
					t.opener.open(k, rules, addresses, ttl)
				}
			}
		}
	}
	return asker, true
}

// allows tells whether a name may be asked of the world: under a policy that denies what it does not speak of, only names
// that it speaks of. Questions can carry secrets out.
func allows(policies []*named, name string) bool {
	for _, k := range policies {
		if k.policy.Deny && len(k.policy.namesOf(name)) == 0 {
			return false
		}
	}
	return true
}

// denied tells whether a rule denies a name, on any of the asker's networks, and has that counted.
func (t *names) denied(policies []*named, name string) bool {
	any := false
	for _, k := range policies {
		if rule, denied := k.policy.denies(name); denied {
			t.opener.refused(k, rule)
			any = true
		}
	}
	return any
}

// lookup finds containers by name, alias or id, or by one of these and the network's name.
func (t *names) lookup(on map[string]bool, name string) (found []netip.Addr, known bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	for _, k := range t.endpoints {
		if !on[k.network] {
			continue
		}
		bare, qualified := strings.CutSuffix(name, "."+k.networkName)
		if !slices.Contains(k.names, name) && !(qualified && slices.Contains(k.names, bare)) {
			continue
		}
		known = true
		for _, a := range []netip.Addr{k.v4, k.v6} {
			if a.IsValid() {
				found = append(found, a)
			}
		}
	}
	return found, known
}

// reverse finds the name of an address.
func (t *names) reverse(on map[string]bool, a netip.Addr) (string, bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	for _, k := range t.endpoints {
		if on[k.network] && (k.v4 == a || k.v6 == a) && len(k.names) > 0 {
			return k.names[0] + "." + k.networkName, true
		}
	}
	return "", false
}
