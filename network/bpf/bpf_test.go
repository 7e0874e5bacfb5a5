package bpf

import (
	"bytes"
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/cradlevm/cradle/network/egress"
	"github.com/cradlevm/cradle/network/nettest"
)

func TestMain(m *testing.M) { nettest.Main(m) }

var (
	mac    = net.HardwareAddr{0x02, 0x42, 10, 1, 0, 2}
	other  = net.HardwareAddr{0x02, 0x42, 10, 1, 0, 3}
	ip     = netip.MustParseAddr("10.1.0.2")
	peer   = netip.MustParseAddr("10.1.0.3")
	gate   = netip.MustParseAddr("10.1.0.1")
	world  = netip.MustParseAddr("203.0.113.9")
	ip6    = netip.MustParseAddr("fd00:1::2")
	peer6  = netip.MustParseAddr("fd00:1::3")
	gate6  = netip.MustParseAddr("fd00:1::1")
	local6 = LinkLocal(mac)
	all6   = netip.MustParseAddr("ff02::1")
	none6  = netip.IPv6Unspecified()
)

const loopback = 1 // the device that BPF_PROG_TEST_RUN takes

func guards(t *testing.T, e Endpoint) *Guards {
	t.Helper()
	nettest.NeedRoot(t)
	g, err := Load()
	if errors.Is(err, unix.EPERM) {
		t.Skip("may not load programs:", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.Close() })
	for _, d := range []direction{fromGuest, toGuest} {
		if err := g.counters.Put(counterKey{loopback, uint32(d)}, make([]countersValue, ebpf.MustPossibleCPU())); err != nil {
			t.Fatal(err)
		}
	}
	if e.MAC != nil {
		if err := g.Assign(loopback, e); err != nil {
			t.Fatal(err)
		}
	}
	return g
}

func whole() Endpoint {
	return Endpoint{MAC: mac, IPv4: ip, Gateway4: gate, IPv6: ip6, Gateway6: gate6}
}

// verdict runs a frame through a program and says why it was dropped; empty: it passed, unchanged.
func verdict(t *testing.T, g *Guards, p *ebpf.Program, frame []byte) string {
	t.Helper()
	before := map[string]uint64{}
	count := func(sign uint64) {
		from, to, err := g.Counters(loopback)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range []Counters{from, to} {
			for r, n := range c.Dropped {
				before[r] += sign * n
			}
		}
	}
	count(^uint64(0))
	out := make([]byte, len(frame)+64)
	opts := &ebpf.RunOptions{Data: frame, DataOut: out}
	r, err := p.Run(opts)
	if errors.Is(err, unix.EINVAL) && len(frame) < 54 {
		return "runt" // the kernel does not try such; TestTAP does, through a device
	}
	if err != nil {
		t.Fatalf("run: %v\n%x", err, frame)
	}
	count(1)
	for reason, n := range before {
		if n == 1 {
			if r != 2 {
				t.Errorf("counted as %s, verdict %d", reason, int32(r))
			}
			return reason
		}
	}
	if int32(r) != -1 {
		t.Fatalf("verdict %d without a reason", int32(r))
	}
	if !bytes.Equal(opts.DataOut, frame) {
		t.Errorf("the program changed the frame\n%x\n%x", frame, opts.DataOut)
	}
	return ""
}

func v4(from netip.Addr, protocol byte, fragment uint16, payload []byte) []byte {
	return nettest.Frame(other, mac, 0x0800, nettest.IPv4(from, world, protocol, fragment, payload))
}

func v6(from netip.Addr, next byte, payload []byte) []byte {
	return nettest.Frame(other, mac, 0x86dd, nettest.IPv6(from, peer6, next, payload))
}

func nd(from netip.Addr, kind byte, flags byte, target netip.Addr, options ...byte) []byte {
	body := []byte{flags, 0, 0, 0}
	if target.IsValid() {
		body = append(body, target.AsSlice()...)
	}
	return nettest.Frame(other, mac, 0x86dd, nettest.IPv6(from, all6, 58, nettest.ICMPv6(from, all6, kind, append(body, options...))))
}

func lladdr(kind byte, m net.HardwareAddr) []byte { return append([]byte{kind, 1}, m...) }

// change returns a frame with some bytes replaced.
func change(f []byte, at int, b ...byte) []byte {
	f = bytes.Clone(f)
	copy(f[at:], b)
	return f
}

