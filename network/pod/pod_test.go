package pod

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/cradlevm/cradle/api"
	"github.com/cradlevm/cradle/network/bpf"
	"github.com/cradlevm/cradle/network/nettest"
)

func TestMain(m *testing.M) { nettest.Main(m) }

// room is a pod's namespace as a CNI plugin leaves it: the test's own namespace stands for the node.
type room struct {
	t    *testing.T
	path string
}

func newRoom(t *testing.T) *room {
	t.Helper()
	nettest.NeedRoot(t)
	r := &room{t, filepath.Join(t.TempDir(), "netns")}
	nettest.NewNamespace(t, r.path)
	return r
}

// do runs f inside.
func (r *room) do(f func() error) {
	r.t.Helper()
	if err := within(r.path, f); err != nil {
		r.t.Fatal(err)
	}
}

// veth puts one end of a pair inside, up and with addresses, and the other outside.
func (r *room) veth(outside, inside string, mtu int, out, in []string) {
	r.t.Helper()
	ns, err := os.Open(r.path)
	if err != nil {
		r.t.Fatal(err)
	}
	defer ns.Close()
	attrs := netlink.LinkAttrs{Name: outside, MTU: mtu}
	pair := &netlink.Veth{LinkAttrs: attrs, PeerName: inside, PeerMTU: uint32(mtu), PeerNamespace: netlink.NsFd(int(ns.Fd()))}
	if err := netlink.LinkAdd(pair); err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { netlink.LinkDel(pair) })
	if err := furnish(outside, out); err != nil {
		r.t.Fatal(err)
	}
	r.do(func() error { return furnish(inside, in) })
}

func furnish(name string, addresses []string) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	for _, s := range addresses {
		a, err := netlink.ParseAddr(s)
		if err != nil {
			return err
		}
		if a.IP.To4() == nil {
			a.Flags = unix.IFA_F_NODAD
		}
		if err := netlink.AddrAdd(l, a); err != nil {
			return err
		}
	}
	return netlink.LinkSetUp(l)
}

// route adds a route in the calling thread's namespace, as "ip route add" does.
func route(name, to, via string, scope netlink.Scope, change func(*netlink.Route)) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	r := &netlink.Route{LinkIndex: l.Attrs().Index, Scope: scope}
	if to != "" {
		if r.Dst, err = netlink.ParseIPNet(to); err != nil {
			return err
		}
	}
	if via != "" {
		r.Gw = net.ParseIP(via)
		r.SetFlag(netlink.FLAG_ONLINK)
	}
	if change != nil {
		change(r)
	}
	return netlink.RouteReplace(r)
}

// state is all that Detach has to leave as it was.
func (r *room) state() (s string) {
	r.t.Helper()
	r.do(func() error {
		links, err := netlink.LinkList()
		if err != nil {
			return err
		}
		for _, l := range links {
			a := l.Attrs()
			s += fmt.Sprintln(a.Name, a.Index, l.Type(), a.HardwareAddr, a.MTU, a.Flags&^net.FlagRunning, a.Promisc, a.Allmulti)
			addresses, err := netlink.AddrList(l, netlink.FAMILY_ALL)
			if err != nil {
				return err
			}
			for _, a := range addresses {
				s += fmt.Sprintln(a.IPNet, a.Flags&^unix.IFA_F_TENTATIVE, a.Scope)
			}
			qdiscs, err := netlink.QdiscList(l)
			if err != nil {
				return err
			}
			for _, q := range qdiscs {
				s += fmt.Sprintln(q.Type(), q.Attrs().Parent)
			}
		}
		routes, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{}, netlink.RT_FILTER_TABLE)
		for _, r := range routes {
			if r.Dst == nil || !r.Dst.IP.IsMulticast() {
				s += fmt.Sprintln(r)
			}
		}
		return err
	})
	return s
}

// settle waits until the kernel has no more to do about the interface's IPv6.
func (r *room) settle(name string) {
	r.t.Helper()
	r.do(func() error {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
			list, err := netlink.AddrList(l, unix.AF_INET6)
			if err != nil {
				return err
			}
			ready := func(a netlink.Addr) bool { return a.IP.IsLinkLocalUnicast() && a.Flags&unix.IFA_F_TENTATIVE == 0 }
			if slices.ContainsFunc(list, ready) {
				return nil
			}
		}
		return errors.New("no link-local address")
	})
}

