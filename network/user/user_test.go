package user

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
)

// hostTCP is a service of the host's.
func hostTCP(t *testing.T, at string) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp4", at)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go serveEcho(l)
	return l.Addr().(*net.TCPAddr).AddrPort()
}

func TestHostOnlyWhereAllowed(t *testing.T) {
	host, ok := hostAddr()
	if !ok {
		t.Skip("the host has an address of its loopback only")
	}
	open, closed := hostTCP(t, "0.0.0.0:0"), hostTCP(t, "127.0.0.1:0")
	n := newNetwork(t, func(o *Options) {
		o.Published = func(protocol string, at netip.AddrPort) bool {
			return protocol == "tcp" && at.Addr() == host && at.Port() == open.Port()
		}
	})
	at := func(a netip.Addr, port uint16) string { return netip.AddrPortFrom(a, port).String() }
	may, mayNot := newMachine(t, n, "10.9.0.2", true), newMachine(t, n, "10.9.0.3", false)
	text := strings.Repeat("from the guest ", 20_000)
	for name, try := range map[string]struct {
		who *machine
		to  string
	}{
		"gateway": {may, at(gateway, open.Port())}, "address": {may, at(host, open.Port())},
		"published": {mayNot, at(host, open.Port())}, "published at the gateway": {mayNot, at(gateway, open.Port())},
	} {
		c, err := try.who.dial(try.to)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if got, err := ask(c, text); err != nil || got != strings.ToUpper(text) {
			t.Errorf("%s: %d bytes came back of %d, %v", name, len(got), len(text), err)
		}
	}
	n.o.Published = nil
	for _, to := range []string{at(gateway, open.Port()), at(host, open.Port()), at(gateway, closed.Port()), closed.String(), "127.1.2.3:80",
		"169.254.169.254:80", "0.0.0.0:80", "255.255.255.255:80", "224.0.0.1:80"} {
		if c, err := mayNot.dialWithin(to, 500*time.Millisecond); err == nil {
			c.Close()
			t.Errorf("the guest has reached %s", to)
		}
	}
	for _, to := range []string{at(gateway, closed.Port()), closed.String(), at(host, closed.Port())} {
		if c, err := may.dialWithin(to, 500*time.Millisecond); err == nil {
			c.Close()
			t.Errorf("a guest that may reach the host has reached its loopback at %s", to)
		}
	}
}

func TestReach(t *testing.T) {
	own, _ := hostAddr()
	for _, test := range []struct {
		o    Options
		host bool
		to   string
		want string // "": not
	}{
		{Options{}, false, "192.0.2.1:80", "192.0.2.1:80"},
		{Options{Internal: true}, true, "192.0.2.1:80", ""},
		{Options{}, false, "10.9.0.1:80", ""},
		{Options{}, true, "10.9.0.1:80", own.String() + ":80"},
		{Options{Internal: true}, true, "10.9.0.1:80", ""},
		{Options{}, true, "127.0.0.1:80", ""},
		{Options{}, true, "169.254.169.254:80", ""},
		{Options{}, true, "240.0.0.1:80", ""},
		{Options{}, true, "0.1.2.3:80", ""},
		{Options{}, false, own.String() + ":80", ""},
		{Options{}, true, own.String() + ":80", own.String() + ":80"},
	} {
		if strings.Contains(test.to+test.want, "invalid") {
			continue // a host that has only its loopback interface
		}
		test.o.Gateway = gateway
		p := &Port{n: &Network{o: test.o}, guest: Guest{Host: test.host}}
		got, ok := p.reach("tcp", netip.MustParseAddrPort(test.to))
		if ok != (test.want != "") || ok && got.String() != test.want {
			t.Errorf("%s with %+v, host %v: %s, %v; want %q", test.to, test.o, test.host, got, ok, test.want)
		}
	}
}

func TestDial(t *testing.T) {
	n := newNetwork(t, nil)
	m := newMachine(t, n, "10.9.0.2", false)
	m.serveTCP(80)
	for range 20 {
		c, err := n.Dial(context.Background(), "tcp", "10.9.0.2:80")
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(patience))
		if got, err := ask(c.(halfCloser), "hello"); err != nil || got != "HELLO" {
			t.Errorf("%q, %v", got, err)
		}
	}
	for _, to := range []string{"10.9.0.2:9", "10.9.0.3:80", "10.8.0.2:80", "guest:80"} {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		if c, err := n.Dial(ctx, "tcp", to); err == nil || ctx.Err() != nil {
			t.Errorf("%s: %v %v", to, c, err)
		}
		cancel()
	}
}

func TestDialUDP(t *testing.T) {
	n := newNetwork(t, nil)
	m := newMachine(t, n, "10.9.0.2", false)
	here := full(netip.MustParseAddrPort("10.9.0.2:53"))
	server, err := gonet.DialUDP(m.st, &here, nil, ipv4.ProtocolNumber)
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	go func() {
		buf := make([]byte, 2048)
		for {
			k, from, err := server.ReadFrom(buf)
			if err != nil {
				return
			}
			server.WriteTo(capitals(buf[:k]), from)
		}
	}()
	for i := range 3 {
		c, err := n.Dial(context.Background(), "udp", "10.9.0.2:53")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(patience))
		for range 2 {
			fmt.Fprintf(c, "client %d", i)
			buf := make([]byte, 100)
			if k, err := c.Read(buf); err != nil || string(buf[:k]) != fmt.Sprintf("CLIENT %d", i) {
				t.Errorf("client %d: %q, %v", i, buf[:k], err)
			}
		}
	}
}

