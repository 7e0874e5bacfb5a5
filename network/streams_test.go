package network

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/link/channel"
	"gvisor.dev/gvisor/pkg/tcpip/link/ethernet"
	"gvisor.dev/gvisor/pkg/tcpip/network/arp"
	netstack4 "gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"

	"github.com/cradlevm/cradle/network/nettest"
)

// patience bounds what a guest waits for.
const patience = 20 * time.Second

// openStreams opens networks that need nothing of the host.
func openStreams(t *testing.T, dir string) *Networks {
	t.Helper()
	n, err := Open(context.Background(), Options{Dir: dir, Streams: true, Upstreams: []netip.AddrPort{}, Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	return n
}

// streamGuest is a guest with a stack of its own at the end of an endpoint's stream.
type streamGuest struct {
	t  *testing.T
	st *stack.Stack
	e  Endpoint
}

func attachStream(t *testing.T, n *Networks, s EndpointSpec) *streamGuest {
	t.Helper()
	s.Sandbox, s.Container = s.Name, s.Name+s.Name+"-0123456789ab"
	e, err := n.Attach(context.Background(), s)
	if err != nil {
		t.Fatal(err)
	}
	return plugStream(t, n, e)
}

func plugStream(t *testing.T, n *Networks, e Endpoint) *streamGuest {
	t.Helper()
	ours, theirs := net.Pipe()
	mac, err := net.ParseMAC(e.MAC)
	if err != nil {
		t.Fatal(err)
	}
	link := channel.New(64, uint32(e.MTU), tcpip.LinkAddress(mac))
	g := &streamGuest{t: t, e: e, st: stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{netstack4.NewProtocol, arp.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol},
	})}
	g.st.CreateNIC(1, ethernet.New(link))
	g.st.AddProtocolAddress(1, tcpip.ProtocolAddress{Protocol: netstack4.ProtocolNumber, AddressWithPrefix: tcpip.AddressWithPrefix{
		Address: tcpip.AddrFrom4(e.IPv4.Addr().As4()), PrefixLen: e.IPv4.Bits()}}, stack.AddressProperties{})
	subnet := func(p netip.Prefix) tcpip.Subnet {
		s, err := tcpip.NewSubnet(tcpip.AddrFrom4(p.Addr().As4()), tcpip.MaskFromBytes(net.CIDRMask(p.Bits(), 32)))
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	routes := []tcpip.Route{{Destination: subnet(e.IPv4.Masked()), NIC: 1}}
	if e.Gateway4.IsValid() {
		routes = append(routes, tcpip.Route{Destination: subnet(netip.MustParsePrefix("0.0.0.0/0")), Gateway: tcpip.AddrFrom4(e.Gateway4.As4()), NIC: 1})
	}
	g.st.SetRouteTable(routes)
	if err := n.Plug(e.ID, theirs); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(func() { cancel(); ours.Close(); g.st.Destroy() })
	go func() {
		for packet := link.ReadContext(ctx); packet != nil; packet = link.ReadContext(ctx) {
			b := packet.ToView().ToSlice()
			packet.DecRef()
			ours.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...))
		}
	}()
	go func() {
		for {
			var length [4]byte
			if _, err := io.ReadFull(ours, length[:]); err != nil {
				return
			}
			b := make([]byte, binary.BigEndian.Uint32(length[:]))
			if _, err := io.ReadFull(ours, b); err != nil {
				return
			}
			packet := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(b)})
			link.InjectInbound(0, packet)
			packet.DecRef()
		}
	}()
	return g
}

func streamAddress(a netip.AddrPort) tcpip.FullAddress {
	return tcpip.FullAddress{NIC: 1, Addr: tcpip.AddrFrom4(a.Addr().As4()), Port: a.Port()}
}

// serve answers every connection to a port, and every datagram, with a name.
func (g *streamGuest) serve(port uint16, name string) {
	g.t.Helper()
	at := streamAddress(netip.AddrPortFrom(g.e.IPv4.Addr(), port))
	l, err := gonet.ListenTCP(g.st, at, netstack4.ProtocolNumber)
	if err != nil {
		g.t.Fatal(err)
	}
	packets, err := gonet.DialUDP(g.st, &at, nil, netstack4.ProtocolNumber)
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() { l.Close(); packets.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			io.WriteString(c, name)
			c.Close()
		}
	}()
	go func() {
		for {
			_, from, err := packets.ReadFrom(make([]byte, 100))
			if err != nil {
				return
			}
			packets.WriteTo([]byte(name), from)
		}
	}()
}

// read connects to another guest and returns what that says.
func (g *streamGuest) read(to netip.AddrPort, limit time.Duration) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	c, err := gonet.DialContextTCP(ctx, g.st, streamAddress(to), netstack4.ProtocolNumber)
	if err != nil {
		return "", err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(limit))
	b, err := io.ReadAll(c)
	return string(b), err
}