func (r *room) attach() []Interface {
	r.t.Helper()
	made, err := Attach(context.Background(), r.path)
	if err != nil {
		r.t.Fatal(err)
	}
	return made
}

func (r *room) detach() {
	r.t.Helper()
	if err := Detach(context.Background(), r.path); err != nil {
		r.t.Fatal(err)
	}
}

// guest takes the far end of an interface's TAP and configures what the agent would.
func (r *room) guest(i Interface) *nettest.Guest {
	r.t.Helper()
	var g *nettest.Guest
	r.do(func() error { g = nettest.NewGuest(r.t, i.TAP); return nil })
	var addresses []netip.Prefix
	for _, a := range i.Guest.Addresses {
		addresses = append(addresses, netip.MustParsePrefix(a))
	}
	g.Configure(i.Guest.MAC, i.Guest.MTU, addresses, nil)
	g.Do(func() error {
		for _, one := range i.Guest.Routes {
			err := route("eth0", one.Destination, one.Gateway, netlink.SCOPE_LINK, func(r *netlink.Route) {
				if r.Gw != nil {
					r.Scope = netlink.SCOPE_UNIVERSE
				}
				r.Priority, r.MTU = one.Metric, one.MTU
			})
			if err != nil {
				return fmt.Errorf("%+v: %w", one, err)
			}
		}
		return nil
	})
	return g
}

// echo answers with what it hears, over TCP and UDP, in the calling thread's namespace.
func echo(t *testing.T, address string) error {
	l, err := net.Listen("tcp", net.JoinHostPort(address, "7"))
	if err != nil {
		return err
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { io.Copy(c, c); c.Close() }()
		}
	}()
	p, err := net.ListenPacket("udp", net.JoinHostPort(address, "7"))
	if err != nil {
		return err
	}
	t.Cleanup(func() { p.Close() })
	go func() {
		b := make([]byte, 1<<16)
		for {
			n, from, err := p.ReadFrom(b)
			if err != nil {
				return
			}
			p.WriteTo(b[:n], from)
		}
	}()
	return nil
}

// answers checks that there is an echo at address: of a stream longer than any queue, and of datagrams as long as the MTU.
func answers(t *testing.T, address string, mtu int) {
	t.Helper()
	c, err := net.DialTimeout("tcp", net.JoinHostPort(address, "7"), 20*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(30 * time.Second))
	sent := bytes.Repeat([]byte("cradle"), 50_000)
	go c.Write(sent)
	got := make([]byte, len(sent))
	if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, sent) {
		t.Fatalf("TCP to %s: %v", address, err)
	}
	headers := 28
	if strings.Contains(address, ":") {
		headers = 48
	}
	u, err := net.Dial("udp", net.JoinHostPort(address, "7"))
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	datagram := sent[:mtu-headers]
	for range 20 { // it is UDP
		u.Write(datagram)
		u.SetReadDeadline(time.Now().Add(time.Second))
		if n, err := u.Read(got); err == nil && n == len(datagram) {
			return
		}
	}
	t.Fatalf("UDP to %s: no answer to %d bytes", address, len(datagram))
}

