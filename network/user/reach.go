package user

import (
	"net"
	"net/netip"
	"slices"
)

// reach says where the host is to connect to for a guest that wants to, for "tcp" or "udp"; false when it may not.
func (p *Port) reach(protocol string, to netip.AddrPort) (netip.AddrPort, bool) {
	switch a := to.Addr(); {
	case a == p.n.o.Gateway: // stands for the host
		host, ok := hostAddr()
		if !ok {
			return to, false
		}
		serves := p.serves(protocol, to.Port())
		to = netip.AddrPortFrom(host, to.Port())
		if serves || p.n.o.Internal {
			return to, serves
		}
	case p.n.o.Internal:
		return to, false
	case nowhere(a):
		return to, false
	case !ownAddress(a):
		return to, true
	}
	return to, p.guest.Host || p.n.o.Published != nil && p.n.o.Published(protocol, to)
}

// serves tells whether the guest's policy opens a service of the host's.
func (p *Port) serves(protocol string, port uint16) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Contains(p.services, Service{protocol, port}) || slices.Contains(p.services, Service{protocol, 0})
}

// hostAddr is the address that the host has towards the world, at which services answer that listen at all of its addresses.
func hostAddr() (netip.Addr, bool) {
	// Connecting a UDP socket sends nothing: the kernel only looks up the way. 192.0.2.0/24 is nobody's (RFC 5737).
	c, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(netip.MustParseAddrPort("192.0.2.1:9")))
	if err != nil {
		return netip.Addr{}, false
	}
	defer c.Close()
	a := c.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap()
	return a, !nowhere(a)
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
