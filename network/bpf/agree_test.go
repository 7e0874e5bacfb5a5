package bpf

import (
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/cradlevm/cradle/network/egress"
	"github.com/cradlevm/cradle/network/nettest"
)

// TestFilterAgrees: under random policies, the programs and egress.Filter decide alike about random conversations, and count alike
// what each rule has decided about.
func TestFilterAgrees(t *testing.T) {
	e := whole()
	e.Policy = true
	g := guards(t, e)
	random := rand.New(rand.NewPCG(3, 4))
	pick := func(words ...string) netip.Prefix { return netip.MustParsePrefix(words[random.IntN(len(words))]) }
	address := func() netip.Addr {
		return []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.200"), netip.MustParseAddr("198.51.100.7"), gate}[random.IntN(4)]
	}
	port := func() uint16 { return []uint16{22, 53, 80, 443}[random.IntN(4)] }
	rule := func(id uint64) egress.Rule {
		r := egress.Rule{Allow: random.IntN(2) == 0, Protocol: []uint8{0, 1, 6, 17}[random.IntN(4)], ID: id,
			Prefix: pick("0.0.0.0/0", "192.0.2.0/24", "192.0.2.1/32", "198.51.100.0/25", "::/0", gate.String()+"/32")}
		if r.Protocol != 1 && random.IntN(2) == 0 {
			r.Low = port()
			r.High = r.Low + uint16(random.IntN(400))
		}
		return r
	}
	verdicts := map[egress.Verdict]int{}
	for range 60 {
		p := egress.Policy{Deny: random.IntN(2) == 0, Counted: []uint64{egress.DefaultAllow, egress.DefaultDeny, 1000}}
		for i := range random.IntN(10) {
			p.Rules = append(p.Rules, rule(uint64(100+i)))
		}
		if !p.Asks() {
			continue
		}
		e.Deny = p.Deny
		f := egress.NewFilter(gate)
		f.Set(p)
		if err := g.SetPolicy(loopback, egress.Policy{}); err != nil {
			t.Fatal(err)
		}
		if err := g.SetPolicy(loopback, p); err != nil {
			t.Fatal(err)
		}
		if err := g.Assign(loopback, e); err != nil {
			t.Fatal(err)
		}
		for range 200 {
			remote, mine, theirs := address(), port(), port()
			protocol := []byte{1, 6, 17, 47}[random.IntN(4)]
			fragment := []uint16{0, 0, 0, 0, 0, 0, 0x2000, 5}[random.IntN(8)]
			kind := []byte{0, 8}[random.IntN(2)]
			flags := []byte{2, 0x12, 0x10}[random.IntN(3)]
			upper := func(source, destination uint16) []byte {
				switch protocol {
				case 6:
					return nettest.TCP(source, destination, flags)
				case 17:
					return nettest.UDP(source, destination, nil)
				}
				return []byte{kind, 0, 0, 0, 0, 0, 0, 0}
			}
			switch random.IntN(10) {
			case 0:
				rules := []egress.Rule{rule(1000)}
				if err := g.Open(loopback, remote, time.Hour, rules); err != nil {
					t.Fatal(err)
				}
				if err := f.Open(remote, time.Hour, rules); err != nil {
					t.Fatal(err)
				}
			case 1, 2, 3:
				packet := nettest.IPv4(remote, ip, protocol, fragment, upper(theirs, mine))
				if r := verdict(t, g, g.to, nettest.Frame(mac, other, 0x0800, packet)); r != "" {
					t.Fatalf("to the guest: %s", r)
				}
				f.Receive(packet)
			default:
				packet := nettest.IPv4(ip, remote, protocol, fragment, upper(mine, theirs))
				frame := nettest.Frame(other, mac, 0x0800, packet)
				got := verdict(t, g, g.from, frame)
				v := f.Send(packet, len(frame))
				verdicts[v]++
				want := map[egress.Verdict]string{egress.Pass: "", egress.Denied: "policy", egress.Fragment: "fragment", egress.Short: "runt"}[v]
				if got != want {
					t.Fatalf("%x under %+v: the program says %q, the filter %q", packet, p, got, want)
				}
			}
		}
		counts, err := g.Decided(loopback)
		if err != nil {
			t.Fatal(err)
		}
		for id, want := range f.Counts() {
			if counts[id] != want {
				t.Errorf("rule %d: the programs count %+v, the filter %+v", id, counts[id], want)
			}
		}
	}
	if verdicts[egress.Pass] < 1000 || verdicts[egress.Denied] < 1000 || verdicts[egress.Fragment] < 100 {
		t.Errorf("the test tests too little: %v", verdicts)
	}
}