// TestFrames: a guest behind an interface speaks and is spoken to with the interface's addresses and MTU, both families; what the
// namespace's own stack has is its own again afterwards.
func TestFrames(t *testing.T) {
	for _, mtu := range []int{1400, 1500, 9000} {
		t.Run(fmt.Sprint(mtu), func(t *testing.T) {
			r := newRoom(t)
			r.veth("node0", "eth0", mtu, []string{"10.9.0.1/24", "fd09::1/64"}, []string{"10.9.0.5/24", "fd09::5/64"})
			r.do(func() error {
				return errors.Join(route("eth0", "", "10.9.0.1", netlink.SCOPE_UNIVERSE, nil), route("eth0", "::/0", "fd09::1", netlink.SCOPE_UNIVERSE, nil))
			})
			r.settle("eth0")
			before := r.state()
			made := r.attach()
			if len(made) != 1 {
				t.Fatalf("%+v", made)
			}
			i := made[0].Guest
			want := api.Interface{Name: "eth0", MAC: i.MAC, MTU: mtu, Addresses: []string{"10.9.0.5/24", "fd09::5/64"},
				Routes:  []api.Route{{Destination: "0.0.0.0/0", Gateway: "10.9.0.1"}, {Destination: "::/0", Gateway: "fd09::1", Metric: 1024}},
				Sysctls: []api.Sysctl{{Family: "ipv6", Key: "accept_ra", Value: "0"}}}
			if !reflect.DeepEqual(i, want) || !strings.Contains(before, i.MAC) {
				t.Errorf("the guest is to be\n%+v, not\n%+v", want, i)
			}
			g := r.guest(made[0])
			g.Do(func() error { return errors.Join(echo(t, "10.9.0.5"), echo(t, "fd09::5")) })
			answers(t, "10.9.0.5", mtu)
			answers(t, "fd09::5", mtu)
			if again := r.attach(); !reflect.DeepEqual(again, made) {
				t.Errorf("again: %+v, before: %+v", again, made)
			}
			answers(t, "10.9.0.5", mtu)

			r.detach()
			if after := r.state(); after != before {
				t.Errorf("left behind:\n%s\nbefore:\n%s", after, before)
			}
			r.do(func() error { return echo(t, "10.9.0.5") })
			answers(t, "10.9.0.5", mtu)
			r.detach()
		})
	}
}

// TestPointToPoint: the addresses of plugins that route each pod have no subnet, gateways are on the link and may have to be told of.
func TestPointToPoint(t *testing.T) {
	r := newRoom(t)
	r.veth("node0", "eth0", 1500, []string{"169.254.1.1/32"}, []string{"10.9.0.5/32"})
	if err := route("node0", "10.9.0.5/32", "", netlink.SCOPE_LINK, nil); err != nil {
		t.Fatal(err)
	}
	node, err := netlink.LinkByName("node0")
	if err != nil {
		t.Fatal(err)
	}
	gateway := node.Attrs().HardwareAddr
	r.do(func() error {
		l, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return errors.Join(route("eth0", "169.254.1.1/32", "", netlink.SCOPE_LINK, nil),
			route("eth0", "0.0.0.0/0", "169.254.1.1", netlink.SCOPE_UNIVERSE, func(r *netlink.Route) { r.MTU = 1450 }),
			netlink.NeighSet(&netlink.Neigh{LinkIndex: l.Attrs().Index, State: netlink.NUD_PERMANENT, IP: net.ParseIP("169.254.1.1"), HardwareAddr: gateway}))
	})
	made := r.attach()
	i := made[0].Guest
	if want := []string{"10.9.0.5/32"}; !slices.Equal(i.Addresses, want) {
		t.Errorf("addresses: %v", i.Addresses)
	}
	if want := []api.Route{{Destination: "0.0.0.0/0", Gateway: "169.254.1.1", MTU: 1450}, {Destination: "169.254.1.1/32"}}; !slices.Equal(i.Routes, want) {
		t.Errorf("routes: %+v", i.Routes)
	}
	if want := []api.Neighbour{{Address: "169.254.1.1", MAC: gateway.String()}}; !slices.Equal(i.Neighbours, want) {
		t.Errorf("neighbours: %+v", i.Neighbours)
	}
	g := r.guest(made[0])
	g.Do(func() error { return echo(t, "10.9.0.5") })
	answers(t, "10.9.0.5", 1450)
}

