package network

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cradlevm/cradle/network/nettest"
)

// identity is what an endpoint's guest may be.
func identity(e Endpoint) nettest.Identity {
	mac, _ := net.ParseMAC(e.MAC)
	return nettest.Identity{MAC: mac, IPv4: e.IPv4.Addr(), IPv6: e.IPv6.Addr()}
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
	wire := nettest.Sniff(t, eb.TAP)    // before the filter: sees what was tried
	out := nettest.Sniff(t, one.Bridge) // behind it

	for _, f := range nettest.Forgeries(identity(eb), identity(victim), one.Subnets[0].Gateway) {
		before, _, err := h.Counters(eb.ID)
		if err != nil {
			t.Fatal(err)
		}
		if err := bad.Send(f.Frame); err != nil {
			t.Errorf("%s: %v", f.Name, err)
		}
		after, _, err := h.Counters(eb.ID)
		if err != nil {
			t.Fatal(err)
		}
		if after.Dropped[f.Reason] != before.Dropped[f.Reason]+1 {
			t.Errorf("%s is not counted as %s: %v, %v", f.Name, f.Reason, before.Dropped, after.Dropped)
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
	seeds := nettest.Honest(identity(eb), identity(victim))
	tried, passed, dishonest := 0, 0, 0
	senders := map[string]Endpoint{eb.MAC: eb, victim.MAC: victim, eg.MAC: eg, es.MAC: es}
	look := func() {
		tried += len(wire.Frames())
		for _, f := range out.Frames() {
			sender, known := senders[net.HardwareAddr(f[6:12]).String()]
			switch {
			case !known || bytes.Contains(f, []byte("forged")):
				t.Errorf("passed, from nobody: %x", f)
			case nettest.Forged(f, identity(sender)) != "":
				t.Errorf("passed with a wrong %s: %x", nettest.Forged(f, identity(sender)), f)
			case sender.ID == eb.ID:
				passed++
			}
		}
	}
	const mutations = 10_000
	for i := range mutations {
		f := nettest.Mutate(r, seeds[i%len(seeds)])
		if nettest.Forged(f, identity(eb)) != "" {
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

// TestDiscoveryStays: neighbour discovery, which no policy is asked about, is not forwarded; other packets are.
func TestDiscoveryStays(t *testing.T) {
	h := newHouse(t)
	world := nettest.NewOutside(t)
	n := h.create(Spec{Name: "n", IPv6: true})
	bad, e := h.guest(EndpointSpec{Network: n.Name, Name: "bad", Policy: Policy{Deny: true, Rules: []Rule{{Allow: true, Prefix: prefix("::/0"), Protocol: "udp"}}}})
	var far *nettest.Sniffer
	world.Do(func() error { far = nettest.Sniff(t, "world"); return nil })
	self, out := identity(e), nettest.OutsideAddr6()
	bridge, err := net.InterfaceByName(n.Bridge)
	if err != nil {
		t.Fatal(err)
	}
	send := func(next byte, payload []byte) {
		t.Helper()
		if err := bad.Send(nettest.Frame(bridge.HardwareAddr, self.MAC, 0x86dd, nettest.IPv6(self.IPv6, out, next, payload))); err != nil {
			t.Fatal(err)
		}
	}
	send(58, nettest.ICMPv6(self.IPv6, out, 135, append(make([]byte, 4), []byte("carries a secret")...)))
	send(58, nettest.ICMPv6(self.IPv6, out, 128, []byte("carries a secret")))
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		send(17, nettest.UDP6(self.IPv6, out, 1000, 7, []byte("honest")))
		came := false
		for _, f := range far.Frames() {
			if bytes.Contains(f, []byte("secret")) {
				t.Fatalf("forwarded: %x", f)
			}
			came = came || bytes.Contains(f, []byte("honest"))
		}
		if came {
			return
		}
		if time.Now().After(end) {
			t.Fatal("nothing comes: the test shows nothing")
		}
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
				if why := nettest.Forged(f, identity(eb)); why != "" {
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
