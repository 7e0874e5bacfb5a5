package guest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path"
	"reflect"
	"slices"
	"strings"
	"sync"

	"github.com/cradlevm/cradle/api"
	"golang.org/x/sys/unix"
)

// network is the guest's interfaces as the host last wanted them. What a container with the right to do so has changed
// meanwhile is its own business: the host's wall is outside of the guest. An interface that is in no use is parked: no
// container sees it.
type network struct {
	mu      sync.Mutex
	parking *parking               // nil before the first look
	slots   map[int]bool           // which there are
	now     map[int]*wantedNetwork // by slot
}

// wantedNetwork is an api.Interface, checked and parsed.
type wantedNetwork struct {
	api.Interface
	mac        []byte
	addresses  []netip.Prefix
	routes     []wantedRoute
	neighbours []wantedNeighbour
}

type wantedRoute struct {
	to      netip.Prefix
	gateway netip.Addr // the zero Addr: on the link
	metric  int
	mtu     int // 0: the interface's
}

type wantedNeighbour struct {
	address netip.Addr
	mac     [6]byte
}

// Bounds of a request; more is a mistake.
const (
	maxAddresses  = 64
	maxRoutes     = 256
	maxNeighbours = 256
	maxSysctls    = 64
)

// setNetwork answers MethodNetwork.
func (a *Agent) setNetwork(r *api.NetworkRequest) error {
	wanted, err := parseNetwork(r.Interfaces)
	if err != nil {
		return err
	}
	for _, f := range r.Files {
		c, err := a.container(f.ID)
		if err != nil {
			return err
		}
		if err := c.given.rewrite(f.Files); err != nil {
			return err
		}
	}
	return a.network.apply(wanted)
}

// createNetwork does the part of a container's making that MethodNetwork would do.
func (a *Agent) createNetwork(r *api.CreateRequest) error {
	if r.Network == nil {
		return nil
	}
	return a.setNetwork(r.Network)
}

// parseNetwork checks all of a request's interfaces before any is touched.
func parseNetwork(list []api.Interface) (map[int]*wantedNetwork, error) {
	wanted, names := map[int]*wantedNetwork{}, map[string]bool{}
	for _, i := range list {
		if i.Slot < 0 || i.Slot >= api.MaxSlots || wanted[i.Slot] != nil {
			return nil, api.Errorf(api.CodeInvalid, "interface slot %d", i.Slot)
		}
		if !interfaceName(i.Name) || names[i.Name] {
			return nil, api.Errorf(api.CodeInvalid, "interface name %.40q", i.Name)
		}
		w, err := parseInterface(i)
		if err != nil {
			return nil, api.Errorf(api.CodeInvalid, "interface %s: %w", i.Name, err)
		}
		wanted[i.Slot], names[i.Name] = w, true
	}
	return wanted, nil
}

func parseInterface(i api.Interface) (*wantedNetwork, error) {
	w := &wantedNetwork{Interface: i}
	if i.MTU != 0 && (i.MTU < 68 || i.MTU > 65535) {
		return nil, fmt.Errorf("MTU %d", i.MTU)
	}
	if len(i.Addresses) > maxAddresses || len(i.Routes) > maxRoutes || len(i.Neighbours) > maxNeighbours || len(i.Sysctls) > maxSysctls {
		return nil, errors.New("too many addresses, routes, neighbours or sysctls")
	}
	w.mac = api.SlotMAC(i.Slot)
	if i.MAC != "" {
		mac, err := parseMAC(i.MAC)
		if err != nil {
			return nil, err
		}
		w.mac = mac
	}
	for _, s := range i.Addresses {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return nil, err
		}
		w.addresses = append(w.addresses, p)
	}
	for _, r := range i.Routes {
		to, err := netip.ParsePrefix(r.Destination)
		if err != nil {
			return nil, err
		}
		if r.MTU != 0 && (r.MTU < 68 || r.MTU > 65535) {
			return nil, fmt.Errorf("MTU %d of the route to %s", r.MTU, to)
		}
		one := wantedRoute{to: to.Masked(), metric: r.Metric, mtu: r.MTU}
		if r.Gateway != "" {
			if one.gateway, err = netip.ParseAddr(r.Gateway); err != nil {
				return nil, err
			}
			if one.gateway.Is4() != to.Addr().Is4() {
				return nil, fmt.Errorf("route to %s through %s", to, one.gateway)
			}
		}
		w.routes = append(w.routes, one)
	}
	for _, n := range i.Neighbours {
		mac, err := parseMAC(n.MAC)
		if err != nil {
			return nil, err
		}
		one := wantedNeighbour{mac: [6]byte(mac)}
		if one.address, err = netip.ParseAddr(n.Address); err != nil {
			return nil, err
		}
		w.neighbours = append(w.neighbours, one)
	}
	for _, s := range i.Sysctls {
		if s.Family != "ipv4" && s.Family != "ipv6" || !sysctlWord(s.Key) {
			return nil, fmt.Errorf("sysctl %.20q %.40q", s.Family, s.Key)
		}
	}
	return w, nil
}

