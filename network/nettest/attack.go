package nettest

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net"
	"net/netip"
)

// Identity is what a guest is allowed to be.
type Identity struct {
	MAC        net.HardwareAddr
	IPv4, IPv6 netip.Addr // both are there
}

// LinkLocal is the address that a kernel derives from its hardware address (EUI-64).
func (i Identity) LinkLocal() netip.Addr {
	m := i.MAC
	return netip.AddrFrom16([16]byte{0xfe, 0x80, 8: m[0] ^ 2, m[1], m[2], 0xff, 0xfe, m[3], m[4], m[5]})
}

// Forged tells why a frame that passed should not have; empty: it is an honest one of the identity. It knows nothing of how the
// filter works.
func Forged(f []byte, who Identity) string {
	if len(f) < 34 {
		return "runt"
	}
	if !bytes.Equal(f[6:12], who.MAC) {
		return "source MAC"
	}
	p := append(bytes.Clone(f[14:]), make([]byte, 64)...) // what is not there is not read as something
	switch binary.BigEndian.Uint16(f[12:]) {
	case 0x0800:
		return forged4(p, who)
	case 0x0806:
		if len(f) < 42 {
			return "runt"
		}
		sender := netip.AddrFrom4([4]byte(p[14:18]))
		if !bytes.Equal(p[8:14], who.MAC) || (sender != who.IPv4 && !sender.IsUnspecified()) {
			return "ARP sender"
		}
	case 0x86dd:
		if len(f) < 54 {
			return "runt"
		}
		return forged6(p, who)
	default:
		return "ethertype"
	}
	return ""
}

func forged4(p []byte, who Identity) string {
	if p[0] != 0x45 || netip.AddrFrom4([4]byte(p[12:16])) != who.IPv4 {
		return "IPv4 source"
	}
	if p[9] == 17 && binary.BigEndian.Uint16(p[6:])&0x1fff == 0 && binary.BigEndian.Uint16(p[20:]) == 67 {
		return "DHCP"
	}
	return ""
}

func forged6(p []byte, who Identity) string {
	source := netip.AddrFrom16([16]byte(p[8:24]))
	if source != who.IPv6 && source != who.LinkLocal() && !(source.IsUnspecified() && p[6] == 58 && p[40] == 135) {
		return "IPv6 source"
	}
	if p[6] == 17 && binary.BigEndian.Uint16(p[40:]) == 547 {
		return "DHCP"
	}
	if p[6] == 58 && (p[40] == 134 || p[40] == 137) {
		return "router's message"
	}
	if p[6] == 58 && (p[40] == 136 || (p[40] == 135 && source.IsUnspecified())) {
		if target := netip.AddrFrom16([16]byte(p[48:64])); target != who.IPv6 && target != who.LinkLocal() {
			return "neighbour's target"
		}
	}
	return ""
}

// Forgery is a frame that must not pass, and the reason by which it is counted.
type Forgery struct {
	Name, Reason string
	Frame        []byte
}

