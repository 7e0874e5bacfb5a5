package pod

import (
	"cmp"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/cradlevm/cradle/api"
	"github.com/cradlevm/cradle/network/bpf"
	"github.com/cradlevm/cradle/network/dump"
)

// found is an interface of the namespace that a guest is to have.
type found struct {
	link  netlink.Link
	guest api.Interface
	may   bpf.Endpoint
}

// bad is an interface that cannot be a guest's.
func bad(name, format string, args ...any) error {
	return fmt.Errorf("%w: interface %s: %s", ErrUnsupported, name, fmt.Sprintf(format, args...))
}

// describe looks at the namespace's interfaces, in the order of their making.
func describe() ([]found, error) {
	links, err := dump.Whole(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	slices.SortFunc(links, func(a, b netlink.Link) int { return cmp.Compare(a.Attrs().Index, b.Attrs().Index) })
	var all []found
	for _, l := range links {
		a := l.Attrs()
		if isTAP(l) || a.Flags&net.FlagLoopback != 0 || a.Flags&net.FlagUp == 0 {
			continue // those that are down are what the kernel puts into each namespace (tunl0, sit0)
		}
		f, err := describeOne(l, len(all))
		if err != nil {
			return nil, err
		}
		all = append(all, f)
	}
	switch {
	case len(all) == 0:
		return nil, fmt.Errorf("%w: no interface is up", ErrUnsupported)
	case len(all) > api.MaxSlots:
		return nil, fmt.Errorf("%w: it has %d interfaces, a virtual machine has at most %d", ErrUnsupported, len(all), api.MaxSlots)
	}
	return all, nil
}

func describeOne(l netlink.Link, slot int) (found, error) {
	a := l.Attrs()
	if a.EncapType != "ether" || len(a.HardwareAddr) != 6 || a.RawFlags&unix.IFF_NOARP != 0 {
		return found{}, bad(a.Name, "a %s without Ethernet addresses", l.Type())
	}
	if a.MasterIndex != 0 {
		return found{}, bad(a.Name, "it is a part of another interface")
	}
	f := found{link: l, may: bpf.Endpoint{MAC: a.HardwareAddr, Metadata: true}, guest: api.Interface{
		Slot: slot, Name: a.Name, MAC: a.HardwareAddr.String(), MTU: a.MTU,
		Sysctls: []api.Sysctl{{Family: "ipv6", Key: "accept_ra", Value: "0"}},
	}}
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		routes, err := routesOf(a, family)
		if err != nil {
			return found{}, err
		}
		connected, err := f.addAddress(family, routes)
		if err != nil {
			return found{}, err
		}
		if err := f.addRoutes(routes, connected); err != nil {
			return found{}, err
		}
		if err := f.addNeighbours(family); err != nil {
			return found{}, err
		}
	}
	if len(f.guest.Addresses) == 0 {
		return found{}, bad(a.Name, "it is up and has no address")
	}
	if !f.may.IPv6.IsValid() {
		f.guest.Sysctls = append(f.guest.Sysctls, api.Sysctl{Family: "ipv6", Key: "disable_ipv6", Value: "1"})
	}
	return f, nil
}

// addAddress takes over the interface's address of one family, and returns the subnet that the kernel has made a route to for it, if
// it has: where there is none, as behind point-to-point plugins, the guest's kernel must not make it either.
func (f *found) addAddress(family int, routes []netlink.Route) (connected netip.Prefix, err error) {
	a := f.link.Attrs()
	list, err := dump.Whole(func() ([]netlink.Addr, error) { return netlink.AddrList(f.link, family) })
	if err != nil {
		return connected, fmt.Errorf("list addresses of %s: %w", a.Name, err)
	}
	to := &f.may.IPv4
	if family == unix.AF_INET6 {
		to = &f.may.IPv6
	}
	for _, one := range list {
		p := prefix(one.IPNet)
		if p.Addr().IsLinkLocalUnicast() && family == unix.AF_INET6 {
			if p.Addr() != bpf.LinkLocal(a.HardwareAddr) {
				return connected, bad(a.Name, "its link-local address %s does not follow from its hardware address %s", p.Addr(), a.HardwareAddr)
			}
			continue // the guest's kernel makes it
		}
		switch {
		case to.IsValid():
			return connected, bad(a.Name, "it has more than one address of a family: %s and %s", *to, p.Addr())
		case one.Peer != nil && prefix(one.Peer) != p:
			return connected, bad(a.Name, "its address %s has a peer", p)
		case one.Flags&unix.IFA_F_DADFAILED != 0:
			return connected, bad(a.Name, "its address %s is somebody else's too", p.Addr())
		}
		*to = p.Addr()
		if p.Bits() < p.Addr().BitLen() && slices.ContainsFunc(routes, func(r netlink.Route) bool { return connects(r, p) }) {
			connected = p.Masked()
		} else {
			p = netip.PrefixFrom(p.Addr(), p.Addr().BitLen())
		}
		f.guest.Addresses = append(f.guest.Addresses, p.String())
	}
	return connected, nil
}

