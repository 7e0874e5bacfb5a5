package network

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/cradlevm/cradle/network/bpf"
	"github.com/cradlevm/cradle/network/dump"
)

// links makes and finds the host's interfaces that are ours: TAPs by the beginning of their names, bridges by the alias they
// carry, which names the state directory they belong to.
type links struct {
	tapPrefix string // "ct", four digits of the state directory's hash, "-"
	alias     string
	guards    *bpf.Guards
	// making is held while a TAP is made. The kernel does that for one at a time, and has who writes its settings (disable_ipv6) try
	// until it is his turn.
	making sync.Mutex
}

// makeTAP makes a TAP with a guard on it. Down, without a bridge and without an endpoint, it passes nothing.
func (l *links) makeTAP() (string, error) {
	l.making.Lock()
	defer l.making.Unlock()
	var random [4]byte
	rand.Read(random[:])
	name := l.tapPrefix + hex.EncodeToString(random[:])
	if err := persistTAP(name); err != nil {
		return "", fmt.Errorf("make TAP: %w", err)
	}
	err := l.prepareTAP(name)
	if err != nil {
		return "", errors.Join(fmt.Errorf("make TAP: %w", err), l.removeTAP(name))
	}
	return name, nil
}

// persistTAP makes a TAP, as monitors attach to it, that stays when its descriptor goes. EBUSY when there is one.
func persistTAP(name string) error {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: "/dev/net/tun", Err: err}
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR | unix.IFF_TUN_EXCL)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
		return os.NewSyscallError("TUNSETIFF", err)
	}
	if err := unix.IoctlSetInt(fd, unix.TUNSETOWNER, 0); err != nil { // without an owner, anybody may attach to it
		return os.NewSyscallError("TUNSETOWNER", err)
	}
	return os.NewSyscallError("TUNSETPERSIST", unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 1))
}

func (l *links) prepareTAP(name string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	if err := l.guards.Forget(link.Attrs().Index); err != nil { // so that Attach need not look for policies
		return err
	}
	if err := l.guards.Guard(link.Attrs().Index); err != nil {
		return err
	}
	return noIPv6(name) // the host has nothing to say on a TAP itself
}

// removeTAP removes a TAP and all that its guards know of it. Idempotent.
func (l *links) removeTAP(name string) error {
	link, err := netlink.LinkByName(name)
	if notFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove TAP %s: %w", name, err)
	}
	if err := netlink.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove TAP %s: %w", name, err)
	}
	return l.guards.Forget(link.Attrs().Index)
}