// Forgeries are frames of all kinds that a hostile guest sends, in the name of another one and of the gateways. Those that are not
// too short for it have the word "forged" in them, or end with bytes that nobody else sends.
func Forgeries(self, victim Identity, gate4 netip.Addr) []Forgery {
	all := Broadcast()
	frame := func(ethertype uint16, payload []byte) []byte { return Frame(all, self.MAC, ethertype, payload) }
	word := []byte("forged")
	udp := UDP(1000, 7, word)
	any4, nodes6, agents6 := netip.MustParseAddr("255.255.255.255"), netip.MustParseAddr("ff02::1"), netip.MustParseAddr("ff02::1:2")
	v4 := func(from, to netip.Addr, protocol byte, fragment uint16, payload []byte) []byte {
		return frame(0x0800, IPv4(from, to, protocol, fragment, payload))
	}
	v6 := func(from, to netip.Addr, next byte, payload []byte) []byte {
		return frame(0x86dd, IPv6(from, to, next, payload))
	}
	neighbour := func(kind byte, flags byte, target netip.Addr, option byte, mac net.HardwareAddr) []byte {
		body := append(append([]byte{flags, 0, 0, 0}, target.AsSlice()...), option, 1)
		return v6(self.IPv6, nodes6, 58, ICMPv6(self.IPv6, nodes6, kind, append(body, mac...)))
	}
	inner := IPv4(self.IPv4, gate4, 17, 0, udp)
	withOptions := append([]byte{}, inner...)
	withOptions[0] = 0x46
	list := []Forgery{
		{"another's MAC", "source-mac", Frame(all, victim.MAC, 0x0800, inner)},
		{"another's MAC over IPv6", "source-mac", Frame(all, victim.MAC, 0x86dd, IPv6(self.IPv6, nodes6, 17, UDP6(self.IPv6, nodes6, 1, 7, word)))},
		{"another's address", "source-ipv4", v4(victim.IPv4, gate4, 17, 0, udp)},
		{"the gateway's address", "source-ipv4", v4(gate4, victim.IPv4, 17, 0, udp)},
		{"another's IPv6 address", "source-ipv6", v6(victim.IPv6, nodes6, 17, UDP6(victim.IPv6, nodes6, 1, 7, word))},
		{"another's link-local address", "source-ipv6", v6(victim.LinkLocal(), nodes6, 17, UDP6(victim.LinkLocal(), nodes6, 1, 7, word))},
		{"ARP reply for the gateway", "arp", frame(0x0806, ARP(2, self.MAC, gate4, victim.MAC, victim.IPv4))},
		{"gratuitous ARP for the gateway", "arp", frame(0x0806, ARP(1, self.MAC, gate4, make([]byte, 6), gate4))},
		{"gratuitous ARP for another", "arp", frame(0x0806, ARP(2, self.MAC, victim.IPv4, all, victim.IPv4))},
		{"ARP with another's MAC inside", "arp", frame(0x0806, ARP(2, victim.MAC, self.IPv4, all, gate4))},
		{"advertisement of another", "ndp", neighbour(136, 0x20, victim.IPv6, 2, self.MAC)},
		{"advertisement with another's MAC", "ndp", neighbour(136, 0x20, self.IPv6, 2, victim.MAC)},
		{"advertisement as a router", "ndp", neighbour(136, 0xa0, self.IPv6, 2, self.MAC)},
		{"solicitation with another's MAC", "ndp", neighbour(135, 0, victim.IPv6, 1, victim.MAC)},
		{"router advertisement", "router", v6(self.LinkLocal(), nodes6, 58, ICMPv6(self.LinkLocal(), nodes6, 134, make([]byte, 12)))},
		{"redirect", "router", v6(self.LinkLocal(), nodes6, 58, ICMPv6(self.LinkLocal(), nodes6, 137, make([]byte, 36)))},
		{"DHCP offer", "dhcp", v4(self.IPv4, any4, 17, 0, UDP(67, 68, append(make([]byte, 240), word...)))},
		{"DHCP request", "dhcp", v4(self.IPv4, any4, 17, 0, UDP(68, 67, append(make([]byte, 240), word...)))},
		{"DHCPv6 advertisement", "dhcp", v6(self.LinkLocal(), nodes6, 17, UDP6(self.LinkLocal(), nodes6, 547, 546, append([]byte{2, 0, 0, 1}, word...)))},
		{"DHCPv6 request", "dhcp", v6(self.LinkLocal(), agents6, 17, UDP6(self.LinkLocal(), agents6, 546, 547, append([]byte{1, 0, 0, 1}, word...)))},
		{"VLAN tag", "vlan", frame(0x8100, append([]byte{0, 1, 8, 0}, inner...))},
		{"two VLAN tags", "vlan", frame(0x88a8, append([]byte{0, 1, 0x81, 0, 0, 2, 8, 0}, inner...))},
		{"LLDP", "ethertype", frame(0x88cc, append(make([]byte, 60), word...))},
		{"half a header", "runt", frame(0x0800, []byte{0x45, 0, 0})},
		{"longer inside than outside", "runt", frame(0x0800, IPv4(self.IPv4, gate4, 17, 0, append(udp, make([]byte, 40)...))[:34])},
		{"fragment of TCP's header", "fragment", v4(self.IPv4, gate4, 6, 0x2000, make([]byte, 8))},
		{"IPv4 options", "ip-options", frame(0x0800, withOptions)},
		{"destination options", "extension-header", v6(self.IPv6, victim.IPv6, 60, append([]byte{17, 0, 1, 4, 0, 0, 0, 0}, udp...))},
		{"IGMP", "multicast-report", v4(self.IPv4, netip.MustParseAddr("224.0.0.22"), 2, 0, append(make([]byte, 8), word...))},
		{"metadata", "metadata", v4(self.IPv4, netip.MustParseAddr("169.254.169.254"), 17, 0, udp)},
	}
	return list
}

// Honest are frames that a guest may send, to begin mutations from.
func Honest(self, peer Identity) [][]byte {
	target := append(append([]byte{0x60, 0, 0, 0}, self.IPv6.AsSlice()...), append([]byte{2, 1}, self.MAC...)...)
	v4 := func(protocol byte, payload []byte) []byte {
		return Frame(peer.MAC, self.MAC, 0x0800, IPv4(self.IPv4, peer.IPv4, protocol, 0, payload))
	}
	v6 := func(next byte, payload []byte) []byte {
		return Frame(peer.MAC, self.MAC, 0x86dd, IPv6(self.IPv6, peer.IPv6, next, payload))
	}
	return [][]byte{
		v4(17, UDP(1000, 7, []byte("honest"))),
		v4(6, TCP(1000, 9, 2)),
		Frame(Broadcast(), self.MAC, 0x0806, ARP(1, self.MAC, self.IPv4, make([]byte, 6), peer.IPv4)),
		Frame(Broadcast(), self.MAC, 0x0806, ARP(2, self.MAC, self.IPv4, peer.MAC, peer.IPv4)),
		v6(17, UDP6(self.IPv6, peer.IPv6, 1000, 7, []byte("honest"))),
		v6(58, ICMPv6(self.IPv6, peer.IPv6, 136, target)),
		v6(58, ICMPv6(self.IPv6, peer.IPv6, 128, make([]byte, 4))),
	}
}

// Mutate changes, cuts or grows a frame at random.
func Mutate(r *rand.Rand, f []byte) []byte {
	f = bytes.Clone(f)
	for range 1 + r.IntN(3) {
		switch r.IntN(6) {
		case 0: // one of the fields that matter
			copy(f[min(6+r.IntN(64), len(f)-1):], []byte{byte(r.Uint32())})
		case 1:
			f = f[:14+r.IntN(len(f)-13)]
		case 2:
			f = append(f, make([]byte, r.IntN(64))...)
		case 3: // another protocol
			if len(f) > 24 {
				f[23] = byte(r.Uint32())
			}
		case 4: // a tag
			f = append(append(bytes.Clone(f[:12]), 0x81, 0, 0, byte(r.Uint32())), f[12:]...)
		default:
			f[r.IntN(len(f))] ^= 1 << r.IntN(8)
		}
		if len(f) < 14 {
			return f
		}
	}
	return f
}