// connects tells whether a route is what the kernel makes for the subnet of an address.
func connects(r netlink.Route, p netip.Prefix) bool {
	return r.Protocol == unix.RTPROT_KERNEL && r.Gw == nil && r.Dst != nil && prefix(r.Dst) == p.Masked()
}

// routesOf are the routes through an interface that somebody has made, and those to its subnets.
func routesOf(a *netlink.LinkAttrs, family int) ([]netlink.Route, error) {
	all, err := dump.Whole(func() ([]netlink.Route, error) {
		return netlink.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return nil, fmt.Errorf("list routes of %s: %w", a.Name, err)
	}
	var own []netlink.Route
	for _, r := range all {
		several := slices.ContainsFunc(r.MultiPath, func(n *netlink.NexthopInfo) bool { return n.LinkIndex == a.Index })
		switch {
		case r.Table == unix.RT_TABLE_LOCAL, r.LinkIndex != a.Index && !several, r.Type != unix.RTN_UNICAST:
		case several:
			return nil, bad(a.Name, "the route to %s has more than one way", destination(r))
		case r.Table != unix.RT_TABLE_MAIN:
			return nil, bad(a.Name, "the route to %s is in table %d; a guest gets the main table only", destination(r), r.Table)
		case r.Via != nil, r.Encap != nil, r.MPLSDst != nil:
			return nil, bad(a.Name, "the route to %s has a gateway of another family, or an encapsulation", destination(r))
		default:
			own = append(own, r)
		}
	}
	return own, nil
}

// addRoutes takes over routes, but for those that the guest's kernel makes itself.
func (f *found) addRoutes(routes []netlink.Route, connected netip.Prefix) error {
	for _, r := range routes {
		to := destination(r)
		if to.Addr().Is6() && (to.Addr().IsLinkLocalUnicast() || to.Addr().IsMulticast()) && r.Gw == nil {
			continue
		}
		if r.Protocol == unix.RTPROT_KERNEL && r.Gw == nil && (to == connected || to.IsSingleIP()) {
			continue
		}
		one := api.Route{Destination: to.String(), Metric: r.Priority, MTU: r.MTU}
		if r.Gw != nil {
			gateway, _ := netip.AddrFromSlice(r.Gw)
			one.Gateway = gateway.Unmap().String()
		}
		f.guest.Routes = append(f.guest.Routes, one)
	}
	return nil
}

// addNeighbours takes over the neighbours that do not answer for themselves.
func (f *found) addNeighbours(family int) error {
	list, err := dump.Whole(func() ([]netlink.Neigh, error) { return netlink.NeighList(f.link.Attrs().Index, family) })
	if err != nil {
		return fmt.Errorf("list neighbours of %s: %w", f.guest.Name, err)
	}
	for _, n := range list {
		if n.State&netlink.NUD_PERMANENT == 0 || n.Flags != 0 || len(n.HardwareAddr) != 6 {
			continue
		}
		if address, ok := netip.AddrFromSlice(n.IP); ok {
			f.guest.Neighbours = append(f.guest.Neighbours, api.Neighbour{Address: address.Unmap().String(), MAC: n.HardwareAddr.String()})
		}
	}
	return nil
}

// destination of a route; the default route has the zero prefix of its family.
func destination(r netlink.Route) netip.Prefix {
	if r.Dst != nil {
		return prefix(r.Dst)
	}
	if r.Family == unix.AF_INET6 {
		return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
}

func prefix(n *net.IPNet) netip.Prefix {
	a, _ := netip.AddrFromSlice(n.IP)
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(a.Unmap(), bits)
}
