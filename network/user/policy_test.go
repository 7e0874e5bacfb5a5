package user

import (
	"bytes"
	"math/rand/v2"
	"net"
	"net/netip"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/cradlevm/cradle/network/egress"
)

// datagram is a UDP packet with this fragment field and 8 bytes of the upper layer.
func datagram(from, to netip.Addr, port, fragment uint16) []byte {
	b := packet(from, to, 17)
	h := header.IPv4(b)
	b[6], b[7] = byte(fragment>>8), byte(fragment)
	h.SetChecksum(0)
	h.SetChecksum(^h.CalculateChecksum())
	copy(b[20:], []byte{4, 0, byte(port >> 8), byte(port), 0, 8, 0, 0})
	return b
}

// TestPolicyFrames: what a policy denies, and what hides whether it does, does not come to the neighbour; who speaks first is answered.
func TestPolicyFrames(t *testing.T) {
	n := newNetwork(t, nil)
	m, other := newMachine(t, n, "10.9.0.2", false), newMachine(t, n, "10.9.0.3", false)
	me, they := m.guest.Addr, other.guest.Addr
	const mine = 7
	m.port.SetPolicy(egress.Policy{Deny: true, Counted: []uint64{egress.DefaultDeny}, Rules: []egress.Rule{
		{Allow: true, Prefix: netip.PrefixFrom(they, 32), Protocol: 17, Low: 7, High: 9, ID: mine}}}, nil)
	short := datagram(me, they, 7, 0)[:22]
	header.IPv4(short).SetTotalLength(22)
	header.IPv4(short).SetChecksum(0)
	header.IPv4(short).SetChecksum(^header.IPv4(short).CalculateChecksum())
	for _, test := range []struct {
		name   string
		packet []byte
		want   Reason
	}{
		{"another port", datagram(me, they, 10, 0), Denied},
		{"another protocol", packet(me, they, 6)[:20], Denied},
		{"first fragment", datagram(me, they, 7, 0x2000), Fragment},
		{"later fragment", datagram(me, they, 7, 5), Fragment},
		{"half a header", short, Malformed},
		{"ping", packet(me, they, 1), Denied},
		{"the host", datagram(me, gateway, 7, 0), Denied},
		{"the world", datagram(me, netip.MustParseAddr("192.0.2.1"), 7, 0), Denied},
	} {
		if test.name == "another protocol" {
			test.packet = packet(me, they, 47)
		}
		before, received := m.port.Counters(), other.frames()
		m.send(m.frame(other.guest.MAC, 0x0800, test.packet))
		await(t, test.name+" is dropped", func() bool { return m.port.Counters().Dropped[test.want] > before.Dropped[test.want] })
		if other.frames() != received {
			t.Errorf("%s has come to the neighbour", test.name)
		}
	}
	received := other.frames()
	m.send(m.frame(other.guest.MAC, 0x0800, datagram(me, they, 9, 0)))
	await(t, "what is allowed comes", func() bool { return other.frames() > received })
	if c := m.port.Filter().Counts(); c[mine] != (egress.Count{Packets: 1, Bytes: 42}) || c[egress.DefaultDeny].Packets != 5 {
		t.Errorf("counted: %+v", c)
	}

	// The neighbour speaks first, from its port 1024 to 99.
	heard := m.frames()
	other.send(other.frame(m.guest.MAC, 0x0800, datagram(they, me, 99, 0)))
	await(t, "the neighbour is heard", func() bool { return m.frames() > heard })
	answer := datagram(me, they, 1024, 0)
	answer[20], answer[21] = 0, 99
	received = other.frames()
	m.send(m.frame(other.guest.MAC, 0x0800, answer))
	await(t, "the answer comes", func() bool { return other.frames() > received })
}