// TestSubnetThroughGateway: an address whose subnet is not on the link is the guest's without it.
func TestSubnetThroughGateway(t *testing.T) {
	r := newRoom(t)
	r.veth("node0", "eth0", 1500, []string{"10.9.0.1/32"}, nil)
	r.do(func() error {
		l, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		a, err := netlink.ParseAddr("10.9.0.5/24")
		if err != nil {
			return err
		}
		a.Flags = unix.IFA_F_NOPREFIXROUTE
		return errors.Join(netlink.AddrAdd(l, a), route("eth0", "10.9.0.1/32", "", netlink.SCOPE_LINK, nil),
			route("eth0", "10.9.0.0/24", "10.9.0.1", netlink.SCOPE_UNIVERSE, nil))
	})
	i := r.attach()[0].Guest
	if !slices.Equal(i.Addresses, []string{"10.9.0.5/32"}) ||
		!slices.Equal(i.Routes, []api.Route{{Destination: "10.9.0.0/24", Gateway: "10.9.0.1"}, {Destination: "10.9.0.1/32"}}) {
		t.Errorf("%+v", i)
	}
}

// TestForged: the guest is who the plugin made it, and nobody else.
func TestForged(t *testing.T) {
	r := newRoom(t)
	r.veth("node0", "eth0", 1500, []string{"10.9.0.1/24"}, []string{"10.9.0.5/24"})
	i := r.attach()[0]
	g := r.guest(i)
	own, err := net.ParseMAC(i.Guest.MAC)
	if err != nil {
		t.Fatal(err)
	}
	address, other := netip.MustParseAddr("10.9.0.5"), netip.MustParseAddr("10.9.0.6")
	stranger := net.HardwareAddr{2, 0, 0, 0, 0, 1}
	before := r.counters(i.TAP)
	for _, f := range [][]byte{
		nettest.Frame(nettest.Broadcast(), stranger, 0x0806, nettest.ARP(1, own, address, stranger, other)),
		nettest.Frame(nettest.Broadcast(), own, 0x0806, nettest.ARP(2, own, other, stranger, other)),
		nettest.Frame(nettest.Broadcast(), own, 0x0800, nettest.IPv4(other, address, 17, 0, nettest.UDP(1, 2, nil))),
	} {
		if err := g.Send(f); err != nil {
			t.Fatal(err)
		}
	}
	after := r.counters(i.TAP)
	for _, reason := range []string{"source-mac", "arp", "source-ipv4"} {
		if after.Dropped[reason] != before.Dropped[reason]+1 {
			t.Errorf("%s: %+v, before %+v", reason, after.Dropped, before.Dropped)
		}
	}
}

func (r *room) counters(tap string) (from bpf.Counters) {
	r.t.Helper()
	r.do(func() error {
		l, err := netlink.LinkByName(tap)
		if err != nil {
			return err
		}
		g, err := bpf.AdoptFew([]int{l.Attrs().Index})
		if err != nil {
			return err
		}
		defer g.Close()
		from, _, err = g.Counters(l.Attrs().Index)
		return err
	})
	return from
}

// TestSeveral: each interface has a TAP and a slot of its own.
func TestSeveral(t *testing.T) {
	r := newRoom(t)
	for n := range api.MaxSlots {
		r.veth(fmt.Sprint("node", n), fmt.Sprint("net", n), 1500, []string{fmt.Sprintf("10.%d.0.1/24", n)}, []string{fmt.Sprintf("10.%d.0.5/24", n)})
	}
	made := r.attach()
	for n, i := range made {
		if i.Guest.Slot != n || i.Guest.Name != fmt.Sprint("net", n) || i.Guest.Addresses[0] != fmt.Sprintf("10.%d.0.5/24", n) {
			t.Errorf("%d: %+v", n, i)
		}
	}
	for n := range 2 {
		g := r.guest(made[n])
		g.Do(func() error { return echo(t, fmt.Sprintf("10.%d.0.5", n)) })
	}
	answers(t, "10.0.0.5", 1500)
	answers(t, "10.1.0.5", 1500)
	r.detach()
	r.veth("node9", "net9", 1500, nil, []string{"10.9.0.5/24"})
	_, err := Attach(context.Background(), r.path)
	if !errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), "it has 5 interfaces, a virtual machine has at most 4") {
		t.Errorf("five: %v", err)
	}
}

