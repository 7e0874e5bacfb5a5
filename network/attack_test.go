package network

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/cradlevm/cradle/network/bpf"
	"github.com/cradlevm/cradle/network/nettest"
)

// sniffer reads every frame that comes out of an interface, as another program on the host would.
type sniffer struct{ fd int }

func sniff(t *testing.T, device string) *sniffer {
	t.Helper()
	link, err := netlink.LinkByName(device)
	if err != nil {
		t.Fatal(err)
	}
	all := uint16(unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8)
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, int(all))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: link.Attrs().Index}); err != nil {
		t.Fatal(err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20); err != nil {
		t.Fatal(err)
	}
	// All frames, not only those for the host.
	promiscuous := &unix.PacketMreq{Ifindex: int32(link.Attrs().Index), Type: unix.PACKET_MR_PROMISC}
	if err := unix.SetsockoptPacketMreq(fd, unix.SOL_PACKET, unix.PACKET_ADD_MEMBERSHIP, promiscuous); err != nil {
		t.Fatal(err)
	}
	return &sniffer{fd}
}

// frames returns what has come since the last call, without what the host itself sent.
func (s *sniffer) frames() [][]byte {
	var all [][]byte
	buf := make([]byte, 1<<16)
	for {
		n, from, err := unix.Recvfrom(s.fd, buf, 0)
		if err != nil {
			return all
		}
		if l, ok := from.(*unix.SockaddrLinklayer); ok && l.Pkttype != unix.PACKET_OUTGOING {
			all = append(all, bytes.Clone(buf[:n]))
		}
	}
}

// forged tells why a frame that passed should not have; empty: it is an honest one of e. It knows nothing of how the filter works.
func forged(f []byte, e Endpoint) string {
	mac, _ := net.ParseMAC(e.MAC)
	local := bpf.LinkLocal(mac)
	if len(f) < 34 {
		return "runt"
	}
	if !bytes.Equal(f[6:12], mac) {
		return "source MAC"
	}
	p := append(bytes.Clone(f[14:]), make([]byte, 64)...) // what is not there is not read as something
	switch binary.BigEndian.Uint16(f[12:]) {
	case 0x0800:
		if p[0] != 0x45 || netip.AddrFrom4([4]byte(p[12:16])) != e.IPv4.Addr() {
			return "IPv4 source"
		}
		if p[9] == 17 && binary.BigEndian.Uint16(p[6:])&0x1fff == 0 && binary.BigEndian.Uint16(p[20:]) == 67 {
			return "DHCP"
		}
	case 0x0806:
		if len(f) < 42 {
			return "runt"
		}
		sender := netip.AddrFrom4([4]byte(p[14:18]))
		if !bytes.Equal(p[8:14], mac) || (sender != e.IPv4.Addr() && !sender.IsUnspecified()) {
			return "ARP sender"
		}
	case 0x86dd:
		if len(f) < 54 {
			return "runt"
		}
		source := netip.AddrFrom16([16]byte(p[8:24]))
		if source != e.IPv6.Addr() && source != local && !(source.IsUnspecified() && p[6] == 58 && p[40] == 135) {
			return "IPv6 source"
		}
		if p[6] == 58 && (p[40] == 134 || p[40] == 137) {
			return "router's message"
		}
		if p[6] == 58 && (p[40] == 136 || (p[40] == 135 && source.IsUnspecified())) {
			if target := netip.AddrFrom16([16]byte(p[48:64])); target != e.IPv6.Addr() && target != local {
				return "neighbour's target"
			}
		}
	default:
		return "ethertype"
	}
	return ""
}

// honest are frames that e may send, to begin mutations from.
func honest(e Endpoint, to Endpoint) [][]byte {
	mac, _ := net.ParseMAC(e.MAC)
	far, _ := net.ParseMAC(to.MAC)
	ip, peer, ip6, peer6 := e.IPv4.Addr(), to.IPv4.Addr(), e.IPv6.Addr(), to.IPv6.Addr()
	target := append(append([]byte{0x60, 0, 0, 0}, ip6.AsSlice()...), append([]byte{2, 1}, mac...)...)
	return [][]byte{
		nettest.Frame(far, mac, 0x0800, nettest.IPv4(ip, peer, 17, 0, nettest.UDP(1000, 7, []byte("honest")))),
		nettest.Frame(far, mac, 0x0800, nettest.IPv4(ip, peer, 6, 0, nettest.TCP(1000, 9, 2))),
		nettest.Frame(nettest.Broadcast(), mac, 0x0806, nettest.ARP(1, mac, ip, make([]byte, 6), peer)),
		nettest.Frame(nettest.Broadcast(), mac, 0x0806, nettest.ARP(2, mac, ip, far, peer)),
		nettest.Frame(far, mac, 0x86dd, nettest.IPv6(ip6, peer6, 17, nettest.UDP6(ip6, peer6, 1000, 7, []byte("honest")))),
		nettest.Frame(far, mac, 0x86dd, nettest.IPv6(ip6, peer6, 58, nettest.ICMPv6(ip6, peer6, 136, target))),
		nettest.Frame(far, mac, 0x86dd, nettest.IPv6(ip6, peer6, 58, nettest.ICMPv6(ip6, peer6, 128, make([]byte, 4)))),
	}
}