// taps are our TAPs, by name.
func (l *links) taps() (map[string]netlink.Link, error) {
	all, err := dump.Whole(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	taps := map[string]netlink.Link{}
	for _, link := range all {
		if strings.HasPrefix(link.Attrs().Name, l.tapPrefix) && link.Type() == "tuntap" {
			taps[link.Attrs().Name] = link
		}
	}
	return taps, nil
}

// bridges are our bridges, by name.
func (l *links) bridges() (map[string]netlink.Link, error) {
	all, err := dump.Whole(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	bridges := map[string]netlink.Link{}
	for _, link := range all {
		if link.Attrs().Alias == l.alias && link.Type() == "bridge" {
			bridges[link.Attrs().Name] = link
		}
	}
	return bridges, nil
}

// hasBridge tells whether a network's bridge is there; somebody else's of that name is none.
func (l *links) hasBridge(n *Network) bool {
	link, err := netlink.LinkByName(n.Bridge)
	return err == nil && link.Attrs().Alias == l.alias
}

// ensureBridge makes a network's bridge as it has to be, from whatever is there of it. ErrExists when somebody else has an
// interface of that name.
func (l *links) ensureBridge(n *Network) error {
	if err := l.bridge(n); err != nil {
		return fmt.Errorf("make bridge %s: %w", n.Bridge, err)
	}
	return nil
}

func (l *links) bridge(n *Network) error {
	link, err := netlink.LinkByName(n.Bridge)
	if notFound(err) {
		link, err = l.newBridge(n)
	}
	if err != nil {
		return err
	}
	if link.Attrs().Alias != l.alias || link.Type() != "bridge" {
		return fail(ErrExists, "interface %s is there and belongs to somebody else", n.Bridge)
	}
	if link.Attrs().MTU != n.MTU {
		if err := netlink.LinkSetMTU(link, n.MTU); err != nil {
			return fmt.Errorf("set MTU: %w", err)
		}
	}
	if n.IPv6 {
		err = errors.Join(sysctl("ipv6", n.Bridge, "disable_ipv6", "0"), sysctl("ipv6", n.Bridge, "accept_ra", "0"),
			sysctl("ipv6", n.Bridge, "accept_dad", "0"))
	} else {
		err = noIPv6(n.Bridge)
	}
	if err != nil {
		return err
	}
	for _, s := range n.Subnets {
		a := &netlink.Addr{IPNet: &net.IPNet{IP: s.Gateway.AsSlice(), Mask: net.CIDRMask(s.Prefix.Bits(), s.Prefix.Addr().BitLen())}}
		if s.Gateway.Is6() {
			a.Flags = unix.IFA_F_NODAD
		} else {
			a.Broadcast = last(s.Prefix).AsSlice()
		}
		if err := netlink.AddrReplace(link, a); err != nil {
			return fmt.Errorf("add address %s: %w", s.Gateway, err)
		}
	}
	return netlink.LinkSetUp(link)
}

// newBridge makes a bridge that learns nothing from multicast reports; its address is its own and not a port's.
func (l *links) newBridge(n *Network) (netlink.Link, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = n.Bridge, n.MTU
	mac := hardwareAddr(n.gateway(true))
	attrs.HardwareAddr = mac[:]
	snooping := false
	b := &netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &snooping}
	if err := netlink.LinkAdd(b); err != nil {
		return nil, err
	}
	err := netlink.LinkSetAlias(b, l.alias)
	if err == nil {
		var link netlink.Link
		if link, err = netlink.LinkByName(n.Bridge); err == nil {
			return link, nil
		}
	}
	return nil, errors.Join(err, netlink.LinkDel(b))
}

// removeBridge is idempotent, and leaves others' alone.
func (l *links) removeBridge(name string) error {
	link, err := netlink.LinkByName(name)
	if notFound(err) || (err == nil && link.Attrs().Alias != l.alias) {
		return nil
	}
	if err == nil {
		err = netlink.LinkDel(link)
	}
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove bridge %s: %w", name, err)
	}
	return nil
}

// connect puts an endpoint's TAP on its network's bridge. What the guest may be is in force before the TAP is up. The bridge
// does not learn where addresses are: it is told, so that no guest can claim another's, and frames for nobody reach nobody.
func (l *links) connect(n *Network, e *Endpoint) error {
	tap, err := netlink.LinkByName(e.TAP)
	if err != nil {
		return fmt.Errorf("find TAP %s: %w", e.TAP, err)
	}
	bridge, err := netlink.LinkByName(n.Bridge)
	if err != nil {
		return fmt.Errorf("find bridge %s: %w", n.Bridge, err)
	}
	if bridge.Attrs().Alias != l.alias {
		return fail(ErrExists, "interface %s is there and belongs to somebody else", n.Bridge)
	}
	index := tap.Attrs().Index
	mac, err := net.ParseMAC(e.MAC)
	if err != nil {
		return err
	}
	if err := l.assign(n, e, index); err != nil {
		return err
	}
	if tap.Attrs().MTU != n.MTU {
		if err := netlink.LinkSetMTU(tap, n.MTU); err != nil {
			return fmt.Errorf("set MTU of %s: %w", e.TAP, err)
		}
	}
	if tap.Attrs().MasterIndex != bridge.Attrs().Index {
		if err := netlink.LinkSetMasterByIndex(tap, bridge.Attrs().Index); err != nil {
			return fmt.Errorf("put %s on %s: %w", e.TAP, n.Bridge, err)
		}
	}
	for _, set := range []func() error{
		func() error { return netlink.LinkSetLearning(tap, false) },
		func() error { return netlink.LinkSetFlood(tap, false) },
		// With br_netfilter a guest that asks for a port of its own is answered within the bridge. What it sends to all does
		// not come back to it: its guard sees to that.
		func() error { return netlink.LinkSetHairpin(tap, true) },
		func() error { return netlink.LinkSetIsolated(tap, n.Isolated()) },
		func() error {
			return netlink.NeighSet(&netlink.Neigh{LinkIndex: index, Family: unix.AF_BRIDGE, State: unix.NUD_NOARP,
				Flags: unix.NTF_MASTER, HardwareAddr: mac})
		},
		func() error { return netlink.LinkSetUp(tap) },
	} {
		if err := set(); err != nil {
			return fmt.Errorf("set %s up on %s: %w", e.TAP, n.Bridge, err)
		}
	}
	return introduce(bridge.Attrs().Index, e, mac)
}

