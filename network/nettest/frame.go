package nettest

import (
	"encoding/binary"
	"net"
	"net/netip"
)

// Frame makes an Ethernet frame.
func Frame(to, from net.HardwareAddr, ethertype uint16, payload []byte) []byte {
	f := append(append([]byte{}, to...), from...)
	f = binary.BigEndian.AppendUint16(f, ethertype)
	return append(f, payload...)
}

// Broadcast is Ethernet's.
func Broadcast() net.HardwareAddr { return net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff} }

// ARP makes the payload of an ARP frame.
func ARP(operation uint16, senderMAC net.HardwareAddr, sender netip.Addr, targetMAC net.HardwareAddr, target netip.Addr) []byte {
	p := []byte{0, 1, 8, 0, 6, 4}
	p = binary.BigEndian.AppendUint16(p, operation)
	p = append(append(p, senderMAC...), sender.AsSlice()...)
	return append(append(p, targetMAC...), target.AsSlice()...)
}

// IPv4 makes a packet; fragment is the whole field of flags and offset.
func IPv4(from, to netip.Addr, protocol byte, fragment uint16, payload []byte) []byte {
	h := make([]byte, 20)
	h[0], h[8], h[9] = 0x45, 64, protocol
	binary.BigEndian.PutUint16(h[2:], uint16(20+len(payload)))
	binary.BigEndian.PutUint16(h[6:], fragment)
	copy(h[12:], from.AsSlice())
	copy(h[16:], to.AsSlice())
	binary.BigEndian.PutUint16(h[10:], checksum(0, h))
	return append(h, payload...)
}

// IPv6 makes a packet with a hop limit of 255, as neighbour discovery asks.
func IPv6(from, to netip.Addr, next byte, payload []byte) []byte {
	h := make([]byte, 40)
	h[0], h[6], h[7] = 0x60, next, 255
	binary.BigEndian.PutUint16(h[4:], uint16(len(payload)))
	copy(h[8:], from.AsSlice())
	copy(h[24:], to.AsSlice())
	return append(h, payload...)
}

// UDP makes a datagram without a checksum.
func UDP(from, to uint16, payload []byte) []byte {
	h := binary.BigEndian.AppendUint16(nil, from)
	h = binary.BigEndian.AppendUint16(h, to)
	h = binary.BigEndian.AppendUint16(h, uint16(8+len(payload)))
	return append(append(h, 0, 0), payload...)
}

// UDP6 makes a datagram with the checksum that IPv6 insists on.
func UDP6(source, destination netip.Addr, from, to uint16, payload []byte) []byte {
	d := UDP(from, to, payload)
	binary.BigEndian.PutUint16(d[6:], pseudo(source, destination, 17, d))
	return d
}

// TCP makes a segment's header without a checksum; flags as on the wire (2 is SYN).
func TCP(from, to uint16, flags byte) []byte {
	h := make([]byte, 20)
	binary.BigEndian.PutUint16(h, from)
	binary.BigEndian.PutUint16(h[2:], to)
	h[12], h[13] = 0x50, flags
	return h
}

// ICMPv6 makes a message with its checksum.
func ICMPv6(source, destination netip.Addr, kind byte, body []byte) []byte {
	m := append([]byte{kind, 0, 0, 0}, body...)
	binary.BigEndian.PutUint16(m[2:], pseudo(source, destination, 58, m))
	return m
}

func pseudo(source, destination netip.Addr, protocol byte, b []byte) uint16 {
	h := append(source.AsSlice(), destination.AsSlice()...)
	h = binary.BigEndian.AppendUint32(h, uint32(len(b)))
	h = append(h, 0, 0, 0, protocol)
	return checksum(^uint32(checksum(0, h))&0xffff, b)
}

func checksum(sum uint32, b []byte) uint16 {
	for ; len(b) >= 2; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		sum += uint32(b[0]) << 8
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}