// mutate changes, cuts or grows a frame at random.
func mutate(r *rand.Rand, f []byte) []byte {
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

// TestHostileGuest sends forged frames and 10,000 mutations through a real TAP: what comes out at the bridge is honest, and
// traffic of others flows on meanwhile.
func TestHostileGuest(t *testing.T) {
	h := newHouse(t)
	one := h.create(Spec{Name: "one", IPv6: true})
	bad, eb := h.guest(EndpointSpec{Network: one.Name, Name: "bad"})
	_, victim := h.guest(EndpointSpec{Network: one.Name, Name: "victim"})
	good, eg := h.guest(EndpointSpec{Network: one.Name, Name: "good"})
	server, es := h.guest(EndpointSpec{Network: one.Name, Name: "server"})
	listen(t, server, "server")
	wire := sniff(t, eb.TAP)    // before the filter: sees what was tried
	out := sniff(t, one.Bridge) // behind it

	mac, _ := net.ParseMAC(eb.MAC)
	others, _ := net.ParseMAC(victim.MAC)
	ip, theirs, gate := eb.IPv4.Addr(), victim.IPv4.Addr(), one.Subnets[0].Gateway
	ip6, theirs6 := eb.IPv6.Addr(), victim.IPv6.Addr()
	all6 := netip.MustParseAddr("ff02::1")
	udp := nettest.UDP(1000, 7, []byte("forged"))
	forgeries := map[string][]byte{
		"source-mac":  nettest.Frame(nettest.Broadcast(), others, 0x0800, nettest.IPv4(ip, gate, 17, 0, udp)),
		"source-ipv4": nettest.Frame(nettest.Broadcast(), mac, 0x0800, nettest.IPv4(theirs, gate, 17, 0, udp)),
		"source-ipv6": nettest.Frame(nettest.Broadcast(), mac, 0x86dd, nettest.IPv6(theirs6, all6, 17, nettest.UDP6(theirs6, all6, 1, 7, nil))),
		"arp":         nettest.Frame(nettest.Broadcast(), mac, 0x0806, nettest.ARP(2, mac, gate, others, theirs)),
		"ndp": nettest.Frame(nettest.Broadcast(), mac, 0x86dd, nettest.IPv6(ip6, all6, 58, nettest.ICMPv6(ip6, all6, 136,
			append(append([]byte{0x20, 0, 0, 0}, theirs6.AsSlice()...), append([]byte{2, 1}, mac...)...)))),
		"router":    nettest.Frame(nettest.Broadcast(), mac, 0x86dd, nettest.IPv6(bpf.LinkLocal(mac), all6, 58, nettest.ICMPv6(bpf.LinkLocal(mac), all6, 134, make([]byte, 12)))),
		"dhcp":      nettest.Frame(nettest.Broadcast(), mac, 0x0800, nettest.IPv4(ip, netip.MustParseAddr("255.255.255.255"), 17, 0, nettest.UDP(67, 68, make([]byte, 240)))),
		"vlan":      nettest.Frame(nettest.Broadcast(), mac, 0x8100, append([]byte{0, 1, 8, 0}, nettest.IPv4(ip, gate, 17, 0, udp)...)),
		"ethertype": nettest.Frame(nettest.Broadcast(), mac, 0x88cc, make([]byte, 60)),
		"runt":      nettest.Frame(nettest.Broadcast(), mac, 0x0800, []byte{0x45, 0, 0}),
		"fragment":  nettest.Frame(nettest.Broadcast(), mac, 0x0800, nettest.IPv4(ip, gate, 6, 0x2000, make([]byte, 8))),
		"metadata":  nettest.Frame(nettest.Broadcast(), mac, 0x0800, nettest.IPv4(ip, netip.MustParseAddr("169.254.169.254"), 17, 0, udp)),
	}
	for reason, f := range forgeries {
		before, _, err := h.Counters(eb.ID)
		if err != nil {
			t.Fatal(err)
		}
		if err := bad.Send(f); err != nil {
			t.Errorf("%s: %v", reason, err)
		}
		after, _, err := h.Counters(eb.ID)
		if err != nil {
			t.Fatal(err)
		}
		if after.Dropped[reason] != before.Dropped[reason]+1 {
			t.Errorf("%s is not counted: %v, %v", reason, before.Dropped, after.Dropped)
		}
	}

	var asked, answered atomic.Int64
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			default:
			}
			asked.Add(1)
			if ask(good, "tcp", port7(es.IPv4.Addr())) != "" {
				answered.Add(1)
			}
		}
	}()
	for asked.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	r := rand.New(rand.NewPCG(5, 2026))
	seeds := honest(eb, victim)
	tried, passed, dishonest := 0, 0, 0
	senders := map[string]Endpoint{eb.MAC: eb, victim.MAC: victim, eg.MAC: eg, es.MAC: es}
	look := func() {
		tried += len(wire.frames())
		for _, f := range out.frames() {
			sender, known := senders[net.HardwareAddr(f[6:12]).String()]
			switch {
			case !known || bytes.Contains(f, []byte("forged")):
				t.Errorf("passed, from nobody: %x", f)
			case forged(f, sender) != "":
				t.Errorf("passed with a wrong %s: %x", forged(f, sender), f)
			case sender.ID == eb.ID:
				passed++
			}
		}
	}
	const mutations = 10_000
	for i := range mutations {
		f := mutate(r, seeds[i%len(seeds)])
		if forged(f, eb) != "" {
			dishonest++
		}
		bad.Send(f) // the kernel refuses what is shorter than a header
		if i%500 == 499 {
			look()
		}
	}
	look()
	close(stop)
	<-done
	if asked.Load() != answered.Load() {
		t.Errorf("%d of %d honest connections answered meanwhile", answered.Load(), asked.Load())
	}
	from, _, err := h.Counters(eb.ID)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d mutations, %d of them forged; %d frames seen before the filter, %d behind it at the bridge; %d honest connections; dropped: %v",
		mutations, dishonest, tried, passed, answered.Load(), from.Dropped)
	if int(from.Drops()) < dishonest {
		t.Errorf("%d frames dropped, %d were forged", from.Drops(), dishonest)
	}
	if passed == 0 || tried < mutations/2 {
		t.Error("the sniffers saw nothing: the test shows nothing")
	}
}

