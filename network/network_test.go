package network

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	mdns "github.com/miekg/dns"
	"github.com/vishvananda/netlink"

	"github.com/cradlevm/cradle/network/nettest"
)

// house is Networks in a test's namespace, and the guests on them.
type house struct {
	*kernel
	t    testing.TB
	dir  string
	told chan string // endpoints that the watch told lost
}

func newHouse(t testing.TB) *house {
	t.Helper()
	nettest.NeedRoot(t)
	h := &house{t: t, dir: t.TempDir(), told: make(chan string, 2)}
	h.open()
	t.Cleanup(func() {
		if err := errors.Join(h.Reset(context.Background()), h.Close()); err != nil {
			t.Error(err)
		}
	})
	return h
}

func (h *house) open() {
	h.t.Helper()
	n, err := Open(context.Background(), Options{Dir: h.dir, Upstreams: []netip.AddrPort{}, Log: slog.New(slog.NewTextHandler(h.t.Output(), nil)),
		Lost: func(id string) bool {
			select {
			case h.told <- id:
			default: // told often enough
			}
			return false
		}})
	if err != nil {
		h.t.Fatal(err)
	}
	h.kernel = n.path.(*kernel)
}

// reopen is what a new daemon does after the old one has gone.
func (h *house) reopen(live ...string) Report {
	h.t.Helper()
	if err := h.Close(); err != nil {
		h.t.Fatal(err)
	}
	h.open()
	r, err := h.Reconcile(context.Background(), Live{Sandboxes: live})
	if err != nil {
		h.t.Fatal(err)
	}
	return r
}

func (h *house) create(s Spec) Network {
	h.t.Helper()
	n, err := h.Create(context.Background(), s)
	if err != nil {
		h.t.Fatal(err)
	}
	return n
}

// attach makes an endpoint on a TAP of its own.
func (h *house) attach(s EndpointSpec) Endpoint {
	h.t.Helper()
	e, err := h.tryAttach(s)
	if err != nil {
		h.t.Fatal(err)
	}
	return e
}

func (h *house) tryAttach(s EndpointSpec) (Endpoint, error) {
	h.t.Helper()
	var err error
	if s.TAP == "" {
		if s.TAP, err = h.MakeTAP(context.Background()); err != nil {
			h.t.Fatal(err)
		}
	}
	if s.Sandbox == "" {
		s.Sandbox = "sandbox-" + s.Name
	}
	if s.Container == "" {
		s.Container = fmt.Sprintf("%x", sha256.Sum256([]byte(s.Name)))
	}
	return h.Attach(context.Background(), s)
}

// guest attaches a guest with a stack of its own.
func (h *house) guest(s EndpointSpec) (*nettest.Guest, Endpoint) {
	h.t.Helper()
	e := h.attach(s)
	g := nettest.NewGuest(h.t, e.TAP)
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) { // the bridge hears of the carrier later
		link, err := netlink.LinkByName(e.TAP)
		if err != nil || time.Now().After(end) {
			h.t.Fatalf("%s does not come up: %v", e.TAP, err)
		}
		if link.Attrs().OperState == netlink.OperUp {
			break
		}
	}
	g.Configure(e.MAC, e.MTU, []netip.Prefix{e.IPv4, e.IPv6}, []netip.Addr{e.Gateway4, e.Gateway6})
	return g, e
}

// place is where code can run: a guest, or the world.
type place interface{ Try(func() error) error }

// listen serves a line that names who answers, over TCP and UDP at port 7.
func listen(t testing.TB, p place, who string) {
	t.Helper()
	var (
		l net.Listener
		c net.PacketConn
	)
	err := p.Try(func() (err error) {
		if l, err = net.Listen("tcp", ":7"); err != nil {
			return err
		}
		c, err = net.ListenPacket("udp", ":7")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close(); c.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				from, _, _ := net.SplitHostPort(conn.RemoteAddr().String())
				fmt.Fprintf(conn, "%s sees %s\n", who, from)
				io.Copy(conn, conn)
			}()
		}
	}()
	go func() {
		buf := make([]byte, 2048)
		for {
			_, from, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			c.WriteTo([]byte(who+"\n"), from)
		}
	}()
}

// wait is for an answer. A closed door is silent, so that each one costs as much; who is to be reached is asked again.
const wait = 300 * time.Millisecond