// TestPolicyMutations: whatever is changed in a frame, what comes to the neighbour is what the policy allows.
func TestPolicyMutations(t *testing.T) {
	n := newNetwork(t, nil)
	a, b := net.Pipe()
	defer b.Close()
	they := netip.MustParseAddr("10.9.0.3")
	sender := Guest{MAC: net.HardwareAddr{2, 0, 0, 0, 0, 2}, Addr: netip.MustParseAddr("10.9.0.2"), Policy: egress.Policy{Deny: true,
		Rules: []egress.Rule{{Allow: true, Prefix: netip.PrefixFrom(they, 32), Protocol: 17, Low: 7, High: 9}}}}
	p, err := n.Attach(sender, a)
	if err != nil {
		t.Fatal(err)
	}
	q := &Port{n: n, guest: Guest{MAC: net.HardwareAddr{2, 0, 0, 0, 0, 3}, Addr: they}, out: make(chan []byte, 1), filter: egress.NewFilter(gateway)}
	n.mu.Lock()
	n.ports[they] = q
	n.mu.Unlock()
	defer func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		delete(n.ports, they)
	}()
	fine := append(append(append([]byte{}, q.guest.MAC...), sender.MAC...), append([]byte{8, 0}, datagram(sender.Addr, they, 8, 0)...)...)
	random := rand.New(rand.NewPCG(5, 6))
	passed := 0
	for range 10_000 {
		f := bytes.Clone(fine)
		for range random.IntN(4) {
			f[ethernetSize+random.IntN(len(f)-ethernetSize)] ^= 1 << random.IntN(8)
		}
		if random.IntN(10) == 0 {
			f = f[:random.IntN(len(f)+1)]
		}
		p.take(f)
		select {
		case got := <-q.out:
			passed++
			h := header.IPv4(got[ethernetSize:])
			if h.Protocol() != 17 || h.FragmentOffset() != 0 || h.More() || header.UDP(h.Payload()).DestinationPort() < 7 || header.UDP(h.Payload()).DestinationPort() > 9 {
				t.Fatalf("%x became %x", f, got)
			}
		default:
		}
	}
	if passed < 1000 {
		t.Errorf("only %d frames passed: the test tests nothing", passed)
	}
}

// TestPolicyService: a service of the host's is open to the guest whose policy opens it, at the gateway, and what goes through it
// ends with the rule.
func TestPolicyService(t *testing.T) {
	if _, ok := hostAddr(); !ok {
		t.Skip("the host has an address of its loopback only")
	}
	open := hostTCP(t, "0.0.0.0:0")
	for _, internal := range []bool{false, true} {
		n := newNetwork(t, func(o *Options) { o.Internal = internal })
		m, other := newMachine(t, n, "10.9.0.2", false), newMachine(t, n, "10.9.0.3", false)
		at := netip.AddrPortFrom(gateway, open.Port()).String()
		if c, err := m.dialWithin(at, time.Second); err == nil {
			c.Close()
			t.Fatal("the service is open to all")
		}
		allow := egress.Policy{Deny: true, Rules: []egress.Rule{{Allow: true, Prefix: netip.PrefixFrom(gateway, 32), Protocol: 6, Low: open.Port(), High: open.Port()}}}
		m.port.SetPolicy(allow, []Service{{"tcp", open.Port()}})
		c, err := m.dial(at)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := ask(c, "hello"); err != nil || got != "HELLO" {
			t.Errorf("%q, %v", got, err)
		}
		if c, err = m.dial(at); err != nil {
			t.Fatal(err)
		}
		if c, err := other.dialWithin(at, time.Second); err == nil {
			c.Close()
			t.Error("the service is open to another guest")
		}
		m.port.SetPolicy(egress.Policy{}, nil)
		c.SetReadDeadline(time.Now().Add(patience))
		if _, err := c.Read(make([]byte, 1)); err == nil {
			t.Error("the connection is still there")
		} else if e, ok := err.(net.Error); ok && e.Timeout() {
			t.Error("the connection does not end with the rule")
		}
		if c, err := m.dialWithin(at, time.Second); err == nil {
			c.Close()
			t.Error("the service is open without a rule")
		}
	}
}

// TestPolicyRates: frames over the limit are dropped and counted, in both directions.
func TestPolicyRates(t *testing.T) {
	n := newNetwork(t, nil)
	m, other := newMachine(t, n, "10.9.0.2", false), newMachine(t, n, "10.9.0.3", false)
	m.port.SetPolicy(egress.Policy{Egress: egress.Rate{PacketsPerSecond: 1, Burst: time.Second}, Ingress: egress.Rate{BytesPerSecond: 42, Burst: time.Second}}, nil)
	for range 10 {
		m.send(m.frame(other.guest.MAC, 0x0800, datagram(m.guest.Addr, other.guest.Addr, 7, 0)))
		other.send(other.frame(m.guest.MAC, 0x0800, datagram(other.guest.Addr, m.guest.Addr, 7, 0)))
	}
	await(t, "most is dropped", func() bool {
		c := m.port.Counters()
		return c.Dropped[Rate] >= 5 && c.Refused[Rate] >= 5
	})
	m.port.SetPolicy(egress.Policy{}, nil)
	received := other.frames()
	m.send(m.frame(other.guest.MAC, 0x0800, datagram(m.guest.Addr, other.guest.Addr, 7, 0)))
	await(t, "nothing is limited", func() bool { return other.frames() > received })
}
