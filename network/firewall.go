package network

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// firewall is a table of nftables that is ours alone. Its rules never change: they ask sets and maps, which are filled from
// the networks and ports that there are. The whole table is replaced at once when a network comes or goes; a port is one
// element.
//
//	forward   established → accept; within one bridge → accept; to or from an internal network, to the metadata
//	          range → drop; to a published port → accept; to a guest otherwise (another network's, or from outside) → drop
//	input     from a guest to the host: our resolver and ping at the gateway, neighbour discovery, what its policy opens
//	          there, answers to what the host began; all else → drop
//	nat       published ports; guests that leave borrow the host's address
type firewall struct{ table string }

// hostState is all that the table depends on.
type hostState struct {
	networks []Network
	ports    []portElement
	hosts    []hostElement
}

// portElement is a published port: host may be unspecified, then it stands for all addresses of its family.
type portElement struct {
	protocol byte // IPPROTO_TCP or IPPROTO_UDP
	host     netip.AddrPort
	guest    netip.AddrPort
}

// hostElement lets a guest reach a port of the host, at its gateway.
type hostElement struct {
	guest    netip.Addr
	protocol byte   // IPPROTO_TCP or IPPROTO_UDP
	port     uint16 // 0: any
}

// hostElements are what an endpoint's policy opens of the host.
func hostElements(e *Endpoint) []hostElement {
	var all []hostElement
	for _, p := range []netip.Prefix{e.IPv4, e.IPv6} {
		if p.IsValid() {
			all = append(all, e.Policy.hostPorts(p.Addr())...)
		}
	}
	return all
}

// tableSets are the table's sets by what they hold.
type tableSets struct {
	bridges    *nftables.Set // interfaces that guests are behind
	internal   *nftables.Set // those without a way out
	metadata   *nftables.Set // those that may reach the metadata range
	loops      *nftables.Set // pairs of a bridge and itself, where guests may reach one another
	resolvers4 *nftables.Set // bridge and gateway
	resolvers6 *nftables.Set
	guests4    *nftables.Set // subnets
	guests6    *nftables.Set
	masked4    *nftables.Set // subnets that borrow the host's address
	masked6    *nftables.Set
	ports4     *nftables.Set // protocol, host address, port → guest
	ports6     *nftables.Set
	anyPorts4  *nftables.Set // protocol, port → guest
	anyPorts6  *nftables.Set
	hosts4     *nftables.Set // protocol, guest, port of the host's that it may reach
	hosts6     *nftables.Set
	anyHosts4  *nftables.Set // protocol, guest that may reach all of them
	anyHosts6  *nftables.Set
}

func (f *firewall) tableOf() *nftables.Table {
	return &nftables.Table{Family: nftables.TableFamilyINet, Name: f.table}
}

func (f *firewall) sets(t *nftables.Table) *tableSets {
	set := func(name string, key ...nftables.SetDatatype) *nftables.Set {
		s := &nftables.Set{Table: t, Name: name, KeyType: key[0]}
		if len(key) > 1 {
			s.KeyType, s.Concatenation = nftables.MustConcatSetType(key...), true
		}
		return s
	}
	interval := func(name string, key nftables.SetDatatype) *nftables.Set {
		s := set(name, key)
		s.Interval = true
		return s
	}
	mapped := func(name string, address nftables.SetDatatype, key ...nftables.SetDatatype) *nftables.Set {
		s := set(name, key...)
		s.IsMap = true
		s.DataType = nftables.MustConcatSetType(address, nftables.TypeInetService)
		return s
	}
	ifname, ip, ip6 := nftables.TypeIFName, nftables.TypeIPAddr, nftables.TypeIP6Addr
	protocol, port := nftables.TypeInetProto, nftables.TypeInetService
	return &tableSets{
		bridges: set("bridges", ifname), internal: set("internal", ifname), metadata: set("metadata", ifname),
		loops:      set("loops", ifname, ifname),
		resolvers4: set("resolvers4", ifname, ip), resolvers6: set("resolvers6", ifname, ip6),
		guests4: interval("guests4", ip), guests6: interval("guests6", ip6),
		masked4: interval("masked4", ip), masked6: interval("masked6", ip6),
		ports4: mapped("ports4", ip, protocol, ip, port), ports6: mapped("ports6", ip6, protocol, ip6, port),
		anyPorts4: mapped("anyports4", ip, protocol, port), anyPorts6: mapped("anyports6", ip6, protocol, port),
		hosts4: set("hosts4", protocol, ip, port), hosts6: set("hosts6", protocol, ip6, port),
		anyHosts4: set("anyhosts4", protocol, ip), anyHosts6: set("anyhosts6", protocol, ip6),
	}
}