// TestChecksumTrick: a guest asks the kernel to write a checksum of its choice over the source address, after the filter has
// looked. Honest requests, at the place of UDP's checksum, pass.
func TestChecksumTrick(t *testing.T) {
	h := newHouse(t)
	one := h.create(Spec{Name: "one", IPv6: true})
	bad, eb := h.guest(EndpointSpec{Network: one.Name, Name: "bad"})
	victim, ev := h.guest(EndpointSpec{Network: one.Name, Name: "victim"})
	got := make(chan []byte, 100)
	victim.Watch(func(f []byte) {
		if bytes.Contains(f, []byte("payload")) {
			got <- bytes.Clone(f)
		}
	})
	mac, _ := net.ParseMAC(eb.MAC)
	far, _ := net.ParseMAC(ev.MAC)
	payload := []byte("payload of some length, so that there is room")
	v4 := nettest.Frame(far, mac, 0x0800, nettest.IPv4(eb.IPv4.Addr(), ev.IPv4.Addr(), 17, 0, nettest.UDP(1, 7, payload)))
	v6 := nettest.Frame(far, mac, 0x86dd, nettest.IPv6(eb.IPv6.Addr(), ev.IPv6.Addr(), 17, nettest.UDP(1, 7, payload)))
	arp := nettest.Frame(far, mac, 0x0806, nettest.ARP(2, mac, eb.IPv4.Addr(), far, ev.IPv4.Addr()))
	arp = append(arp, payload...)
	send := func(name string, f []byte, start, offset int, pass bool) {
		t.Helper()
		header := make([]byte, 10)
		header[0] = 1 // VIRTIO_NET_HDR_F_NEEDS_CSUM
		binary.LittleEndian.PutUint16(header[6:], uint16(start))
		binary.LittleEndian.PutUint16(header[8:], uint16(offset))
		before, _, err := h.Counters(eb.ID)
		if err != nil {
			t.Fatal(err)
		}
		err = bad.SendOffloaded(header, f)
		after, _, err2 := h.Counters(eb.ID)
		if err2 != nil {
			t.Fatal(err2)
		}
		dropped := err != nil || after.Dropped["checksum"] == before.Dropped["checksum"]+1
		if dropped == pass {
			t.Errorf("%s: dropped %v (%v), %v", name, dropped, err, after.Dropped)
		}
		if pass {
			select {
			case f := <-got:
				if why := forged(f, eb); why != "" {
					t.Errorf("%s: arrived with a wrong %s", name, why)
				}
			case <-time.After(5 * time.Second):
				t.Errorf("%s: did not arrive", name)
			}
		}
	}
	send("UDP", v4, 34, 6, true)
	send("UDP over IPv6", v6, 54, 6, true)
	send("over the payload", v4, 34, 20, true)
	send("over the ports", v4, 34, 0, false)
	send("over the second port", v4, 34, 2, false)
	send("over the IPv4 source", v4, 14, 12, false)
	send("over the IPv4 source, from afar", v4, 20, 8, false)
	send("over the protocol", v4, 14, 8, false)
	send("over the MAC", v4, 0, 6, false)
	send("over the IPv6 source", v6, 14, 20, false)
	send("over ARP's sender", arp, 14, 14, false)
	send("behind ARP", arp, 42, 4, false)
	select {
	case f := <-got:
		t.Errorf("arrived: %x", f)
	default:
	}
}
