package user

import (
	"net"
	"net/netip"
)

// reach says where the host is to connect to for a guest that wants to; false when it may not.
func (p *Port) reach(to netip.AddrPort) (netip.AddrPort, bool) {
	a := to.Addr()
	if a == p.n.o.Gateway { // stands for the host
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), to.Port()), p.guest.Host
	}
	switch {
	case p.n.o.Internal:
		return to, false
	case nowhere(a):
		return to, false
	case ownAddress(a):
		return to, p.guest.Host
	}
	return to, true
}

// nowhere tells whether no guest may go to an address: loopback, link-local (where clouds have their metadata services),
// multicast, broadcast, and those that mean nobody.
func nowhere(a netip.Addr) bool {
	return !a.IsGlobalUnicast() || a.As4()[0] == 0 || a.As4()[0] >= 240
}

// ownAddress tells whether an address is the host's. When that cannot be found out, it is.
func ownAddress(a netip.Addr) bool {
	all, err := net.InterfaceAddrs()
	if err != nil {
		return true
	}
	for _, one := range all {
		if n, ok := one.(*net.IPNet); ok {
			if b, ok := netip.AddrFromSlice(n.IP); ok && b.Unmap() == a {
				return true
			}
		}
	}
	return false
}