func (s *tableSets) all() []*nftables.Set {
	return []*nftables.Set{s.bridges, s.internal, s.metadata, s.loops, s.resolvers4, s.resolvers6, s.guests4, s.guests6,
		s.masked4, s.masked6, s.ports4, s.ports6, s.anyPorts4, s.anyPorts6, s.hosts4, s.hosts6, s.anyHosts4, s.anyHosts6}
}

// elements says what each set holds.
func (s *tableSets) elements(h hostState) map[*nftables.Set][]nftables.SetElement {
	all := map[*nftables.Set][]nftables.SetElement{}
	add := func(set *nftables.Set, e ...nftables.SetElement) { all[set] = append(all[set], e...) }
	for _, n := range h.networks {
		name := nftables.SetElement{Key: ifname(n.Bridge)}
		add(s.bridges, name)
		if n.Internal {
			add(s.internal, name)
		}
		if n.option(OptionMetadata) {
			add(s.metadata, name)
		}
		if !n.Isolated() {
			add(s.loops, nftables.SetElement{Key: slices.Concat(name.Key, name.Key)})
		}
		for _, sub := range n.Subnets {
			resolvers, guests, masked := s.resolvers4, s.guests4, s.masked4
			if sub.Prefix.Addr().Is6() {
				resolvers, guests, masked = s.resolvers6, s.guests6, s.masked6
			}
			add(resolvers, nftables.SetElement{Key: slices.Concat(name.Key, sub.Gateway.AsSlice())})
			add(guests, span(sub.Prefix)...)
			if n.masquerade() {
				add(masked, span(sub.Prefix)...)
			}
		}
	}
	for _, p := range h.ports {
		set, e := s.port(p)
		add(set, e)
	}
	for _, p := range h.hosts {
		set, e := s.host(p)
		add(set, e)
	}
	return all
}

// host is the element of a port of the host's, and the set it belongs in.
func (s *tableSets) host(h hostElement) (*nftables.Set, nftables.SetElement) {
	key := slices.Concat([]byte{h.protocol, 0, 0, 0}, h.guest.AsSlice())
	set, anyPort := s.hosts4, s.anyHosts4
	if h.guest.Is6() {
		set, anyPort = s.hosts6, s.anyHosts6
	}
	if h.port == 0 {
		return anyPort, nftables.SetElement{Key: key}
	}
	return set, nftables.SetElement{Key: slices.Concat(key, portKey(h.port))}
}

// port is the element of a published port, and the map it belongs in.
func (s *tableSets) port(p portElement) (*nftables.Set, nftables.SetElement) {
	val := slices.Concat(p.guest.Addr().AsSlice(), portKey(p.guest.Port()))
	protocol := []byte{p.protocol, 0, 0, 0}
	four := p.guest.Addr().Is4()
	if p.host.Addr().IsUnspecified() {
		set := s.anyPorts6
		if four {
			set = s.anyPorts4
		}
		return set, nftables.SetElement{Key: slices.Concat(protocol, portKey(p.host.Port())), Val: val}
	}
	set := s.ports6
	if four {
		set = s.ports4
	}
	return set, nftables.SetElement{Key: slices.Concat(protocol, p.host.Addr().AsSlice(), portKey(p.host.Port())), Val: val}
}

func portKey(p uint16) []byte { return []byte{byte(p >> 8), byte(p), 0, 0} }

func ifname(name string) []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, name)
	return b
}

// span is a prefix as an interval: where it begins and where it has ended.
func span(p netip.Prefix) []nftables.SetElement {
	s := []nftables.SetElement{{Key: p.Addr().AsSlice()}}
	if end := last(p).Next(); end.IsValid() {
		s = append(s, nftables.SetElement{Key: end.AsSlice(), IntervalEnd: true})
	}
	return s
}