// TestHalfDone: whatever a crash has left is completed by the next Attach, and removed by Detach.
func TestHalfDone(t *testing.T) {
	r := newRoom(t)
	r.veth("node0", "eth0", 1500, []string{"10.9.0.1/24"}, []string{"10.9.0.5/24"})
	r.settle("eth0")
	before := r.state()
	tap := r.attach()[0].TAP
	for name, spoil := range map[string]func() error{
		"no TAP": func() error {
			l, err := netlink.LinkByName(tap)
			if err != nil {
				return err
			}
			return netlink.LinkDel(l)
		},
		"no redirection": func() error {
			l, err := netlink.LinkByName("eth0")
			if err != nil {
				return err
			}
			return bpf.Unredirect(l.Attrs().Index)
		},
		"TAP alone": func() error {
			if err := separate(); err != nil {
				return err
			}
			_, err := ensureTAP(tap)
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := &room{t, r.path}
			r.do(spoil)
			i := r.attach()[0]
			g := r.guest(i)
			g.Do(func() error { return echo(t, "10.9.0.5") })
			answers(t, "10.9.0.5", 1500)
			r.do(spoil)
			r.detach()
			if after := r.state(); after != before {
				t.Errorf("left behind:\n%s\nbefore:\n%s", after, before)
			}
			r.attach()
		})
	}
}

// TestRefused: what cannot be a guest's is said to be so, and is left alone.
func TestRefused(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(r *room) error
		says  string
	}{
		"second address": {func(*room) error { return furnish("eth0", []string{"10.9.0.6/24"}) }, "more than one address of a family: 10.9.0.5 and 10.9.0.6"},
		"no address": {func(*room) error {
			if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "net1"}, PeerName: "net2"}); err != nil {
				return err
			}
			return furnish("net1", nil)
		}, "interface net1: it is up and has no address"},
		"no Ethernet": {func(*room) error {
			tun := &netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: "net1"}, Mode: netlink.TUNTAP_MODE_TUN, Queues: 1}
			if err := netlink.LinkAdd(tun); err != nil {
				return err
			}
			tun.Fds[0].Close()
			return furnish("net1", []string{"10.8.0.5/24"})
		}, "a tuntap without Ethernet addresses"},
		"table": {func(*room) error {
			return route("eth0", "10.7.0.0/24", "10.9.0.1", netlink.SCOPE_UNIVERSE, func(r *netlink.Route) { r.Table = 100 })
		}, "the route to 10.7.0.0/24 is in table 100"},
		"several ways": {func(*room) error {
			return route("eth0", "10.7.0.0/24", "", netlink.SCOPE_UNIVERSE, func(r *netlink.Route) {
				i := r.LinkIndex
				r.LinkIndex = 0
				r.MultiPath = []*netlink.NexthopInfo{{LinkIndex: i, Gw: net.ParseIP("10.9.0.1")}, {LinkIndex: i, Gw: net.ParseIP("10.9.0.2")}}
			})
		}, "the route to 10.7.0.0/24 has more than one way"},
		"all down": {func(*room) error {
			l, err := netlink.LinkByName("eth0")
			if err != nil {
				return err
			}
			return netlink.LinkSetDown(l)
		}, "no interface is up"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRoom(t)
			r.veth("node0", "eth0", 1500, []string{"10.9.0.1/24"}, []string{"10.9.0.5/24"})
			r.settle("eth0")
			r.do(func() error { return c.spoil(r) })
			before := r.state()
			_, err := Attach(context.Background(), r.path)
			if !errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v, not: %s", err, c.says)
			}
			if after := r.state(); after != before {
				t.Errorf("left behind:\n%s\nbefore:\n%s", after, before)
			}
		})
	}
}

// TestNoNamespace: a namespace that is gone is free; the host's own is nobody's.
func TestNoNamespace(t *testing.T) {
	nettest.NeedRoot(t)
	empty := filepath.Join(t.TempDir(), "empty")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{filepath.Join(t.TempDir(), "none"), empty} {
		if err := Detach(context.Background(), path); err != nil {
			t.Errorf("Detach %s: %v", path, err)
		}
		if _, err := Attach(context.Background(), path); err == nil {
			t.Errorf("Attach %s is taken", path)
		}
	}
	if _, err := Attach(context.Background(), "/proc/thread-self/ns/net"); !errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), "it is the host's own") {
		t.Errorf("the host's: %v", err)
	}
}