// lookup asks the network's resolver.
func (g *streamGuest) lookup(name string) ([]netip.Addr, error) {
	r := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		to := streamAddress(netip.AddrPortFrom(g.e.Resolvers[0], 53))
		if network[:3] == "tcp" {
			return gonet.DialContextTCP(ctx, g.st, to, netstack4.ProtocolNumber)
		}
		return gonet.DialUDP(g.st, nil, &to, netstack4.ProtocolNumber)
	}}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return r.LookupNetIP(ctx, "ip4", name+".")
}

// fromHost connects to a published port.
func fromHost(t *testing.T, p Port) (string, error) {
	t.Helper()
	c, err := net.DialTimeout(p.Protocol, netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), p.Host).String(), patience)
	if err != nil {
		return "", err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	if p.Protocol == "udp" {
		io.WriteString(c, "who?")
		b := make([]byte, 100)
		k, err := c.Read(b)
		return string(b[:k]), err
	}
	b, err := io.ReadAll(c)
	return string(b), err
}

// TestStreams: two guests find each other by name and a third not, ports lead to them, and all of it again with the next daemon.
func TestStreams(t *testing.T) {
	loopback(t)
	ctx, dir := context.Background(), t.TempDir()
	n := openStreams(t, dir)
	if !n.Streams() {
		t.Fatal("no streams")
	}
	if _, err := n.Create(ctx, Spec{Name: "blue"}); err != nil {
		t.Fatal(err)
	}
	here := netip.AddrFrom4([4]byte{127, 0, 0, 1})
	web := attachStream(t, n, EndpointSpec{Network: "blue", Name: "web", Aliases: []string{"www"}, Ports: []PortSpec{
		{Protocol: "tcp", HostIP: here, Container: 7}, {Protocol: "udp", HostIP: here, Container: 7}}})
	other := attachStream(t, n, EndpointSpec{Network: "blue", Name: "other", Links: map[string]string{"Shop": "www"}})
	alone := attachStream(t, n, EndpointSpec{Network: Default, Name: "alone"})
	check := func(web, other, alone *streamGuest) {
		t.Helper()
		web.serve(7, "web")
		if a, err := web.lookup("shop"); err == nil {
			t.Errorf("another's link is known: %v", a)
		}
		for _, name := range []string{"web", "www", "web.blue", "shop"} {
			if a, err := other.lookup(name); err != nil || len(a) != 1 || a[0] != web.e.IPv4.Addr() {
				t.Errorf("%s: %v, %v", name, a, err)
			}
		}
		if a, err := alone.lookup("web"); err == nil {
			t.Errorf("another network knows %v", a)
		}
		at := netip.AddrPortFrom(web.e.IPv4.Addr(), 7)
		if got, err := other.read(at, patience); err != nil || got != "web" {
			t.Errorf("%q, %v", got, err)
		}
		if got, err := alone.read(at, time.Second); err == nil {
			t.Errorf("from another network: %q", got)
		}
		for _, p := range web.e.Ports {
			if got, err := fromHost(t, p); err != nil || got != "web" {
				t.Errorf("%+v: %q, %v", p, got, err)
			}
		}
		if from, to, err := n.Counters(web.e.ID); err != nil || from.Packets == 0 || to.Packets == 0 {
			t.Errorf("%+v %+v %v", from, to, err)
		}
	}
	check(web, other, alone)
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := fromHost(t, web.e.Ports[0]); err == nil {
		t.Error("the port is open without a daemon")
	}
	n = openStreams(t, dir)
	if r, err := n.Reconcile(ctx, Live{Sandboxes: []string{"web", "other", "alone"}}); err != nil || len(r.Removed) > 0 {
		t.Fatalf("%+v, %v", r, err)
	}
	check(plugStream(t, n, web.e), plugStream(t, n, other.e), plugStream(t, n, alone.e))
	if _, err := n.Reconcile(ctx, Live{Sandboxes: []string{"web"}}); err != nil {
		t.Fatal(err)
	}
	if all, err := n.Endpoints(""); err != nil || len(all) != 1 {
		t.Errorf("%+v, %v", all, err)
	}
	if err := n.Reset(ctx); err != nil {
		t.Error(err)
	}
	if _, err := fromHost(t, web.e.Ports[0]); err == nil {
		t.Error("the port is open after a reset")
	}
}

