package network

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	mdns "github.com/miekg/dns"

	"github.com/cradlevm/cradle/network/nettest"
)

// TestEgressPolicy: what a guest may send is what its policy says, changed live; names open addresses, and only names that
// are allowed can be asked for; who speaks first to the guest is answered; rates hold both ways.
func TestEgressPolicy(t *testing.T) {
	nettest.NeedRoot(t)
	world := nettest.NewOutside(t)
	listen(t, world, "world")
	zone := map[string]string{"good.example.": nettest.OutsideAddr().String(), "metadata.example.": "169.254.169.254"}
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &mdns.Server{PacketConn: c, Handler: mdns.HandlerFunc(func(w mdns.ResponseWriter, q *mdns.Msg) {
		m := new(mdns.Msg).SetReply(q)
		if a, ok := zone[q.Question[0].Name]; ok {
			m.Answer = []mdns.RR{&mdns.A{Hdr: mdns.RR_Header{Name: q.Question[0].Name, Rrtype: mdns.TypeA, Class: mdns.ClassINET, Ttl: 60}, A: net.ParseIP(a)}}
		}
		w.WriteMsg(m)
	})}
	go server.ActivateAndServe()
	t.Cleanup(func() { server.Shutdown() })
	h := &house{t: t, dir: t.TempDir()}
	n, err := Open(context.Background(), Options{Dir: h.dir, Upstreams: []netip.AddrPort{c.LocalAddr().(*net.UDPAddr).AddrPort()}})
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