// TestFrames: what a guest may send and what not, each with the reason it is counted under.
func TestFrames(t *testing.T) {
	g := guards(t, whole())
	udp := nettest.UDP(1000, 2000, []byte("hello"))
	good := v4(ip, 17, 0, udp)
	query, reply := uint16(1), uint16(2)
	arp := func(op uint16, m net.HardwareAddr, a netip.Addr) []byte {
		return nettest.Frame(nettest.Broadcast(), mac, 0x0806, nettest.ARP(op, m, a, make([]byte, 6), peer))
	}
	for _, c := range []struct {
		name  string
		frame []byte
		want  string
	}{
		{"UDP", good, ""},
		{"TCP", v4(ip, 6, 0, nettest.TCP(1000, 80, 2)), ""},
		{"ping", v4(ip, 1, 0, []byte{8, 0, 0, 0, 0, 0, 0, 0}), ""},
		{"GRE", v4(ip, 47, 0, make([]byte, 8)), ""},
		{"first fragment", v4(ip, 17, 0x2000, udp), ""},
		{"later fragment", v4(ip, 17, 1, udp), ""},
		{"fragment of 8 bytes of TCP", v4(ip, 6, 0x2000, make([]byte, 8)), "fragment"},
		{"forged MAC", change(good, 6, other...), "source-mac"},
		{"forged IPv4", v4(peer, 17, 0, udp), "source-ipv4"},
		{"IPv4 from nowhere", v4(netip.IPv4Unspecified(), 17, 0, udp), "source-ipv4"},
		{"forged IPv4 fragment", v4(peer, 17, 1, udp), "source-ipv4"},
		{"IPv4 version 5", change(good, 14, 0x55), "runt"},
		{"IPv4 header of 16 bytes", change(good, 14, 0x44), "ip-options"},
		{"IPv4 options", change(good, 14, 0x46), "ip-options"},
		{"IPv4 longer than the frame", change(good, 16, 0x01, 0xff), "runt"},
		{"IPv4 shorter than its header", change(good, 16, 0, 19), "runt"},
		{"half an IPv4 header", good[:24], "runt"},
		{"UDP that ends before its header", change(good, 16, 0, 22), "runt"},
		{"advertisement that ends before its target", change(nd(ip6, 136, 0x60, ip6, lladdr(2, mac)...), 18, 0, 9), "runt"},
		{"half a UDP header", change(good[:36], 16, 0, 22), "runt"},
		{"Ethernet header alone", good[:14], "runt"},
		{"IGMP", v4(ip, 2, 0, make([]byte, 8)), "multicast-report"},
		{"to the metadata service", nettest.Frame(other, mac, 0x0800, nettest.IPv4(ip, netip.MustParseAddr("169.254.169.254"), 17, 0, udp)), "metadata"},
		{"to loopback", nettest.Frame(other, mac, 0x0800, nettest.IPv4(ip, netip.MustParseAddr("127.0.0.1"), 17, 0, udp)), "metadata"},
		{"DHCP offer", v4(ip, 17, 0, nettest.UDP(67, 68, make([]byte, 240))), "dhcp"},
		{"DHCP offer to another port", v4(ip, 17, 0, nettest.UDP(67, 1068, make([]byte, 240))), "dhcp"},
		{"DHCP offer, first fragment", v4(ip, 17, 0x2000, nettest.UDP(67, 68, make([]byte, 240))), "dhcp"},
		{"DHCP discover", v4(ip, 17, 0, nettest.UDP(68, 67, make([]byte, 240))), "dhcp"},
		{"DHCP discover from 0.0.0.0", v4(netip.IPv4Unspecified(), 17, 0, nettest.UDP(68, 67, make([]byte, 240))), "source-ipv4"},

		{"ARP query", arp(query, mac, ip), ""},
		{"ARP reply", arp(reply, mac, ip), ""},
		{"ARP probe", arp(query, mac, netip.IPv4Unspecified()), ""},
		{"ARP reply for 0.0.0.0", arp(reply, mac, netip.IPv4Unspecified()), "arp"},
		{"forged ARP reply", arp(reply, mac, gate), "arp"},
		{"forged ARP query", arp(query, mac, peer), "arp"},
		{"ARP for another's MAC", arp(reply, other, ip), "arp"},
		{"gratuitous ARP for the gateway", nettest.Frame(nettest.Broadcast(), mac, 0x0806, nettest.ARP(reply, mac, gate, nettest.Broadcast(), gate)), "arp"},
		{"reverse ARP", arp(4, mac, ip), "arp"},
		{"ARP for other hardware", change(arp(query, mac, ip), 14, 0, 6), "arp"},
		{"half an ARP", arp(query, mac, ip)[:30], "runt"},

		{"VLAN", nettest.Frame(other, mac, 0x8100, append([]byte{0, 5, 8, 0}, good[14:]...)), "vlan"},
		{"QinQ", nettest.Frame(other, mac, 0x88a8, append([]byte{0, 5, 8, 0}, good[14:]...)), "vlan"},
		{"LLDP", nettest.Frame(other, mac, 0x88cc, make([]byte, 50)), "ethertype"},
		{"PPPoE", nettest.Frame(other, mac, 0x8864, make([]byte, 50)), "ethertype"},
		{"802.3 (spanning tree)", nettest.Frame(net.HardwareAddr{1, 0x80, 0xc2, 0, 0, 0}, mac, 38, make([]byte, 50)), "ethertype"},

		{"UDP over IPv6", v6(ip6, 17, nettest.UDP6(ip6, peer6, 1, 2, nil)), ""},
		{"UDP over IPv6, link-local", v6(local6, 17, nettest.UDP6(local6, peer6, 1, 2, nil)), ""},
		{"forged IPv6", v6(peer6, 17, nettest.UDP6(peer6, peer6, 1, 2, nil)), "source-ipv6"},
		{"forged link-local", v6(LinkLocal(other), 17, nettest.UDP6(LinkLocal(other), peer6, 1, 2, nil)), "source-ipv6"},
		{"IPv6 from nowhere", v6(none6, 17, nettest.UDP6(none6, peer6, 1, 2, nil)), "source-ipv6"},
		{"IPv6 longer than the frame", change(v6(ip6, 17, udp), 18, 0xff), "runt"},
		{"half an IPv6 header", v6(ip6, 17, udp)[:40], "runt"},
		{"DHCPv6 answer", v6(local6, 17, nettest.UDP6(local6, peer6, 547, 546, nil)), "dhcp"},
		{"ping over IPv6", v6(ip6, 58, nettest.ICMPv6(ip6, peer6, 128, make([]byte, 4))), ""},
		{"node information", v6(ip6, 58, nettest.ICMPv6(ip6, peer6, 139, make([]byte, 12))), "icmpv6"},
		{"router solicitation", nd(local6, 133, 0, netip.Addr{}, lladdr(1, mac)...), ""},
		{"router advertisement", nd(local6, 134, 0, netip.Addr{}, make([]byte, 8)...), "router"},
		{"redirect", nd(local6, 137, 0, peer6, peer6.AsSlice()...), "router"},
		{"neighbour solicitation", nd(ip6, 135, 0, peer6, lladdr(1, mac)...), ""},
		{"neighbour solicitation with a nonce", nd(none6, 135, 0, ip6, 14, 1, 1, 2, 3, 4, 5, 6), ""},
		{"duplicate address detection", nd(none6, 135, 0, local6), ""},
		{"detection of another's address", nd(none6, 135, 0, peer6), "ndp"},
		{"solicitation with another's MAC", nd(ip6, 135, 0, peer6, lladdr(1, other)...), "ndp"},
		{"advertisement", nd(ip6, 136, 0x60, ip6, lladdr(2, mac)...), ""},
		{"forged advertisement", nd(ip6, 136, 0x60, peer6, lladdr(2, mac)...), "ndp"},
		{"advertisement of another's MAC", nd(ip6, 136, 0x60, ip6, lladdr(2, other)...), "ndp"},
		{"advertisement by a router", nd(ip6, 136, 0xe0, ip6, lladdr(2, mac)...), "ndp"},
		{"advertisement with a second option", nd(ip6, 136, 0x60, ip6, append(lladdr(2, mac), lladdr(2, other)...)...), "ndp"},
		{"advertisement with half an option", nd(ip6, 136, 0x60, ip6, 2, 1, 2), "ndp"},
		{"advertisement with a long option", nd(ip6, 136, 0x60, ip6, append([]byte{2, 2}, make([]byte, 14)...)...), "ndp"},
		{"advertisement from afar", change(nd(ip6, 136, 0x60, ip6, lladdr(2, mac)...), 21, 64), "ndp"},
		{"multicast report", nettest.Frame(other, mac, 0x86dd, change(nettest.IPv6(local6, all6, 0, []byte{58, 0, 5, 2, 0, 0, 1, 0, 143, 0, 0, 0, 0, 0, 0, 0}), 7, 1)), "multicast-report"},
		{"hop-by-hop options", v6(ip6, 0, []byte{17, 0, 1, 4, 0, 0, 0, 0, 0, 1, 0, 2, 0, 8, 0, 0}), "extension-header"},
		{"router advertisement behind destination options", v6(local6, 60, append([]byte{58, 0, 1, 4, 0, 0, 0, 0}, nettest.ICMPv6(local6, peer6, 134, make([]byte, 12))...)), "extension-header"},
		{"router advertisement behind a fragment header", v6(local6, 44, append([]byte{58, 0, 0, 1, 0, 0, 0, 7}, nettest.ICMPv6(local6, peer6, 134, make([]byte, 12))...)), "router"},
		{"advertisement behind a fragment header", v6(local6, 44, append([]byte{58, 0, 0, 1, 0, 0, 0, 7}, nettest.ICMPv6(local6, peer6, 136, make([]byte, 20))...)), "ndp"},
		{"options behind a fragment header", v6(local6, 44, append([]byte{60, 0, 0, 1, 0, 0, 0, 7}, make([]byte, 24)...)), "extension-header"},
		{"IPv6 fragment", v6(ip6, 44, append([]byte{17, 0, 0, 1, 0, 0, 0, 7}, udp...)), ""},
		{"later IPv6 fragment", v6(ip6, 44, append([]byte{17, 0, 0, 8, 0, 0, 0, 7}, udp...)), ""},
		{"forged IPv6 fragment", v6(peer6, 44, append([]byte{17, 0, 0, 8, 0, 0, 0, 7}, udp...)), "source-ipv6"},
		{"routing header", v6(ip6, 43, append([]byte{17, 0, 0, 0, 0, 0, 0, 0}, udp...)), "extension-header"},
	} {
		if got := verdict(t, g, g.from, c.frame); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

func TestUnassignedPassesNothing(t *testing.T) {
	g := guards(t, Endpoint{})
	f := v4(ip, 17, 0, nettest.UDP(1, 2, nil))
	if r := verdict(t, g, g.from, f); r != "unassigned" {
		t.Errorf("from guest: %q", r)
	}
	if r := verdict(t, g, g.to, f); r != "unassigned" {
		t.Errorf("to guest: %q", r)
	}
}

func TestReflection(t *testing.T) {
	g := guards(t, whole())
	arp := nettest.Frame(nettest.Broadcast(), mac, 0x0806, nettest.ARP(1, mac, ip, make([]byte, 6), peer))
	if r := verdict(t, g, g.to, arp); r != "reflection" {
		t.Errorf("its own broadcast: %q", r)
	}
	if r := verdict(t, g, g.to, change(arp, 6, other...)); r != "" {
		t.Errorf("another's broadcast: %q", r)
	}
}

func TestNoIPv6(t *testing.T) {
	g := guards(t, Endpoint{MAC: mac, IPv4: ip})
	for _, f := range [][]byte{v6(local6, 17, nettest.UDP6(local6, peer6, 1, 2, nil)), nd(none6, 135, 0, local6)} {
		if r := verdict(t, g, g.from, f); r != "source-ipv6" {
			t.Errorf("%q", r)
		}
	}
}

func TestPolicy(t *testing.T) {
	e := whole()
	e.Policy, e.Deny = true, true
	g := guards(t, e)
	rules := []egress.Rule{
		{Prefix: netip.MustParsePrefix("203.0.113.8/29"), Protocol: 6, Low: 25, High: 25},
		{Allow: true, Prefix: netip.MustParsePrefix("203.0.113.0/24"), Protocol: 6},
		{Allow: true, Prefix: netip.MustParsePrefix("0.0.0.0/0"), Protocol: 17, Low: 123, High: 125},
		{Allow: true, Prefix: netip.MustParsePrefix("fd00:1::/64"), Protocol: 17},
	}
	if err := g.SetPolicy(loopback, egress.Policy{Rules: rules}); err != nil {
		t.Fatal(err)
	}
	send := func(want string, to string, protocol byte, payload []byte, fragment uint16) {
		t.Helper()
		f := nettest.Frame(other, mac, 0x0800, nettest.IPv4(ip, netip.MustParseAddr(to), protocol, fragment, payload))
		if r := verdict(t, g, g.from, f); r != want {
			t.Errorf("to %s: %q, want %q", to, r, want)
		}
	}
	tcp := func(port uint16) []byte { return nettest.TCP(1000, port, 2) }
	udp := func(port uint16) []byte { return nettest.UDP(1000, port, nil) }
	send("", "203.0.113.9", 6, tcp(80), 0)
	send("policy", "203.0.113.9", 6, tcp(25), 0)
	send("", "203.0.113.100", 6, tcp(25), 0)
	send("policy", "198.51.100.1", 6, tcp(80), 0)
	send("", "198.51.100.1", 17, udp(124), 0)
	send("", "203.0.113.9", 17, udp(125), 0)
	send("policy", "203.0.113.9", 17, udp(126), 0)
	send("policy", "198.51.100.1", 1, []byte{8, 0, 0, 0, 0, 0, 0, 0}, 0)
	send("", gate.String(), 17, udp(53), 0)
	send("policy", gate.String(), 17, udp(54), 0)
	send("fragment", "203.0.113.9", 6, tcp(80), 0x2000)
	send("fragment", "203.0.113.9", 6, tcp(80), 5)
	if r := verdict(t, g, g.from, v6(ip6, 17, nettest.UDP6(ip6, peer6, 1, 2, nil))); r != "" {
		t.Errorf("IPv6: %q", r)
	}

	echo := func(kind byte) []byte { return v6(ip6, 58, nettest.ICMPv6(ip6, peer6, kind, make([]byte, 4))) }
	if r := verdict(t, g, g.from, echo(128)); r != "policy" {
		t.Errorf("ping over IPv6: %q", r)
	}
	if r := verdict(t, g, g.from, nd(ip6, 135, 0, peer6)); r != "" {
		t.Errorf("neighbour discovery: %q", r)
	}
	if r := verdict(t, g, g.to, nettest.Frame(mac, other, 0x86dd, nettest.IPv6(peer6, ip6, 58, nettest.ICMPv6(peer6, ip6, 128, make([]byte, 4))))); r != "" {
		t.Errorf("ping of the guest: %q", r)
	}
	if r := verdict(t, g, g.from, echo(129)); r != "" {
		t.Errorf("answer to a ping: %q", r)
	}
	if err := g.SetPolicy(loopback, egress.Policy{Rules: append(rules, egress.Rule{Allow: true, Prefix: netip.MustParsePrefix("::/0"), Protocol: 1})}); err != nil {
		t.Fatal(err)
	}
	if r := verdict(t, g, g.from, echo(128)); r != "" {
		t.Errorf("ping over IPv6 that is allowed: %q", r)
	}

	// Names open addresses for a while, but not those that a rule denies.
	web := []egress.Rule{{Allow: true, Protocol: 6, Low: 443, High: 443}}
	for _, a := range []string{"198.51.100.1", "203.0.113.9"} {
		if err := g.Open(loopback, netip.MustParseAddr(a), time.Hour, web); err != nil {
			t.Fatal(err)
		}
	}
	send("", "198.51.100.1", 6, tcp(443), 0)
	send("policy", "198.51.100.1", 6, tcp(80), 0)
	send("policy", "203.0.113.9", 6, tcp(25), 0)
	if err := g.Open(loopback, netip.MustParseAddr("198.51.100.2"), -time.Second, web); err != nil {
		t.Fatal(err)
	}
	send("policy", "198.51.100.2", 6, tcp(443), 0)
	if open, err := g.Expire(); err != nil || open[loopback] != 2 {
		t.Errorf("open: %v, %v", open, err)
	}

	// Who speaks first to the guest gets an answer, and only there.
	in := nettest.Frame(mac, other, 0x0800, nettest.IPv4(netip.MustParseAddr("192.0.2.7"), ip, 6, 0, nettest.TCP(5555, 80, 2)))
	answer := nettest.Frame(other, mac, 0x0800, nettest.IPv4(ip, netip.MustParseAddr("192.0.2.7"), 6, 0, nettest.TCP(80, 5555, 0x12)))
	if r := verdict(t, g, g.from, answer); r != "policy" {
		t.Errorf("answer to nothing: %q", r)
	}
	if r := verdict(t, g, g.to, in); r != "" {
		t.Errorf("connection: %q", r)
	}
	if r := verdict(t, g, g.from, answer); r != "" {
		t.Errorf("answer: %q", r)
	}
	if r := verdict(t, g, g.from, change(answer, 37, 0xb4)); r != "policy" {
		t.Errorf("answer to another port: %q", r)
	}

	// A new policy asks again.
	if err := g.SetPolicy(loopback, egress.Policy{Rules: rules[:1]}); err != nil {
		t.Fatal(err)
	}
	send("policy", "198.51.100.1", 6, tcp(443), 0)
	send("policy", "203.0.113.100", 6, tcp(25), 0)
	if r := verdict(t, g, g.from, answer); r != "policy" {
		t.Errorf("answer under a new policy: %q", r)
	}
	e.Deny = false
	if err := g.Assign(loopback, e); err != nil {
		t.Fatal(err)
	}
	send("", "198.51.100.1", 6, tcp(443), 0)
	send("policy", "203.0.113.9", 6, tcp(25), 0)
	if err := g.Forget(loopback); err != nil {
		t.Fatal(err)
	}
}

func TestRates(t *testing.T) {
	g := guards(t, whole())
	if err := g.SetPolicy(loopback, egress.Policy{Egress: egress.Rate{PacketsPerSecond: 10, Burst: time.Second}, Ingress: egress.Rate{BytesPerSecond: 1000, Burst: time.Second}}); err != nil {
		t.Fatal(err)
	}
	frame := v4(ip, 17, 0, nettest.UDP(1, 2, make([]byte, 58))) // 100 bytes
	for name, p := range map[string]*ebpf.Program{"packets": g.from, "bytes": g.to} {
		passed := 0
		for range 100 {
			if verdict(t, g, p, frame) == "" {
				passed++
			}
		}
		if passed < 10 || passed > 20 { // 11 and what the time of the loop adds
			t.Errorf("%s: %d of 100 passed", name, passed)
		}
	}
	if err := g.SetPolicy(loopback, egress.Policy{}); err != nil {
		t.Fatal(err)
	}
	if r := verdict(t, g, g.from, frame); r != "" {
		t.Errorf("without a limit: %q", r)
	}
}

func TestCompile(t *testing.T) {
	many := make([]egress.Rule, egress.MaxRules+1)
	for i := range many {
		many[i] = egress.Rule{Prefix: netip.MustParsePrefix("10.0.0.0/8"), Low: uint16(i + 1), High: uint16(i + 1)}
	}
	for _, c := range []struct {
		list []egress.Rule
		want string
	}{
		{many[:egress.MaxRules], ""},
		{many, "more than 16 rules speak of 10.0.0.0/8"},
		{[]egress.Rule{{}}, "no valid prefix"},
		{[]egress.Rule{{Prefix: netip.MustParsePrefix("::/0"), Low: 2, High: 1}}, "ports 2 to 1"},
	} {
		err := CheckRules(c.list)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v: %v", c.want, err)
		}
	}
}

// TestReasons: tap.c's list and counters.go's are one.
func TestReasons(t *testing.T) {
	b, err := os.ReadFile("src/tap.c")
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile(`(?m)^\tR_([A-Z0-9_]+),`).FindAllStringSubmatch(string(b), -1)
	if len(found) != len(reasons)-1 {
		t.Fatalf("tap.c has %d reasons, counters.go %d", len(found), len(reasons)-1)
	}
	words := map[string]string{"ICMPV6": "icmpv6", "REPORT": "multicast-report", "EXTENSION": "extension-header"}
	for i, m := range found {
		want := words[m[1]]
		if want == "" {
			want = strings.ToLower(strings.ReplaceAll(m[1], "_", "-"))
		}
		if reasons[i+1] != want {
			t.Errorf("reason %d is %s in tap.c and %s in counters.go", i+1, m[1], reasons[i+1])
		}
	}
}

// TestReproducible: the object in the repository is what the sources give.
func TestReproducible(t *testing.T) {
	for _, tool := range []string{"clang-14", "llvm-strip-14"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip(err)
		}
	}
	version, err := exec.Command("clang-14", "--version").Output()
	if err != nil || !strings.Contains(string(version), "14.0.6") {
		t.Skipf("another compiler than 14.0.6: %s%v", version, err)
	}
	made := filepath.Join(t.TempDir(), "tap.o")
	if out, err := exec.Command("src/build.sh", made).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	b, err := os.ReadFile(made)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(b, object) {
		t.Error("tap.o is not what src/tap.c compiles to: run make bpf")
	}
}
