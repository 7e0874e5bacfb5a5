package user

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
)

// hostTCP is a service of the host's.
func hostTCP(t *testing.T) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go serveEcho(l)
	return l.Addr().(*net.TCPAddr).AddrPort()
}

func TestHostOnlyWhereAllowed(t *testing.T) {
	n := newNetwork(t, nil)
	service := hostTCP(t)
	through := netip.AddrPortFrom(gateway, service.Port()).String()
	may, mayNot := newMachine(t, n, "10.9.0.2", true), newMachine(t, n, "10.9.0.3", false)
	c, err := may.dial(through)
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Repeat("from the guest ", 20_000)
	if got, err := ask(c, text); err != nil || got != strings.ToUpper(text) {
		t.Errorf("%d bytes came back of %d, %v", len(got), len(text), err)
	}
	for _, to := range []string{through, service.String(), "127.1.2.3:80", "169.254.169.254:80", "0.0.0.0:80", "255.255.255.255:80", "224.0.0.1:80"} {
		if c, err := mayNot.dialWithin(to, 500*time.Millisecond); err == nil {
			c.Close()
			t.Errorf("the guest has reached %s", to)
		}
	}
	if c, err := may.dialWithin(service.String(), 500*time.Millisecond); err == nil {
		c.Close()
		t.Error("a guest that may reach the host has reached it at a loopback address of its own")
	}
}

func TestReach(t *testing.T) {
	own := netip.Addr{}
	all, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range all {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().Is4() && p.Addr().IsGlobalUnicast() {
			own = p.Addr()
		}
	}
	for _, test := range []struct {
		o    Options
		host bool
		to   string
		want string // "": not
	}{
		{Options{}, false, "192.0.2.1:80", "192.0.2.1:80"},
		{Options{Internal: true}, true, "192.0.2.1:80", ""},
		{Options{}, false, "10.9.0.1:80", ""},
		{Options{}, true, "10.9.0.1:80", "127.0.0.1:80"},
		{Options{}, true, "127.0.0.1:80", ""},
		{Options{}, true, "169.254.169.254:80", ""},
		{Options{}, true, "240.0.0.1:80", ""},
		{Options{}, true, "0.1.2.3:80", ""},
		{Options{}, false, own.String() + ":80", ""},
		{Options{}, true, own.String() + ":80", own.String() + ":80"},
	} {
		if strings.Contains(test.to, "invalid") {
			continue // a host that has only its loopback interface
		}
		test.o.Gateway = gateway
		p := &Port{n: &Network{o: test.o}, guest: Guest{Host: test.host}}
		got, ok := p.reach(netip.MustParseAddrPort(test.to))
		if ok != (test.want != "") || ok && got.String() != test.want {
			t.Errorf("%s with %+v, host %v: %s, %v; want %q", test.to, test.o, test.host, got, ok, test.want)
		}
	}
}

func TestPublish(t *testing.T) {
	n := newNetwork(t, nil)
	m := newMachine(t, n, "10.9.0.2", false)
	m.serveTCP(80)
	at, end, err := n.Publish("tcp", netip.MustParseAddrPort("127.0.0.1:0"), netip.MustParseAddrPort("10.9.0.2:80"))
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := n.Publish("tcp", at, netip.MustParseAddrPort("10.9.0.2:81")); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("a port that is taken: %v", err)
	}
	for range 20 {
		c, err := net.Dial("tcp", at.String())
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(patience))
		if got, err := ask(c.(*net.TCPConn), "hello"); err != nil || got != "HELLO" {
			t.Errorf("%q, %v", got, err)
		}
	}
	end.Close()
	if c, err := net.Dial("tcp", at.String()); err == nil {
		c.Close()
		t.Error("the port is still open")
	}
	// Nobody listens in the guest: the client is reset, not left waiting.
	at, end, err = n.Publish("tcp", netip.MustParseAddrPort("127.0.0.1:0"), netip.MustParseAddrPort("10.9.0.2:9"))
	if err != nil {
		t.Fatal(err)
	}
	defer end.Close()
	c, err := net.Dial("tcp", at.String())
	if err == nil {
		defer c.Close()
		c.SetDeadline(time.Now().Add(patience))
		_, err = c.Read(make([]byte, 1))
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("reading from a port that nobody serves: %v", err)
	}
}

func TestPublishUDP(t *testing.T) {
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
	at, end, err := n.Publish("udp", netip.MustParseAddrPort("127.0.0.1:0"), netip.MustParseAddrPort("10.9.0.2:53"))
	if err != nil {
		t.Fatal(err)
	}
	defer end.Close()
	for i := range 3 {
		c, err := net.Dial("udp", at.String())
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
		o.Resolve = func(_ context.Context, from netip.Addr, query []byte) ([]byte, error) {
			return append([]byte(from.String()+" "), capitals(query)...), nil
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
	if k, err := c.Read(buf); err != nil || string(buf[:k]) != "10.9.0.2 WHO" {
		t.Errorf("%q, %v", buf[:k], err)
	}
	tcp, err := m.dial("10.9.0.1:53")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := ask(tcp, "\x00\x03who\x00\x02is"); err != nil || got != "\x00\x0c10.9.0.2 WHO\x00\x0b10.9.0.2 IS" {
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