// introduce tells the host whose an endpoint's addresses are, as it would find out by asking. It may have asked for them in vain, since who had them
// before has gone with connections open: then it asks but once in a second, and what is sent to the new one waits for that.
func introduce(bridge int, e *Endpoint, mac net.HardwareAddr) error {
	for _, p := range []netip.Prefix{e.IPv4, e.IPv6} {
		if !p.IsValid() {
			continue
		}
		if err := netlink.NeighSet(&netlink.Neigh{LinkIndex: bridge, IP: p.Addr().AsSlice(), State: unix.NUD_REACHABLE, HardwareAddr: mac}); err != nil {
			return fmt.Errorf("tell the host whose %s is: %w", p.Addr(), err)
		}
	}
	return nil
}

// assign tells the guard of a TAP who its guest is.
func (l *links) assign(n *Network, e *Endpoint, index int) error {
	g, err := e.guarded(n)
	if err != nil {
		return err
	}
	if err := l.guards.SetPolicy(index, e.Policy.egress(n.gateways())); err != nil {
		return err
	}
	return l.guards.Assign(index, g)
}

// connected tells whether a TAP is where connect puts it; bridge may be nil.
func connected(n *Network, tap, bridge netlink.Link) bool {
	a := tap.Attrs()
	return bridge != nil && a.MasterIndex == bridge.Attrs().Index && a.Flags&net.FlagUp != 0 && a.MTU == n.MTU
}

// disconnect takes a TAP from its bridge; it passes nothing from then on. Idempotent, also when the TAP is gone.
func (l *links) disconnect(name string) error {
	tap, err := netlink.LinkByName(name)
	if notFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("find TAP %s: %w", name, err)
	}
	errs := []error{l.guards.Unassign(tap.Attrs().Index), netlink.LinkSetDown(tap), netlink.LinkSetNoMaster(tap)}
	if err := errors.Join(errs...); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("take %s from its bridge: %w", name, err)
	}
	return nil
}

// hostPrefixes are all destinations that the host has a way to, but for the default route: what new subnets must not cover.
func hostPrefixes() ([]netip.Prefix, error) {
	var all []netip.Prefix
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		routes, err := dump.Whole(func() ([]netlink.Route, error) {
			return netlink.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
		})
		if err != nil {
			if family == unix.AF_INET6 {
				continue // IPv6 is off
			}
			return nil, fmt.Errorf("list routes: %w", err)
		}
		for _, r := range routes {
			if p, ok := prefixOf(r.Dst); ok {
				all = append(all, p)
			}
		}
	}
	return all, nil
}