// ask connects and returns the first line; empty: nobody answered, however often asked.
func ask(p place, network string, at netip.AddrPort) string {
	for range 10 {
		if got := once(p, network, at); got != "" {
			return got
		}
	}
	return ""
}

// once asks once.
func once(p place, network string, at netip.AddrPort) string {
	var line string
	p.Try(func() error {
		c, err := net.DialTimeout(network, at.String(), wait)
		if err != nil {
			return err
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(wait))
		if strings.HasPrefix(network, "udp") {
			c.Write([]byte("?"))
		}
		line, err = bufio.NewReader(c).ReadString('\n')
		return err
	})
	return strings.TrimSpace(line)
}

// here is the host itself.
type here struct{}

func (here) Try(f func() error) error { return f() }

func port7(a netip.Addr) netip.AddrPort { return netip.AddrPortFrom(a, 7) }

func reaches(t testing.TB, p place, at netip.AddrPort, want string) {
	t.Helper()
	for _, network := range []string{"tcp", "udp"} {
		got := ask(p, network, at)
		if !strings.HasPrefix(got, want) || got == "" {
			t.Errorf("%s %s: %q, want %q", network, at, got, want)
		}
	}
}

// door is a port that somebody may or may not reach from a place.
type door struct {
	from place
	at   netip.AddrPort
}

// closed tries doors, all at once: none opens.
func closed(t testing.TB, doors ...door) {
	t.Helper()
	var tries sync.WaitGroup
	for _, d := range doors {
		for _, network := range []string{"tcp", "udp"} {
			tries.Go(func() {
				if got := once(d.from, network, d.at); got != "" {
					t.Errorf("%s %s is open: %q", network, d.at, got)
				}
			})
		}
	}
	tries.Wait()
}

// resolve asks a resolver that is to answer, if only to refuse.
func resolve(p place, server netip.Addr, network, name string, kind uint16) (string, error) {
	return resolveWithin(2*time.Second, p, server, network, name, kind)
}

func resolveWithin(limit time.Duration, p place, server netip.Addr, network, name string, kind uint16) (string, error) {
	var answer string
	err := p.Try(func() error {
		c := mdns.Client{Net: network, Timeout: limit}
		m, _, err := c.Exchange(new(mdns.Msg).SetQuestion(mdns.Fqdn(name), kind), netip.AddrPortFrom(server, 53).String())
		if err != nil {
			return err
		}
		if m.Rcode != mdns.RcodeSuccess {
			return errors.New(mdns.RcodeToString[m.Rcode])
		}
		for _, rr := range m.Answer {
			answer += strings.TrimPrefix(rr.String(), rr.Header().String()) + " "
		}
		return nil
	})
	return strings.TrimSpace(answer), err
}