// parseMAC parses the hardware address of one Ethernet host.
func parseMAC(s string) (net.HardwareAddr, error) {
	mac, err := net.ParseMAC(s)
	if err != nil || len(mac) != 6 || mac[0]&1 != 0 {
		return nil, fmt.Errorf("hardware address %.40q", s)
	}
	return mac, nil
}

func interfaceName(s string) bool {
	return s != "" && len(s) < unix.IFNAMSIZ && s != "." && s != ".." && s != "lo" && s != "all" && s != "default" &&
		!strings.ContainsAny(s, "/: \t\n\x00%")
}

func sysctlWord(s string) bool {
	for _, c := range s {
		if c != '_' && (c < 'a' || c > 'z') && (c < '0' || c > '9') {
			return false
		}
	}
	return s != ""
}

// apply makes the interfaces so. Those that are so already are not touched.
func (n *network) apply(wanted map[int]*wantedNetwork) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.park(); err != nil {
		return err
	}
	for slot, w := range wanted {
		if !n.slots[slot] {
			return api.Errorf(api.CodeInvalid, "interface %s: the machine has no network interface in slot %d", w.Name, slot)
		}
	}
	nl, err := openNetlink()
	if err != nil {
		return err
	}
	defer nl.close()
	// First all go that are not to be, or are to have other names: names come free. So do those that have to forget a sysctl,
	// which parking sets back.
	for slot, now := range n.now {
		if w := wanted[slot]; w != nil && w.Name == now.Name && now.sysctlsIn(w) {
			continue
		}
		if err := n.parking.put(nl, now.Name, slot); err != nil {
			return fmt.Errorf("park interface %s: %w", now.Name, err)
		}
		delete(n.now, slot)
	}
	for slot, w := range wanted {
		now := n.now[slot]
		if now != nil && reflect.DeepEqual(now.Interface, w.Interface) {
			continue
		}
		if err := n.set(nl, w, now); err != nil {
			return api.Errorf(api.CodeInternal, "interface %s: %w", w.Name, err)
		}
		n.now[slot] = w
	}
	return nil
}

// park finds the interfaces that the monitor has made and parks them, once.
func (n *network) park() error {
	if n.parking != nil {
		return nil
	}
	p, err := newParking()
	if err != nil {
		return err
	}
	found, err := findSlots()
	if err != nil {
		return err
	}
	nl, err := openNetlink()
	if err != nil {
		return err
	}
	defer nl.close()
	slots := map[int]bool{}
	for slot, name := range found {
		if err := p.put(nl, name, slot); err != nil {
			return fmt.Errorf("park interface %s: %w", name, err)
		}
		slots[slot] = true
	}
	n.parking, n.slots, n.now = p, slots, map[int]*wantedNetwork{}
	return nil
}

// set configures an interface that is parked (now is nil) or has been configured as now, whose name it keeps.
func (n *network) set(nl *rtnetlink, w, now *wantedNetwork) error {
	attributes := attribute(nil, unix.IFLA_ADDRESS, w.mac)
	if w.MTU != 0 {
		attributes = attribute32(attributes, unix.IFLA_MTU, uint32(w.MTU))
	}
	if now == nil {
		if err := n.parking.take(w.Slot, w.Name, attributes); err != nil {
			return err
		}
		n.now[w.Slot] = &wantedNetwork{Interface: api.Interface{Slot: w.Slot, Name: w.Name}} // should the rest fail
	}
	index, err := interfaceIndex(nl.fd, w.Name)
	if err != nil {
		return err
	}
	if now != nil {
		n.now[w.Slot] = &wantedNetwork{Interface: api.Interface{Slot: w.Slot, Name: w.Name}}
		if err := nl.link(index, true, attributes); err != nil {
			return err
		}
		if err := now.forget(nl, index, w); err != nil {
			return err
		}
	}
	for _, s := range w.Sysctls {
		if now != nil && slices.Contains(now.Sysctls, s) {
			continue
		}
		file := path.Join("/proc/sys/net", s.Family, "conf", w.Name, s.Key)
		if err := os.WriteFile(file, []byte(s.Value), 0); err != nil {
			return err
		}
	}
	if now == nil { // after its sysctls: what IPv6 does when an interface comes up is one of them
		if err := nl.link(index, true, nil); err != nil {
			return fmt.Errorf("bring up: %w", err)
		}
	}
	for _, p := range w.addresses {
		if err := nl.address(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, index, p); err != nil {
			return fmt.Errorf("address %s: %w", p, err)
		}
	}
	for _, b := range w.neighbours {
		if err := nl.neighbour(unix.RTM_NEWNEIGH, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, index, b); err != nil {
			return fmt.Errorf("neighbour %s: %w", b.address, err)
		}
	}
	for _, r := range w.routes {
		if err := nl.route(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, index, r); err != nil {
			return fmt.Errorf("route to %s: %w", r.to, err)
		}
	}
	return nil
}