// inTheWay tells which interface of the host's keeps a network's bridge from being made again: one with addresses of its
// subnets, or with a way to a part of them that would be stronger than the bridge's. ErrOverlap.
func inTheWay(n *Network) error {
	var taken []claimant
	addresses, err := dump.Whole(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range addresses {
		if p, ok := prefixOf(a.IPNet); ok && !p.Addr().IsLinkLocalUnicast() {
			taken = append(taken, claimant{p, a.LinkIndex, "address " + p.String()})
		}
	}
	routes, err := dump.Whole(func() ([]netlink.Route, error) { return netlink.RouteList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return fmt.Errorf("list routes: %w", err)
	}
	for _, r := range routes {
		p, ok := prefixOf(r.Dst)
		for _, s := range n.Subnets {
			if ok && p.Bits() >= s.Prefix.Bits() && s.Prefix.Contains(p.Addr()) {
				taken = append(taken, claimant{p, r.LinkIndex, "route to " + p.String()})
			}
		}
	}
	for _, t := range taken {
		for _, s := range n.Subnets {
			if !t.prefix.Overlaps(s.Prefix) {
				continue
			}
			name := "that is gone"
			if link, err := netlink.LinkByIndex(t.index); err == nil {
				name = link.Attrs().Name
			}
			return fail(ErrOverlap, "network %s cannot be used: its subnet %s overlaps with the %s of the host's interface %s; "+
				"take that away, or remove the network", n.Name, s.Prefix, t.what, name)
		}
	}
	return nil
}

// claimant is an interface that has to do with a prefix.
type claimant struct {
	prefix netip.Prefix
	index  int
	what   string
}

// prefixOf is false for none, and for that of a default route.
func prefixOf(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	a, ok := netip.AddrFromSlice(n.IP)
	ones, _ := n.Mask.Size()
	return netip.PrefixFrom(a.Unmap(), ones), ok && ones > 0
}

// hostMTU is the smallest MTU of the interfaces that default routes lead through; 1500 when there is none.
func hostMTU() int {
	mtu := 1500
	routes, err := dump.Whole(func() ([]netlink.Route, error) { return netlink.RouteList(nil, unix.AF_INET) })
	if err != nil {
		return mtu
	}
	for _, r := range routes {
		if r.Dst != nil && !r.Dst.IP.IsUnspecified() {
			continue
		}
		if link, err := netlink.LinkByIndex(r.LinkIndex); err == nil && link.Attrs().MTU >= 1280 {
			mtu = min(mtu, link.Attrs().MTU)
		}
	}
	return mtu
}

func notFound(err error) bool {
	var missing netlink.LinkNotFoundError
	return errors.As(err, &missing)
}

// linkExists tells whether there is an interface of that name; in doubt, yes.
func linkExists(name string) bool {
	_, err := netlink.LinkByName(name)
	return !notFound(err)
}

// noIPv6 keeps the host from speaking IPv6 on an interface. A host without IPv6 does not.
func noIPv6(name string) error { return sysctl("ipv6", name, "disable_ipv6", "1") }

func sysctl(family, name, key, value string) error {
	path := "/proc/sys/net/" + family + "/conf/" + name + "/" + key
	if b, err := os.ReadFile(path); err == nil && strings.TrimSpace(string(b)) == value {
		return nil
	}
	err := os.WriteFile(path, []byte(value), 0o644)
	if errors.Is(err, fs.ErrNotExist) && value != "0" {
		return nil
	}
	return err
}

// forward lets the host pass packets on. IPv6 routers stop listening to router advertisements, which may be how the host
// has its own way out: interfaces that listen go on to.
func forward(v6 bool) error {
	if err := sysctl("ipv4", "..", "ip_forward", "1"); err != nil {
		return fmt.Errorf("switch forwarding on: %w", err)
	}
	if !v6 {
		return nil
	}
	if b, err := os.ReadFile("/proc/sys/net/ipv6/conf/all/forwarding"); err != nil || strings.TrimSpace(string(b)) == "1" {
		return err
	}
	all, err := dump.Whole(netlink.LinkList)
	if err != nil {
		return fmt.Errorf("list interfaces: %w", err)
	}
	for _, link := range all {
		path := "/proc/sys/net/ipv6/conf/" + link.Attrs().Name + "/accept_ra"
		if b, err := os.ReadFile(path); err == nil && strings.TrimSpace(string(b)) == "1" {
			if err := os.WriteFile(path, []byte("2"), 0o644); err != nil {
				return fmt.Errorf("keep router advertisements: %w", err)
			}
		}
	}
	if err := sysctl("ipv6", "all", "forwarding", "1"); err != nil {
		return fmt.Errorf("switch IPv6 forwarding on: %w", err)
	}
	return nil
}

// hasIPv6 tells whether the host speaks IPv6 at all.
func hasIPv6() bool {
	b, err := os.ReadFile("/proc/sys/net/ipv6/conf/all/disable_ipv6")
	return err == nil && strings.TrimSpace(string(b)) == "0"
}