// TestBridgeNetwork: containers of a network reach each other by address and name, over IPv4 and IPv6, and the world; others
// do not reach them; neither does anybody get at the host.
func TestBridgeNetwork(t *testing.T) {
	h := newHouse(t)
	world := nettest.NewOutside(t)
	listen(t, world, "world")
	listen(t, here{}, "host")
	one := h.create(Spec{Name: "one", IPv6: true})
	other := h.create(Spec{Name: "other"})
	inner := h.create(Spec{Name: "inner", Internal: true})
	apart := h.create(Spec{Name: "apart", Options: map[string]string{OptionIsolate: "true"}})
	a, ea := h.guest(EndpointSpec{Network: one.Name, Name: "a", Aliases: []string{"db"}})
	b, eb := h.guest(EndpointSpec{Network: one.ID, Name: "b"})
	c, ec := h.guest(EndpointSpec{Network: other.ID[:8], Name: "c"})
	d, ed := h.guest(EndpointSpec{Network: inner.Name, Name: "d"})
	d2, ed2 := h.guest(EndpointSpec{Network: inner.Name, Name: "d2"})
	x, ex := h.guest(EndpointSpec{Network: apart.Name, Name: "x"})
	y, _ := h.guest(EndpointSpec{Network: apart.Name, Name: "y"})
	for who, p := range map[string]place{"a": a, "b": b, "c": c, "d": d, "x": x} {
		listen(t, p, who)
	}
	t.Run("together", func(t *testing.T) {
		reaches(t, a, port7(eb.IPv4.Addr()), "b")
		reaches(t, b, port7(ea.IPv4.Addr()), "a")
		reaches(t, b, port7(ea.IPv6.Addr()), "a")
		reaches(t, here{}, port7(ea.IPv4.Addr()), "a")
		reaches(t, d2, port7(ed.IPv4.Addr()), "d")
	})
	t.Run("way out", func(t *testing.T) {
		reaches(t, a, port7(nettest.OutsideAddr()), "world")
		reaches(t, a, port7(nettest.OutsideAddr6()), "world")
		reaches(t, x, port7(nettest.OutsideAddr()), "world")
		if got := ask(a, "tcp", port7(nettest.OutsideAddr())); got != "world sees "+nettest.HostAddr().String() {
			t.Errorf("not masqueraded: %q", got)
		}
	})
	t.Run("apart", func(t *testing.T) {
		closed(t, door{a, port7(ec.IPv4.Addr())}, door{c, port7(ea.IPv4.Addr())}, door{c, port7(ed.IPv4.Addr())},
			door{y, port7(ex.IPv4.Addr())}, door{d, port7(nettest.OutsideAddr())})
		if ed.Gateway4.IsValid() {
			t.Error("an internal network has a way out")
		}
		d.Configure(ed.MAC, ed.MTU, []netip.Prefix{ed.IPv4}, []netip.Addr{inner.Subnets[0].Gateway}) // it tries all the same
		if err := world.Try(func() error { return addRoute(one.Subnets[0].Prefix, nettest.HostAddr(), "world") }); err != nil {
			t.Fatal(err)
		}
		closed(t, door{d, port7(nettest.OutsideAddr())}, door{d, port7(ea.IPv4.Addr())}, door{world, port7(ea.IPv4.Addr())})
	})
	t.Run("host", func(t *testing.T) {
		var doors []door
		for _, at := range []netip.Addr{one.Subnets[0].Gateway, nettest.HostAddr(), other.Subnets[0].Gateway, one.Subnets[1].Gateway, nettest.HostAddr6()} {
			doors = append(doors, door{a, port7(at)})
		}
		closed(t, doors...)
	})
	t.Run("names", func(t *testing.T) {
		for _, q := range []struct {
			p          place
			at         Endpoint
			name, want string
			kind       uint16
		}{
			{a, ea, "b", eb.IPv4.Addr().String(), mdns.TypeA},
			{b, eb, "DB", ea.IPv4.Addr().String(), mdns.TypeA},
			{b, eb, "db.one", ea.IPv4.Addr().String(), mdns.TypeA},
			{b, eb, "a", ea.IPv6.Addr().String(), mdns.TypeAAAA},
			{b, eb, ea.Container[:12], ea.IPv4.Addr().String(), mdns.TypeA},
			{a, ea, "a", "", mdns.TypeMX},
			{d, ed, "d2", ed2.IPv4.Addr().String(), mdns.TypeA},
		} {
			for _, network := range []string{"udp", "tcp"} {
				for _, server := range q.at.Resolvers {
					got, err := resolve(q.p, server, network, q.name, q.kind)
					if err != nil || got != q.want {
						t.Errorf("%s over %s at %s: %q, %v; want %q", q.name, network, server, got, err, q.want)
					}
				}
			}
		}
		for _, name := range []string{"c", "d", "x", "example.org"} {
			if got, err := resolve(a, ea.Resolvers[0], "udp", name, mdns.TypeA); err == nil {
				t.Errorf("%s: %q", name, got)
			}
		}
		arpa, _ := mdns.ReverseAddr(eb.IPv6.Addr().String())
		if got, err := resolve(a, ea.Resolvers[0], "udp", arpa, mdns.TypePTR); err != nil || got != "b.one." {
			t.Errorf("%s: %q, %v", arpa, got, err)
		}
		arpa, _ = mdns.ReverseAddr(ec.IPv4.Addr().String())
		if got, err := resolve(a, ea.Resolvers[0], "udp", arpa, mdns.TypePTR); err == nil {
			t.Errorf("%s: %q", arpa, got)
		}
		if got, err := resolveWithin(wait, c, ea.Resolvers[0], "udp", "a", mdns.TypeA); err == nil {
			t.Errorf("another network's resolver answers: %q", got)
		}
	})
}
