package dns

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
)

var guest = netip.MustParseAddr("127.0.0.1")

// book is a Directory with one asker.
type book struct{ asker Asker }

func (b book) Asker(source netip.Addr) (Asker, bool) { return b.asker, source == guest }

func known() Asker {
	return Asker{
		Lookup: func(name string) ([]netip.Addr, bool) {
			if name == "web" || name == "web.net" {
				return []netip.Addr{netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("fd00::2")}, true
			}
			return nil, false
		},
		Reverse: func(a netip.Addr) (string, bool) {
			return "web.net", a == netip.MustParseAddr("10.0.0.2") || a == netip.MustParseAddr("fd00::2")
		},
		Forward: true,
	}
}

// upstream is a resolver of the outside that answers as f says.
func upstream(t testing.TB, f func(q *dns.Msg) *dns.Msg) netip.AddrPort {
	t.Helper()
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &dns.Server{PacketConn: c, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		if m := f(q); m != nil {
			if w.RemoteAddr().Network() == "udp" {
				m.Truncate(maxUDPAnswer)
			}
			w.WriteMsg(m)
		}
	})}
	l, err := net.Listen("tcp", c.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	s2 := &dns.Server{Listener: l, Handler: s.Handler}
	go s.ActivateAndServe()
	go s2.ActivateAndServe()
	t.Cleanup(func() { s.Shutdown(); s2.Shutdown() })
	return c.LocalAddr().(*net.UDPAddr).AddrPort()
}

func records(t testing.TB, lines ...string) []dns.RR {
	t.Helper()
	var all []dns.RR
	for _, l := range lines {
		rr, err := dns.NewRR(l)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, rr)
	}
	return all
}

