package network

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	mdns "github.com/miekg/dns"

	"github.com/cradlevm/cradle/network/nettest"
)

// serveZone is a resolver of the world's: names stand for addresses, or with a dot at their end for other names.
func serveZone(t *testing.T, zone map[string]string) netip.AddrPort {
	t.Helper()
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &mdns.Server{PacketConn: c, Handler: mdns.HandlerFunc(func(w mdns.ResponseWriter, q *mdns.Msg) {
		m := new(mdns.Msg).SetReply(q)
		name := q.Question[0].Name
		header := func(kind uint16) mdns.RR_Header {
			return mdns.RR_Header{Name: name, Rrtype: kind, Class: mdns.ClassINET, Ttl: 60}
		}
		for target := zone[name]; strings.HasSuffix(target, "."); target = zone[name] {
			m.Answer = append(m.Answer, &mdns.CNAME{Hdr: header(mdns.TypeCNAME), Target: target})
			name = target
		}
		if a, ok := zone[name]; ok {
			m.Answer = append(m.Answer, &mdns.A{Hdr: header(mdns.TypeA), A: net.ParseIP(a)})
		}
		w.WriteMsg(m)
	})}
	go server.ActivateAndServe()
	t.Cleanup(func() { server.Shutdown() })
	return c.LocalAddr().(*net.UDPAddr).AddrPort()
}