// replace makes the table anew in one transaction: the old one holds until the new one does.
func (f *firewall) replace(h hostState) error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	t := f.tableOf()
	c.AddTable(t) // deleting takes that it is there
	c.DelTable(t)
	c.AddTable(t)
	s := f.sets(t)
	elements := s.elements(h)
	for _, set := range s.all() {
		if err := c.AddSet(set, elements[set]); err != nil {
			return fmt.Errorf("make set %s: %w", set.Name, err)
		}
	}
	for _, ch := range chains(t, s) {
		c.AddChain(ch.chain)
	}
	for _, ch := range chains(t, s) {
		for _, r := range ch.rules {
			c.AddRule(&nftables.Rule{Table: t, Chain: ch.chain, Exprs: r})
		}
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("make firewall: %w", err)
	}
	return nil
}

// remove deletes the table. Idempotent.
func (f *firewall) remove() error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	c.AddTable(f.tableOf())
	c.DelTable(f.tableOf())
	if err := c.Flush(); err != nil {
		return fmt.Errorf("remove firewall: %w", err)
	}
	return nil
}

// addPorts and its like change elements only.
func (f *firewall) addPorts(ports []portElement) error {
	return changeElements(f, ports, (*tableSets).port, (*nftables.Conn).SetAddElements)
}

func (f *firewall) removePorts(ports []portElement) error {
	return changeElements(f, ports, (*tableSets).port, (*nftables.Conn).SetDeleteElements)
}

func (f *firewall) addHosts(hosts []hostElement) error {
	return changeElements(f, hosts, (*tableSets).host, (*nftables.Conn).SetAddElements)
}

func (f *firewall) removeHosts(hosts []hostElement) error {
	return changeElements(f, hosts, (*tableSets).host, (*nftables.Conn).SetDeleteElements)
}

func changeElements[T any](f *firewall, list []T, place func(*tableSets, T) (*nftables.Set, nftables.SetElement),
	change func(*nftables.Conn, *nftables.Set, []nftables.SetElement) error) error {
	if len(list) == 0 {
		return nil
	}
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	s := f.sets(f.tableOf())
	for _, one := range list {
		set, e := place(s, one)
		if err := change(c, set, []nftables.SetElement{e}); err != nil {
			return fmt.Errorf("change firewall: %w", err)
		}
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("change firewall: %w", err)
	}
	return nil
}

// intact tells whether the table is as replace would make it: its chains with as many rules, its sets with the same
// elements.
func (f *firewall) intact(h hostState) bool {
	c, err := nftables.New()
	if err != nil {
		return false
	}
	t := f.tableOf()
	s := f.sets(t)
	elements := s.elements(h)
	for _, set := range s.all() {
		have, err := c.GetSetElements(set)
		if err != nil || !sameElements(set, have, elements[set]) {
			return false
		}
	}
	for _, ch := range chains(t, s) {
		rules, err := c.GetRules(t, ch.chain)
		if err != nil || len(rules) != len(ch.rules) {
			return false
		}
	}
	all, err := c.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return false
	}
	base := 0
	for _, ch := range all {
		if ch.Table.Name == f.table && ch.Hooknum != nil {
			base++
		}
	}
	return base == 5
}

func sameElements(set *nftables.Set, have, want []nftables.SetElement) bool {
	keys := func(list []nftables.SetElement) []string {
		var k []string
		for _, e := range list {
			if set.Interval && len(e.Key) > 0 && e.IntervalEnd && !slices.ContainsFunc(e.Key, func(b byte) bool { return b != 0 }) {
				continue // the kernel's own first element
			}
			k = append(k, fmt.Sprintf("%x %v", e.Key, e.IntervalEnd)+fmt.Sprintf(" %x", e.Val))
		}
		slices.SortFunc(k, cmp.Compare)
		return k
	}
	return slices.Equal(keys(have), keys(want))
}

// exists tells whether the table is there at all.
func (f *firewall) exists() (bool, error) {
	c, err := nftables.New()
	if err != nil {
		return false, fmt.Errorf("open nftables: %w", err)
	}
	_, err = c.ListTableOfFamily(f.table, nftables.TableFamilyINet)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	return err == nil, nil
}

// rule is a list of expressions, one after the other, as the kernel runs them.
type rule = []expr.Any