// sysctlsIn tells whether w says something about each of now's sysctls.
func (now *wantedNetwork) sysctlsIn(w *wantedNetwork) bool {
	for _, s := range now.Sysctls {
		same := func(other api.Sysctl) bool { return other.Family == s.Family && other.Key == s.Key }
		if !slices.ContainsFunc(w.Sysctls, same) {
			return false
		}
	}
	return true
}

// forget removes the routes, neighbours and addresses that w does not have.
func (now *wantedNetwork) forget(nl *rtnetlink, index int, w *wantedNetwork) error {
	gone := func(err error) bool {
		return err == nil || err == unix.ESRCH || err == unix.EADDRNOTAVAIL || err == unix.ENOENT
	}
	for _, r := range now.routes {
		if !slices.Contains(w.routes, r) {
			if err := nl.route(unix.RTM_DELROUTE, 0, index, r); !gone(err) {
				return fmt.Errorf("remove route to %s: %w", r.to, err)
			}
		}
	}
	for _, b := range now.neighbours {
		if !slices.Contains(w.neighbours, b) {
			if err := nl.neighbour(unix.RTM_DELNEIGH, 0, index, b); !gone(err) {
				return fmt.Errorf("remove neighbour %s: %w", b.address, err)
			}
		}
	}
	for _, p := range now.addresses {
		if !slices.Contains(w.addresses, p) {
			if err := nl.address(unix.RTM_DELADDR, 0, index, p); !gone(err) {
				return fmt.Errorf("remove address %s: %w", p, err)
			}
		}
	}
	return nil
}

func family(a netip.Addr) byte {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// address adds or removes an address. There is no duplicate to detect: the host gives each to one guest.
func (n *rtnetlink) address(kind, flags uint16, index int, p netip.Prefix) error {
	body := []byte{family(p.Addr()), byte(p.Bits()), unix.IFA_F_NODAD, unix.RT_SCOPE_UNIVERSE}
	body = binary.NativeEndian.AppendUint32(body, uint32(index))
	body = attribute(body, unix.IFA_LOCAL, p.Addr().AsSlice())
	body = attribute(body, unix.IFA_ADDRESS, p.Addr().AsSlice())
	if p.Addr().Is4() && p.Bits() < 31 {
		broadcast := p.Addr().As4()
		for i := p.Bits(); i < 32; i++ {
			broadcast[i/8] |= 0x80 >> (i % 8)
		}
		body = attribute(body, unix.IFA_BROADCAST, broadcast[:])
	}
	return n.do(kind, flags, body)
}

// route adds or removes a route. The gateway need not be in a subnet of the interface.
func (n *rtnetlink) route(kind, flags uint16, index int, r wantedRoute) error {
	scope, onlink := byte(unix.RT_SCOPE_LINK), uint32(0)
	if r.gateway.IsValid() {
		scope, onlink = unix.RT_SCOPE_UNIVERSE, unix.RTNH_F_ONLINK
	}
	if !r.to.Addr().Is4() {
		scope = unix.RT_SCOPE_UNIVERSE
	}
	body := []byte{family(r.to.Addr()), byte(r.to.Bits()), 0, 0, unix.RT_TABLE_MAIN, unix.RTPROT_STATIC, scope, unix.RTN_UNICAST}
	body = binary.NativeEndian.AppendUint32(body, onlink)
	body = attribute(body, unix.RTA_DST, r.to.Addr().AsSlice())
	body = attribute32(body, unix.RTA_OIF, uint32(index))
	if r.gateway.IsValid() {
		body = attribute(body, unix.RTA_GATEWAY, r.gateway.AsSlice())
	}
	if r.metric != 0 {
		body = attribute32(body, unix.RTA_PRIORITY, uint32(r.metric))
	}
	if r.mtu != 0 {
		body = attribute(body, unix.RTA_METRICS, attribute32(nil, unix.RTAX_MTU, uint32(r.mtu)))
	}
	return n.do(kind, flags, body)
}

// neighbour adds or removes a permanent entry of the neighbour table.
func (n *rtnetlink) neighbour(kind, flags uint16, index int, b wantedNeighbour) error {
	body := []byte{family(b.address), 0, 0, 0} // struct ndmsg, linux/neighbour.h
	body = binary.NativeEndian.AppendUint32(body, uint32(index))
	body = binary.NativeEndian.AppendUint16(body, unix.NUD_PERMANENT)
	body = append(body, 0, unix.RTN_UNICAST)
	body = attribute(body, unix.NDA_DST, b.address.AsSlice())
	body = attribute(body, unix.NDA_LLADDR, b.mac[:])
	return n.do(kind, flags, body)
}

// findSlots finds the interfaces that the monitor has made, by their first hardware addresses: slot → name.
func findSlots() (map[int]string, error) {
	const dir = "/sys/class/net"
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	found := map[int]string{}
	for _, e := range entries {
		address, err := readSmall(path.Join(dir, e.Name(), "address"), 64)
		if err != nil {
			continue
		}
		for slot := range api.MaxSlots {
			if strings.TrimSpace(string(address)) == api.SlotMAC(slot).String() {
				found[slot] = e.Name()
			}
		}
	}
	return found, nil
}