// TestStreamsReplug: an endpoint takes another stream in the place of the one it has, and none when it is gone.
func TestStreamsReplug(t *testing.T) {
	loopback(t)
	n := openStreams(t, t.TempDir())
	a, b := attachStream(t, n, EndpointSpec{Network: Default, Name: "a"}), attachStream(t, n, EndpointSpec{Network: Default, Name: "b"})
	b.serve(7, "b")
	a = plugStream(t, n, a.e)
	if got, err := a.read(netip.AddrPortFrom(b.e.IPv4.Addr(), 7), patience); err != nil || got != "b" {
		t.Errorf("%q, %v", got, err)
	}
	if err := errors.Join(n.Detach(context.Background(), a.e.ID), n.Detach(context.Background(), a.e.ID)); err != nil {
		t.Fatal(err)
	}
	ours, theirs := net.Pipe()
	if err := n.Plug(a.e.ID, theirs); !errors.Is(err, ErrNotFound) {
		t.Errorf("%v", err)
	}
	if _, err := ours.Read(make([]byte, 1)); err == nil {
		t.Error("the stream is still open")
	}
}

// TestStreamsLeave: the endpoints of a sandbox that has gone go with it, and a subnet may be one of the host's.
func TestStreamsLeave(t *testing.T) {
	nettest.NeedRoot(t)
	nettest.NewOutside(t)
	ctx := context.Background()
	n := openStreams(t, t.TempDir())
	if _, err := n.Create(ctx, Spec{Name: "over", Subnets: []Subnet{{Prefix: netip.MustParsePrefix("203.0.113.0/24")}}}); err != nil {
		t.Fatal(err)
	}
	gone := attachStream(t, n, EndpointSpec{Network: "over", Name: "gone", Ports: []PortSpec{{Protocol: "tcp", Container: 7}}})
	attachStream(t, n, EndpointSpec{Network: "over", Name: "stays"})
	if err := errors.Join(n.DetachAll(ctx, "gone"), n.DetachAll(ctx, "gone")); err != nil {
		t.Fatal(err)
	}
	if all, err := n.Endpoints("over"); err != nil || len(all) != 1 || all[0].Name != "stays" {
		t.Errorf("%+v, %v", all, err)
	}
	if _, err := fromHost(t, gone.e.Ports[0]); err == nil {
		t.Error("the port of a guest that is gone is open")
	}
}