func serve(t testing.TB, a Asker, o Options) *Server {
	t.Helper()
	s, err := Serve(netip.MustParseAddrPort("127.0.0.1:0"), book{a}, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func exchange(t testing.TB, s *Server, network string, m *dns.Msg) *dns.Msg {
	t.Helper()
	c := dns.Client{Net: network, Timeout: 5 * time.Second}
	in, _, err := c.Exchange(m, s.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return in
}

func TestAnswers(t *testing.T) {
	up := upstream(t, func(q *dns.Msg) *dns.Msg {
		m := new(dns.Msg).SetReply(q)
		switch q.Question[0].Name {
		case "example.org.":
			m.Answer = records(t, "example.org. 300 IN CNAME cdn.example.net.", "cdn.example.net. 60 IN A 192.0.2.7")
		case "big.example.org.":
			for i := range 100 {
				m.Answer = append(m.Answer, records(t, fmt.Sprintf("big.example.org. 60 IN TXT %q", strings.Repeat("x", 50+i%10)))...)
			}
		default:
			m.Rcode = dns.RcodeNameError
		}
		return m
	})
	s := serve(t, known(), Options{Upstreams: []netip.AddrPort{up}})
	for _, network := range []string{"udp", "tcp"} {
		for _, c := range []struct {
			name string
			kind uint16
			code int
			want string
		}{
			{"web.", dns.TypeA, 0, "10.0.0.2"},
			{"WEB.net.", dns.TypeAAAA, 0, "fd00::2"},
			{"web.", dns.TypeMX, 0, ""},
			{"2.0.0.10.in-addr.arpa.", dns.TypePTR, 0, "web.net."},
			{"2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa.", dns.TypePTR, 0, "web.net."},
			{"3.0.0.10.in-addr.arpa.", dns.TypePTR, dns.RcodeNameError, ""},
			{"example.org.", dns.TypeA, 0, "cdn.example.net. 192.0.2.7"},
			{"nobody.", dns.TypeA, dns.RcodeNameError, ""},
			{"web.", dns.TypeANY, dns.RcodeRefused, ""},
			{"web.", dns.TypeAXFR, dns.RcodeRefused, ""},
		} {
			in := exchange(t, s, network, new(dns.Msg).SetQuestion(c.name, c.kind))
			var got []string
			for _, rr := range in.Answer {
				got = append(got, strings.TrimPrefix(rr.String(), rr.Header().String()))
			}
			if in.Rcode != c.code || strings.Join(got, " ") != c.want {
				t.Errorf("%s %s over %s: %s, %q", c.name, dns.TypeToString[c.kind], network, dns.RcodeToString[in.Rcode], got)
			}
		}
	}
	in := exchange(t, s, "tcp", new(dns.Msg).SetQuestion("big.example.org.", dns.TypeTXT))
	if len(in.Answer) != 100 {
		t.Errorf("%d of 100 records over TCP", len(in.Answer))
	}
	if in = exchange(t, s, "udp", new(dns.Msg).SetQuestion("big.example.org.", dns.TypeTXT)); !in.Truncated {
		t.Errorf("%d bytes over UDP, not marked as truncated", in.Len())
	}
	for code, m := range map[int]*dns.Msg{
		dns.RcodeNotImplemented: {MsgHdr: dns.MsgHdr{Opcode: dns.OpcodeUpdate}, Question: []dns.Question{{Name: "a.", Qtype: 1, Qclass: 1}}},
		dns.RcodeFormatError:    {Question: []dns.Question{{Name: "a.", Qtype: 1, Qclass: 1}, {Name: "b.", Qtype: 1, Qclass: 1}}},
		dns.RcodeRefused:        {Question: []dns.Question{{Name: "version.bind.", Qtype: dns.TypeTXT, Qclass: dns.ClassCHAOS}}},
	} {
		raw, err := m.Pack()
		if err != nil {
			t.Fatal(err)
		}
		var in dns.Msg
		if err := in.Unpack(s.resolver.answer(context.Background(), guest, raw, false)); err != nil || in.Rcode != code {
			t.Errorf("%s: %s, %v", dns.RcodeToString[code], dns.RcodeToString[in.Rcode], err)
		}
	}
	stranger := netip.MustParseAddr("10.9.9.9")
	raw, _ := new(dns.Msg).SetQuestion("web.", dns.TypeA).Pack()
	if out := s.resolver.answer(context.Background(), stranger, raw, false); out != nil {
		t.Errorf("a stranger is answered: %x", out)
	}
}

// TestForwarding: who may, to whom, what becomes of silent and lying upstreams, and what is opened.
func TestForwarding(t *testing.T) {
	silent := upstream(t, func(*dns.Msg) *dns.Msg { return nil })
	var asked sync.Map
	liar := upstream(t, func(q *dns.Msg) *dns.Msg {
		asked.Store(q.Question[0].Name, true)
		m := new(dns.Msg).SetReply(q)
		m.Question[0].Name = "other."
		m.Answer = records(t, "other. 60 IN A 192.0.2.66")
		return m
	})
	honest := upstream(t, func(q *dns.Msg) *dns.Msg {
		m := new(dns.Msg).SetReply(q)
		m.Answer = records(t, q.Question[0].Name+" 30 IN A 192.0.2.1", q.Question[0].Name+" 20 IN A 192.0.2.2")
		return m
	})
	a := known()
	s := serve(t, a, Options{Upstreams: []netip.AddrPort{liar, silent, honest}})
	if in := exchange(t, s, "udp", new(dns.Msg).SetQuestion("a.example.", dns.TypeA)); len(in.Answer) != 2 {
		t.Errorf("%v", in)
	}
	if _, ok := asked.Load("a.example."); !ok {
		t.Error("the first upstream was not asked first")
	}
	a.Upstreams = []netip.AddrPort{honest}
	a.Allow = func(name string) bool { return name != "secret.example" }
	opened := make(chan string, 1)
	a.Opened = func(name string, addresses []netip.Addr, ttl time.Duration) {
		opened <- fmt.Sprint(name, addresses, ttl)
	}
	s = serve(t, a, Options{Upstreams: []netip.AddrPort{liar}})
	if in := exchange(t, s, "udp", new(dns.Msg).SetQuestion("B.example.", dns.TypeA)); len(in.Answer) != 2 {
		t.Errorf("%v", in)
	}
	if got := <-opened; got != "b.example[192.0.2.1 192.0.2.2] 20s" {
		t.Error(got)
	}
	if in := exchange(t, s, "udp", new(dns.Msg).SetQuestion("secret.example.", dns.TypeA)); in.Rcode != dns.RcodeRefused {
		t.Errorf("%v", in)
	}
	a.Forward = false
	s = serve(t, a, Options{Upstreams: []netip.AddrPort{honest}})
	if in := exchange(t, s, "udp", new(dns.Msg).SetQuestion("b.example.", dns.TypeA)); in.Rcode != dns.RcodeNameError {
		t.Errorf("%v", in)
	}
	a.Forward, a.Upstreams = true, []netip.AddrPort{liar}
	s = serve(t, a, Options{})
	if in := exchange(t, s, "udp", new(dns.Msg).SetQuestion("c.example.", dns.TypeA)); in.Rcode != dns.RcodeRefused && in.Rcode != dns.RcodeServerFailure {
		t.Errorf("%v", in)
	}
}

func TestBounds(t *testing.T) {
	r := NewResolver(book{known()}, Options{})
	one, two := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
	for i := range maxPerAsker + 1 {
		if got := r.enter(one); got != (i < maxPerAsker) {
			t.Fatalf("query %d: %v", i, got)
		}
	}
	if !r.enter(two) {
		t.Error("one asker keeps another out")
	}
	r.leave(one)
	if !r.enter(one) {
		t.Error("a place is not given back")
	}
}

func TestNameservers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(path, []byte("# x\nnameserver 127.0.0.53\nnameserver ::1 \nsearch a\nnameserver bad\nnameserver 10.0.0.1\nnameserver 10.0.0.2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	h := newHostResolvers(Options{ResolvConf: path})
	if got := fmt.Sprint(h.get()); got != "[127.0.0.53:53 [::1]:53 10.0.0.1:53]" {
		t.Error(got)
	}
}

// FuzzQuery: whatever a guest sends, the answer is nothing or a well-formed reply to it, no longer than it may be.
func FuzzQuery(f *testing.F) {
	for _, name := range []string{"web.", "a.b.c.", "2.0.0.10.in-addr.arpa.", "x.ip6.arpa."} {
		raw, _ := new(dns.Msg).SetQuestion(name, dns.TypeA).Pack()
		f.Add(raw, false)
		raw, _ = new(dns.Msg).SetQuestion(name, dns.TypePTR).SetEdns0(4096, true).Pack()
		f.Add(raw, true)
	}
	a := known()
	a.Forward = false
	r := NewResolver(book{a}, Options{Upstreams: []netip.AddrPort{}})
	f.Fuzz(func(t *testing.T, raw []byte, tcp bool) {
		out := r.answer(context.Background(), guest, raw, tcp)
		if out == nil {
			return
		}
		var in dns.Msg
		if err := in.Unpack(out); err != nil {
			t.Fatalf("%v: %x", err, out)
		}
		if !in.Response || in.Id != uint16(raw[0])<<8|uint16(raw[1]) || (!tcp && len(out) > maxUDPAnswer) {
			t.Fatalf("%v, %d bytes", in, len(out))
		}
	})
}

// FuzzReverse: an address that is read from a name makes that name again.
func FuzzReverse(f *testing.F) {
	f.Add("1.2.3.10.in-addr.arpa")
	f.Add("2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa")
	f.Fuzz(func(t *testing.T, name string) {
		a, ok := reverse(strings.ToLower(name))
		if !ok {
			return
		}
		again, err := dns.ReverseAddr(a.String())
		if err != nil || strings.TrimSuffix(again, ".") != strings.ToLower(name) {
			t.Errorf("%s is %s, which is %s (%v)", name, a, again, err)
		}
	})
}