// TestEgressPolicy: what a guest may send is what its policy says, changed live; names open addresses, and only names that
// are allowed can be asked for; who speaks first to the guest is answered; rates hold both ways.
func TestEgressPolicy(t *testing.T) {
	nettest.NeedRoot(t)
	world := nettest.NewOutside(t)
	listen(t, world, "world")
	zone := map[string]string{"good.example.": nettest.OutsideAddr().String(), "metadata.example.": "169.254.169.254"}
	h := &house{t: t, dir: t.TempDir()}
	n, err := Open(context.Background(), Options{Dir: h.dir, Upstreams: []netip.AddrPort{serveZone(t, zone)}})
	if err != nil {
		t.Fatal(err)
	}
	h.kernel = n.path.(*kernel)
	t.Cleanup(func() { h.Reset(context.Background()); h.Close() })
	h.create(Spec{Name: "n"})
	a, ea := h.guest(EndpointSpec{Network: "n", Name: "a", Ports: []PortSpec{{Protocol: "tcp", Host: 8080, Container: 7}},
		Policy: Policy{Deny: true, Names: []NameRule{{Name: "*.example", Protocol: "tcp"}}}})
	b, eb := h.guest(EndpointSpec{Network: "n", Name: "b"})
	listen(t, a, "a")
	listen(t, b, "b")
	far := port7(nettest.OutsideAddr())
	set := func(p Policy) {
		t.Helper()
		if err := h.SetPolicy(context.Background(), ea.ID, p); err != nil {
			t.Fatal(err)
		}
	}

	closed(t, door{a, far}, door{a, port7(eb.IPv4.Addr())}) // its own network too
	if _, err := resolve(a, ea.Resolvers[0], "udp", "secret.elsewhere", mdns.TypeA); err == nil || err.Error() != "REFUSED" {
		t.Errorf("a question that could carry a secret out: %v", err)
	}
	if got, err := resolve(a, ea.Resolvers[0], "udp", "b", mdns.TypeA); err != nil || got != eb.IPv4.Addr().String() {
		t.Errorf("a container's name: %q, %v", got, err)
	}
	set(Policy{Deny: true, Names: []NameRule{{Name: "*.example", Protocol: "tcp"}, {Name: "b", Protocol: "tcp", Low: 7, High: 7}}})
	if _, err := resolve(a, ea.Resolvers[0], "udp", "b", mdns.TypeA); err != nil || ask(a, "tcp", port7(eb.IPv4.Addr())) == "" {
		t.Errorf("a container whose name is allowed is closed: %v", err)
	}
	set(Policy{Deny: true, Names: []NameRule{{Name: "*.example", Protocol: "tcp"}}})
	closed(t, door{a, port7(eb.IPv4.Addr())})
	for name, want := range zone {
		if got, err := resolve(a, ea.Resolvers[0], "udp", name, mdns.TypeA); err != nil || got != want {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	if got := ask(a, "tcp", far); got == "" {
		t.Error("an opened address is closed")
	}
	if got := once(a, "udp", far); got != "" {
		t.Error("another protocol is open too")
	}
	closed(t, door{a, netip.MustParseAddrPort("169.254.169.254:80")})
	if got := ask(world, "tcp", netip.AddrPortFrom(nettest.HostAddr(), 8080)); got != "a sees "+nettest.OutsideAddr().String() {
		t.Errorf("the published port: %q", got)
	}
	if got := ask(b, "tcp", port7(ea.IPv4.Addr())); got == "" {
		t.Error("a neighbour is not answered")
	}

	set(Policy{Rules: []Rule{{Prefix: prefix("203.0.113.0/24"), Protocol: "tcp"}}})
	if once(a, "tcp", far) != "" || ask(a, "udp", far) == "" || ask(a, "tcp", port7(eb.IPv4.Addr())) == "" {
		t.Error("a single denial is not what is in force")
	}
	before, _, err := h.Counters(ea.ID)
	if err != nil || before.Dropped["policy"] == 0 {
		t.Errorf("%v, %v", before, err)
	}
	if err := h.SetPolicy(context.Background(), ea.ID, Policy{Rules: []Rule{{Prefix: prefix("10.0.0.1/8")}}}); !errors.Is(err, ErrInvalid) {
		t.Errorf("%v", err)
	}
	h.Close()
	h.open()
	if r, err := h.Reconcile(context.Background(), Live{Sandboxes: []string{ea.Sandbox, eb.Sandbox}}); err != nil || len(r.Made) > 0 {
		t.Errorf("%+v, %v", r, err)
	}
	if once(a, "tcp", far) != "" || ask(a, "udp", far) == "" {
		t.Error("the policy does not outlast the daemon")
	}
	set(Policy{})
	reaches(t, a, far, "world")

	const rate, burst = 1 << 20, 50 * time.Millisecond
	const least = (transferred*time.Second/rate - burst) * 9 / 10
	for _, p := range []Policy{{Egress: Rate{BytesPerSecond: rate, Burst: burst}}, {Ingress: Rate{BytesPerSecond: rate, Burst: burst}}} {
		set(p)
		if took := transfer(t, a, far); took < least {
			t.Errorf("%d bytes there and back under %+v took %v", transferred, p, took)
		}
	}
	from, to, err := h.Counters(ea.ID)
	if err != nil || from.Dropped["rate"] == 0 || to.Dropped["rate"] == 0 {
		t.Errorf("%v, %v, %v", from, to, err)
	}
}

// transferred is how much transfer sends, bytes: little, since TCP takes its time to find a rate that drops.
const transferred = 1 << 18

// transfer sends so much to an echo and takes it back.
func transfer(t *testing.T, p place, at netip.AddrPort) time.Duration {
	t.Helper()
	begin := time.Now()
	err := p.Try(func() error {
		c, err := net.DialTimeout("tcp", at.String(), 5*time.Second)
		if err != nil {
			return err
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(60 * time.Second))
		go func() {
			c.Write(make([]byte, transferred))
			c.(*net.TCPConn).CloseWrite()
		}()
		_, err = io.Copy(io.Discard, c)
		return err
	})
	if err != nil {
		t.Errorf("transfer: %v", err)
	}
	return time.Since(begin)
}

// TestRuleCounts: what each rule has decided about is counted, answers to it among that, and goes on being counted when other rules
// come and go, and when the daemon does.
func TestRuleCounts(t *testing.T) {
	h := newHouse(t)
	h.create(Spec{Name: "n", IPv6: hasIPv6()})
	near := Rule{Allow: true, Prefix: prefix("0.0.0.0/0"), Protocol: "tcp", Low: 7, High: 7}
	refused := Rule{Prefix: prefix("0.0.0.0/0"), Protocol: "udp"}
	a, ea := h.guest(EndpointSpec{Network: "n", Name: "a", Policy: Policy{Deny: true, Rules: []Rule{near}, Names: []NameRule{{Name: "b", Protocol: "udp"}}}})
	b, eb := h.guest(EndpointSpec{Network: "n", Name: "b"})
	listen(t, b, "b")
	at := port7(eb.IPv4.Addr())
	counts := func() RuleCounts {
		t.Helper()
		c, err := h.RuleCounts(ea.ID)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	closed(t, door{a, netip.AddrPortFrom(eb.IPv4.Addr(), 8)})
	if c := counts(); c.Rules[near].Packets != 0 || c.Default == nil || c.Default.Packets == 0 || c.Default.Bytes < 40*c.Default.Packets {
		t.Errorf("before: %+v, %+v", c, c.Default)
	}
	if ask(a, "tcp", at) == "" || ask(a, "udp", at) != "" {
		t.Fatal("the policy is not in force")
	}
	if _, err := resolve(a, ea.Resolvers[0], "udp", "b", mdns.TypeA); err != nil || ask(a, "udp", at) == "" {
		t.Fatalf("the name does not open: %v", err)
	}
	c := counts()
	name := NameRule{Name: "b", Protocol: "udp"}
	if c.Rules[near].Packets < 3 || c.Rules[near].Bytes < 3*54 || c.Names[name].Packets == 0 {
		t.Errorf("%+v, %+v", c, c.Default)
	}
	if err := h.SetPolicy(context.Background(), ea.ID, Policy{Rules: []Rule{refused, near}}); err != nil {
		t.Fatal(err)
	}
	once(a, "udp", at)
	// The last word of a connection may come after its end.
	if n := counts(); n.Rules[near].Packets < c.Rules[near].Packets || n.Rules[refused].Packets == 0 || len(n.Names) > 0 || n.Default.Packets != 0 {
		t.Errorf("after a change: %+v, %+v; before: %+v", n, n.Default, c)
	}
	h.reopen(ea.Sandbox, eb.Sandbox)
	if ask(a, "tcp", at) == "" {
		t.Fatal("the policy does not outlast the daemon")
	}
	if n := counts(); n.Rules[near].Packets <= c.Rules[near].Packets {
		t.Errorf("with the next daemon: %+v; before: %+v", n, c)
	}
	if _, err := h.RuleCounts("x"); !errors.Is(err, ErrNotFound) {
		t.Errorf("%v", err)
	}
}

// denied is a policy and what is asked under it. The zone has an alias of a name that is denied, and a container is named b.
func denied() (zone map[string]string, p Policy, want map[string]bool) {
	zone = map[string]string{"good.example.": "192.0.2.1", "bad.example.": "192.0.2.2", "sub.bad.example.": "192.0.2.3", "alias.example.": "bad.example.",
		"fine.bad.example.": "192.0.2.4", "notbad.example.": "192.0.2.5", "below.star.example.": "192.0.2.6", "star.example.": "192.0.2.7"}
	p = Policy{Names: []NameRule{{Name: "fine.bad.example"}, {Deny: true, Name: "Bad.example"}, {Deny: true, Name: "*.star.example"}, {Deny: true, Name: "b"}}}
	want = map[string]bool{"good.example": true, "bad.example": false, "BAD.Example": false, "sub.bad.example": false, "alias.example": false,
		"fine.bad.example": true, "notbad.example": true, "below.star.example": false, "star.example": true, "b": false}
	return zone, p, want
}

// TestDeniedNames: the resolver answers for no name that is denied, none below it and no alias of it, whatever else is allowed; rules
// count the questions.
func TestDeniedNames(t *testing.T) {
	nettest.NeedRoot(t)
	zone, p, want := denied()
	h := &house{t: t, dir: t.TempDir()}
	n, err := Open(context.Background(), Options{Dir: h.dir, Upstreams: []netip.AddrPort{serveZone(t, zone)}})
	if err != nil {
		t.Fatal(err)
	}
	h.kernel = n.path.(*kernel)
	t.Cleanup(func() { h.Reset(context.Background()); h.Close() })
	h.create(Spec{Name: "n"})
	a, ea := h.guest(EndpointSpec{Network: "n", Name: "a", Policy: p})
	_, eb := h.guest(EndpointSpec{Network: "n", Name: "b"})
	check := func(want map[string]bool, otherwise string) {
		t.Helper()
		for name, answered := range want {
			_, err := resolve(a, ea.Resolvers[0], "udp", name, mdns.TypeA)
			if answered && err != nil || !answered && (err == nil || err.Error() != "NXDOMAIN" && err.Error() != otherwise) {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	check(want, "")
	c, err := h.RuleCounts(ea.ID)
	if err != nil || c.Names[p.Names[1]].Packets != 4 || c.Names[p.Names[2]].Packets != 1 || c.Names[p.Names[3]].Packets != 1 || c.Default != nil {
		t.Errorf("%+v, %v", c, err)
	}

	// Under a policy that denies the rest, what is allowed of them is opened, and nothing else.
	p.Deny, p.Names = true, append(p.Names, NameRule{Name: "*.example"})
	if err := h.SetPolicy(context.Background(), ea.ID, p); err != nil {
		t.Fatal(err)
	}
	check(want, "REFUSED")
	open, err := h.links.guards.Expire()
	if _, index, e := h.tapOf(ea.ID); err != nil || e != nil || open[index] != 4 {
		t.Errorf("%d addresses are open: %v, %v", open[index], err, e)
	}
	if _, err := resolve(a, ea.Resolvers[0], "udp", eb.IPv4.Addr().String(), mdns.TypeA); err == nil || err.Error() != "REFUSED" {
		t.Errorf("what no rule speaks of: %v", err)
	}
	for _, bad := range []NameRule{{Deny: true, Name: "a", Protocol: "tcp"}, {Deny: true, Name: "a", Low: 1, High: 2}} {
		if err := (Policy{Names: []NameRule{bad}}).Check(); !errors.Is(err, ErrInvalid) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
}