// TestStreamsPolicy: what a guest may send is what its policy says, as on the kernel's networks: from its first packet, changed live,
// with names, counters and rates, and with the next daemon.
func TestStreamsPolicy(t *testing.T) {
	nettest.NeedRoot(t)
	world := nettest.NewOutside(t)
	listen(t, world, "world")
	zone, _, _ := denied()
	zone["good.example."] = nettest.OutsideAddr().String()
	ctx, dir, upstream := context.Background(), t.TempDir(), serveZone(t, zone)
	open := func() *Networks {
		n, err := Open(ctx, Options{Dir: dir, Streams: true, Upstreams: []netip.AddrPort{upstream}, Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { n.Close() })
		return n
	}
	n := open()
	names := []NameRule{{Deny: true, Name: "bad.example"}, {Name: "*.example", Protocol: "tcp"}}
	if _, err := n.Create(ctx, Spec{Name: "n"}); err != nil {
		t.Fatal(err)
	}
	a := attachStream(t, n, EndpointSpec{Network: "n", Name: "a", Policy: Policy{Deny: true, Names: names},
		Ports: []PortSpec{{Protocol: "tcp", HostIP: netip.AddrFrom4([4]byte{127, 0, 0, 1}), Container: 7}}})
	b := attachStream(t, n, EndpointSpec{Network: "n", Name: "b"})
	a.serve(7, "a")
	b.serve(7, "b")
	far, near := port7(nettest.OutsideAddr()), port7(b.e.IPv4.Addr())
	isClosed := func(to netip.AddrPort) {
		t.Helper()
		if got, err := a.read(to, time.Second); err == nil {
			t.Errorf("%s is open: %q", to, got)
		}
	}
	isOpen := func(to netip.AddrPort, want string) {
		t.Helper()
		if got, err := a.line(to); err != nil || !strings.HasPrefix(got, want) {
			t.Errorf("%s: %q, %v", to, got, err)
		}
	}
	set := func(p Policy) {
		t.Helper()
		if err := n.SetPolicy(ctx, a.e.ID, p); err != nil {
			t.Fatal(err)
		}
	}
	isClosed(far)
	isClosed(near)
	for _, name := range []string{"bad.example", "alias.example", "elsewhere"} {
		if got, err := a.lookup(name); err == nil {
			t.Errorf("%s is answered: %v", name, got)
		}
	}
	if got, err := a.lookup("good.example"); err != nil || len(got) != 1 || got[0] != nettest.OutsideAddr() {
		t.Fatalf("%v, %v", got, err)
	}
	isOpen(far, "world")
	if got, err := fromHost(t, a.e.Ports[0]); err != nil || got != "a" {
		t.Errorf("the published port: %q, %v", got, err)
	}
	c, err := n.RuleCounts(a.e.ID)
	if err != nil || c.Names[names[0]].Packets < 2 || c.Names[names[1]].Packets < 3 || c.Default == nil || c.Default.Packets == 0 {
		t.Errorf("%+v, %v", c, err)
	}
	deny := Rule{Prefix: prefix("203.0.113.0/24")}
	set(Policy{Rules: []Rule{deny}, Names: names})
	isClosed(far) // after which nothing of the connection that was open is on its way any more
	if c, err = n.RuleCounts(a.e.ID); err != nil {
		t.Fatal(err)
	}
	isClosed(far)
	isOpen(near, "b")
	if now, err := n.RuleCounts(a.e.ID); err != nil || now.Names[names[1]] != c.Names[names[1]] || now.Rules[deny].Packets <= c.Rules[deny].Packets {
		t.Errorf("%+v, %v; before: %+v", now, err, c)
	}
	if from, _, err := n.Counters(a.e.ID); err != nil || from.Dropped["policy"] == 0 {
		t.Errorf("%+v, %v", from, err)
	}
	if err := n.SetPolicy(ctx, "x", Policy{}); !errors.Is(err, ErrNotFound) {
		t.Errorf("%v", err)
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	n = open()
	if r, err := n.Reconcile(ctx, Live{Sandboxes: []string{"a", "b"}}); err != nil || len(r.Removed) > 0 {
		t.Fatalf("%+v, %v", r, err)
	}
	a, b = plugStream(t, n, a.e), plugStream(t, n, b.e)
	b.serve(7, "b")
	isClosed(far)
	isOpen(near, "b")
	set(Policy{})
	isOpen(far, "world")
	set(Policy{Egress: Rate{PacketsPerSecond: 1, Burst: time.Nanosecond}, Ingress: Rate{PacketsPerSecond: 1, Burst: time.Nanosecond}})
	a.read(near, time.Second)
	from, to, err := n.Counters(a.e.ID)
	if err != nil || from.Dropped["rate"]+to.Dropped["rate"] == 0 {
		t.Errorf("%+v, %+v, %v", from, to, err)
	}
}

// line connects and returns the first line that it is told.
func (g *streamGuest) line(to netip.AddrPort) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c, err := gonet.DialContextTCP(ctx, g.st, streamAddress(to), netstack4.ProtocolNumber)
	if err != nil {
		return "", err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	b := make([]byte, 100)
	k, err := c.Read(b)
	return string(b[:k]), err
}

// TestStreamsRefuse: what needs the kernel is refused, and leaves nothing.
func TestStreamsRefuse(t *testing.T) {
	ctx := context.Background()
	n := openStreams(t, t.TempDir())
	for _, s := range []Spec{
		{Name: "x", IPv6: true}, {Name: "x", Options: map[string]string{OptionBridge: "br7"}}, {Name: "x", Options: map[string]string{OptionMTU: "9000"}},
		{Name: "x", Options: map[string]string{OptionMetadata: "true"}}, {Name: "x", Options: map[string]string{OptionMasquerade: "false"}},
	} {
		if s.IPv6 && !hasIPv6() {
			continue // refused for that
		}
		if _, err := n.Create(ctx, s); !errors.Is(err, ErrUnsupported) {
			t.Errorf("%+v: %v", s, err)
		}
	}
	if l := n.List(); len(l) != 2 {
		t.Errorf("%v", l)
	}
	_, tap := n.MakeTAP(ctx)
	for _, err := range []error{tap, n.RemoveTAP(ctx, "x")} {
		if !errors.Is(err, ErrUnsupported) {
			t.Errorf("%v", err)
		}
	}
	if _, err := n.Attach(ctx, EndpointSpec{Network: Default, Sandbox: "s", Container: "c", TAP: "tap0"}); !errors.Is(err, ErrInvalid) {
		t.Errorf("%v", err)
	}
	if all, err := n.Endpoints(""); err != nil || len(all) > 0 {
		t.Errorf("%+v, %v", all, err)
	}
	e, err := n.Attach(ctx, EndpointSpec{Network: None, Container: "c", Sandbox: "s"})
	if err != nil || e.IPv4.IsValid() || n.Detach(ctx, e.ID) != nil {
		t.Errorf("%+v, %v", e, err)
	}
}

// loopback sees that the namespace of the tests, if it is their own, has its loopback interface.
func loopback(t *testing.T) {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err == nil {
		var c net.Conn
		if c, err = net.DialTimeout("tcp4", l.Addr().String(), time.Second); err == nil {
			c.Close()
		}
		l.Close()
	}
	if err != nil {
		nettest.NeedRoot(t)
	}
}
