package user

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net"
	"net/netip"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/cradlevm/cradle/network/egress"
)

// packet is an IPv4 packet with 8 bytes of payload.
func packet(from, to netip.Addr, protocol uint8) []byte {
	b := make([]byte, header.IPv4MinimumSize+8)
	header.IPv4(b).Encode(&header.IPv4Fields{
		TotalLength: uint16(len(b)), TTL: 64, Protocol: protocol,
		SrcAddr: tcpip.AddrFrom4(from.As4()), DstAddr: tcpip.AddrFrom4(to.As4()),
	})
	header.IPv4(b).SetChecksum(^header.IPv4(b).CalculateChecksum())
	return b
}

func TestForgedFrames(t *testing.T) {
	n := newNetwork(t, nil)
	m, other := newMachine(t, n, "10.9.0.2", false), newMachine(t, n, "10.9.0.3", false)
	me, they := m.guest.Addr, other.guest.Addr
	all := bytes.Repeat([]byte{0xff}, 6)
	foreign := net.HardwareAddr{2, 1, 1, 1, 1, 1}
	forged := func(f []byte) []byte {
		copy(f[6:], foreign)
		return f
	}
	short := packet(me, they, 17)
	header.IPv4(short).SetTotalLength(200)
	for _, test := range []struct {
		name  string
		frame []byte
		want  Reason
	}{
		{"nothing", nil, Malformed},
		{"runt", []byte{1, 2, 3}, Malformed},
		{"too long", make([]byte, maxFrame+1), Malformed},
		{"source MAC", forged(m.frame(other.guest.MAC, 0x0800, packet(me, they, 17))), ForgedMAC},
		{"neighbour's MAC", append(append(append([]byte{}, n.mac...), other.guest.MAC...), append([]byte{8, 0}, packet(they, gateway, 17)...)...), ForgedMAC},
		{"source address", m.frame(other.guest.MAC, 0x0800, packet(they, gateway, 17)), ForgedIP},
		{"gateway's address", m.frame(other.guest.MAC, 0x0800, packet(gateway, they, 17)), ForgedIP},
		{"loopback", m.frame(other.guest.MAC, 0x0800, packet(netip.MustParseAddr("127.0.0.1"), they, 17)), ForgedIP},
		{"ARP sender's MAC", m.frame(all, 0x0806, arpPacket(1, foreign, me, they)), ForgedIP},
		{"ARP sender's address", m.frame(all, 0x0806, arpPacket(1, m.guest.MAC, they, gateway)), ForgedIP},
		{"ARP reply", m.frame(other.guest.MAC, 0x0806, arpPacket(2, m.guest.MAC, gateway, they)), ForgedIP},
		{"unasked ARP reply", m.frame(other.guest.MAC, 0x0806, arpPacket(2, m.guest.MAC, me, they)), Unreachable},
		{"short ARP", m.frame(all, 0x0806, make([]byte, arpSize-1)), Malformed},
		{"long packet", m.frame(other.guest.MAC, 0x0800, short), Malformed},
		{"IPv6", m.frame(all, 0x86dd, make([]byte, 60)), OtherType},
		{"VLAN", m.frame(all, 0x8100, append([]byte{0, 1, 8, 0}, packet(me, they, 17)...)), OtherType},
		{"nobody", m.frame(all, 0x0800, packet(me, netip.MustParseAddr("10.9.0.99"), 17)), Unreachable},
		{"broadcast", m.frame(all, 0x0800, packet(me, netip.MustParseAddr("255.255.255.255"), 17)), Unreachable},
		{"multicast", m.frame(all, 0x0800, packet(me, netip.MustParseAddr("224.0.0.251"), 17)), Unreachable},
		{"echo of others", m.frame(all, 0x0800, packet(me, netip.MustParseAddr("192.0.2.1"), 1)), Unreachable},
	} {
		before, received := m.port.Counters(), other.frames()
		m.send(test.frame)
		await(t, test.name+" is dropped", func() bool { return m.port.Counters().Dropped[test.want] > before.Dropped[test.want] })
		if after := m.port.Counters(); after.SentFrames != before.SentFrames {
			t.Errorf("%s has passed", test.name)
		}
		if other.frames() != received {
			t.Errorf("%s has come to the neighbour", test.name)
		}
	}
}

// TestMutations: whatever is changed in a frame, what comes to the neighbour is from whom it says it is.
func TestMutations(t *testing.T) {
	n := newNetwork(t, nil)
	a, b := net.Pipe()
	sender := Guest{MAC: net.HardwareAddr{2, 0, 0, 0, 0, 2}, Addr: netip.MustParseAddr("10.9.0.2")}
	p, err := n.Attach(sender, a)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	q := &Port{n: n, guest: Guest{MAC: net.HardwareAddr{2, 0, 0, 0, 0, 3}, Addr: netip.MustParseAddr("10.9.0.3")}, out: make(chan []byte, 1),
		filter: egress.NewFilter(gateway)}
	n.mu.Lock()
	n.ports[q.guest.Addr] = q
	n.mu.Unlock()
	defer func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		delete(n.ports, q.guest.Addr)
	}()
	fine := append(append(append([]byte{}, q.guest.MAC...), sender.MAC...), append([]byte{8, 0}, packet(sender.Addr, q.guest.Addr, 17)...)...)
	random := rand.New(rand.NewPCG(1, 2))
	passed := 0
	for range 10_000 {
		f := bytes.Clone(fine)
		for range random.IntN(4) {
			f[random.IntN(len(f))] ^= 1 << random.IntN(8)
		}
		if random.IntN(10) == 0 {
			f = f[:random.IntN(len(f)+1)]
		}
		p.take(f)
		select {
		case got := <-q.out:
			passed++
			if !bytes.Equal(got[:6], q.guest.MAC) || !bytes.Equal(got[6:12], sender.MAC) || binary.BigEndian.Uint16(got[12:]) != 0x0800 ||
				netip.AddrFrom4([4]byte(got[26:30])) != sender.Addr {
				t.Fatalf("%x became %x", f, got)
			}
		default:
		}
	}
	if passed < 1000 {
		t.Errorf("only %d frames passed: the test tests nothing", passed)
	}
}