// TestFlowsAreBounded: when all places are taken, one more connection is refused, and the next is not once one is free.
func TestFlowsAreBounded(t *testing.T) {
	host, ok := hostAddr()
	if !ok {
		t.Skip("the host has an address of its loopback only")
	}
	service := netip.AddrPortFrom(host, hostTCP(t, "0.0.0.0:0").Port()).String()
	flows := make(chan struct{}, 2)
	n := newNetwork(t, func(o *Options) { o.Flows = flows })
	a, b := newMachine(t, n, "10.9.0.2", true), newMachine(t, n, "10.9.0.3", true)
	first, err := a.dial(service)
	if err != nil {
		t.Fatal(err)
	}
	second, err := b.dial(service)
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	if c, err := a.dial(service); err == nil {
		c.Close()
		t.Error("a third connection has been made")
	}
	if got, err := ask(first, "x"); err != nil || got != "X" {
		t.Errorf("%q, %v", got, err)
	}
	await(t, "a place is free", func() bool { return len(flows) == 1 })
	third, err := b.dial(service)
	if err != nil {
		t.Fatal(err)
	}
	third.Close()
}

func TestNeighbours(t *testing.T) {
	for _, isolate := range []bool{false, true} {
		n := newNetwork(t, func(o *Options) { o.Isolate = isolate })
		a, b := newMachine(t, n, "10.9.0.2", false), newMachine(t, n, "10.9.0.3", false)
		b.serveTCP(80)
		if !isolate {
			a.resolve(b.guest.Addr)
			b.resolve(a.guest.Addr)
			c, err := a.dial("10.9.0.3:80")
			if err != nil {
				t.Fatal(err)
			}
			if got, err := ask(c, "neighbour"); err != nil || got != "NEIGHBOUR" {
				t.Errorf("%q, %v", got, err)
			}
			continue
		}
		before := b.frames()
		a.send(a.frame(b.guest.MAC, 0x0806, arpPacket(1, a.guest.MAC, a.guest.Addr, b.guest.Addr)))
		a.send(a.frame(b.guest.MAC, 0x0800, packet(a.guest.Addr, b.guest.Addr, 17)))
		await(t, "both frames are dropped", func() bool { return a.port.Counters().Dropped[Unreachable] == 2 })
		if got := b.frames(); got != before {
			t.Errorf("%d frames have come to an isolated guest", got-before)
		}
	}
}

func TestDNS(t *testing.T) {
	n := newNetwork(t, func(o *Options) {
		o.Resolve = func(_ context.Context, from netip.Addr, query []byte, tcp bool) []byte {
			return fmt.Appendf(nil, "%s %s %v", from, capitals(query), tcp)
		}
	})
	m := newMachine(t, n, "10.9.0.2", false)
	to := full(netip.MustParseAddrPort("10.9.0.1:53"))
	c, err := gonet.DialUDP(m.st, nil, &to, ipv4.ProtocolNumber)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	buf := make([]byte, 100)
	c.Write([]byte("who"))
	if k, err := c.Read(buf); err != nil || string(buf[:k]) != "10.9.0.2 WHO false" {
		t.Errorf("%q, %v", buf[:k], err)
	}
	tcp, err := m.dial("10.9.0.1:53")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := ask(tcp, "\x00\x03who\x00\x02is"); err != nil || got != "\x00\x1110.9.0.2 WHO true\x00\x1010.9.0.2 IS true" {
		t.Errorf("%q, %v", got, err)
	}
}

func TestAttachChecks(t *testing.T) {
	n := newNetwork(t, nil)
	m := newMachine(t, n, "10.9.0.2", false)
	for name, g := range map[string]Guest{
		"taken":     {MAC: m.guest.MAC, Addr: m.guest.Addr},
		"gateway":   {MAC: m.guest.MAC, Addr: gateway},
		"foreign":   {MAC: m.guest.MAC, Addr: netip.MustParseAddr("10.8.0.2")},
		"multicast": {MAC: net.HardwareAddr{1, 0, 0, 0, 0, 1}, Addr: netip.MustParseAddr("10.9.0.7")},
		"no MAC":    {Addr: netip.MustParseAddr("10.9.0.7")},
	} {
		a, b := net.Pipe()
		if _, err := n.Attach(g, a); err == nil {
			t.Errorf("%s was attached", name)
		}
		if _, err := b.Read(make([]byte, 1)); err == nil {
			t.Errorf("%s: the stream is still open", name)
		}
	}
	m.conn.Close()
	<-m.port.Done()
	if n.port(m.guest.Addr) != nil {
		t.Error("a guest whose stream has broken is still there")
	}
}
