package network

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/cradlevm/cradle/network/nettest"
)

// TestRefusals: what cannot be had is said in docker's words, and leaves nothing behind.
func TestRefusals(t *testing.T) {
	h := newHouse(t)
	nettest.NewOutside(t)
	ctx := context.Background()
	small := h.create(Spec{Name: "small", Subnets: []Subnet{{Prefix: prefix("10.3.0.0/29"), Range: prefix("10.3.0.4/30"), Gateway: addr("10.3.0.1")}}})
	loose := h.create(Spec{Name: "loose"})
	sub := func(p string) []Subnet { return []Subnet{{Prefix: prefix(p)}} }
	for _, c := range []struct {
		spec Spec
		kind error
		text string
	}{
		{Spec{Name: "small"}, ErrExists, "network with name small already exists"},
		{Spec{Name: "x", Subnets: sub("10.3.0.0/24")}, ErrInvalid, "Pool overlaps with other one on this address space"},
		{Spec{Name: "x", Subnets: sub("203.0.113.0/25")}, ErrInvalid, "Pool overlaps with other one on this address space"},
		{Spec{Name: "x", Options: map[string]string{OptionBridge: "uplink"}}, ErrExists, "belongs to somebody else"},
		{Spec{Name: "x", Options: map[string]string{OptionBridge: small.Bridge}}, ErrExists, "networks have same bridge name"},
		{Spec{Name: "x", Subnets: []Subnet{{Prefix: prefix("10.4.0.0/24"), Gateway: addr("10.4.0.1"), Aux: map[string]netip.Addr{"a": addr("10.4.0.1")}}}}, ErrInvalid, "failed to allocate gateway"},
	} {
		if _, err := h.Create(ctx, c.spec); !errors.Is(err, c.kind) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %v", c.text, err)
		}
	}
	if _, err := netlink.LinkByName("uplink"); err != nil {
		t.Errorf("somebody else's interface is gone: %v", err)
	}
	for range 3 {
		h.attach(EndpointSpec{Network: "small", Name: "c" + randomID()[:4]})
	}
	for _, c := range []struct {
		spec EndpointSpec
		kind error
		text string
	}{
		{EndpointSpec{Network: "small", Name: "d"}, ErrExhausted, "no available IPv4 addresses on this network's address pools: small (" + small.ID + ")"},
		{EndpointSpec{Network: "small", Name: "d", IPv4: addr("10.3.0.4")}, ErrExists, "Address already in use"},
		{EndpointSpec{Network: "small", Name: "d", IPv4: addr("10.3.0.1")}, ErrExists, "Address already in use"},
		{EndpointSpec{Network: "small", Name: "d", IPv4: addr("10.3.1.1")}, ErrInvalid, "no configured subnet or ip-range contain the IP address 10.3.1.1"},
		{EndpointSpec{Network: "loose", Name: "d", IPv4: loose.Subnets[0].Gateway.Next()}, ErrInvalid, "only when connecting to networks with user configured subnets"},
		{EndpointSpec{Network: Default, Name: "d", IPv4: addr("172.17.0.9")}, ErrInvalid, "supported on user defined networks only"},
		{EndpointSpec{Network: "loose", Name: "d", MAC: net.HardwareAddr{1, 2, 3, 4, 5, 6}}, ErrInvalid, "invalid MAC address"},
		{EndpointSpec{Network: "nowhere", Name: "d"}, ErrNotFound, "network nowhere not found"},
	} {
		if _, err := h.tryAttach(c.spec); !errors.Is(err, c.kind) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %v", c.text, err)
		}
	}
	if e := h.attach(EndpointSpec{Network: "small", Name: "e", IPv4: addr("10.3.0.2"), MAC: net.HardwareAddr{2, 2, 3, 4, 5, 6}}); e.MAC != "02:02:03:04:05:06" {
		t.Errorf("%+v", e)
	}
	for ref, kind := range map[string]error{Default: ErrInUse, None: ErrInUse, "small": ErrInUse, "nowhere": ErrNotFound} {
		if err := h.Remove(ctx, ref); !errors.Is(err, kind) {
			t.Errorf("%s: %v", ref, err)
		}
	}
	empty := h.create(Spec{Name: "empty", Labels: map[string]string{"keep": ""}})
	gone, err := h.Prune(ctx, func(n Network) bool { _, keep := n.Labels["keep"]; return !keep })
	if err != nil || len(gone) != 1 || gone[0] != "loose" {
		t.Errorf("%v, %v", gone, err)
	}
	if _, err := netlink.LinkByName(empty.Bridge); err != nil {
		t.Error(err)
	}
	taps, err := h.links.taps()
	if files, _ := os.ReadDir(h.dir + "/endpoints"); err != nil || len(files) != 4 || len(taps) < 4 {
		t.Errorf("%d leases, %d TAPs, %v", len(files), len(taps), err)
	}
}

// TestDefaultNetwork is made when it is first used, has no names, and two houses do not share it.
func TestDefaultNetwork(t *testing.T) {
	one, two := newHouse(t), newHouse(t)
	if n, err := one.Get(Default); err != nil || n.Bridge != "" {
		t.Errorf("%+v, %v", n, err)
	}
	a, ea := one.guest(EndpointSpec{Network: Default, Name: "a"})
	b, eb := one.guest(EndpointSpec{Network: Default, Name: "b"})
	c, ec := two.guest(EndpointSpec{Network: Default, Name: "c"})
	listen(t, b, "b")
	reaches(t, a, port7(eb.IPv4.Addr()), "b")
	closed(t, door{c, port7(eb.IPv4.Addr())})
	if ea.IPv4 != prefix("172.17.0.2/16") || ec.IPv4 != prefix("172.18.0.2/16") {
		t.Errorf("%s, %s", ea.IPv4, ec.IPv4)
	}
	if got, err := resolve(a, ea.Resolvers[0], "udp", "b", 1); err == nil {
		t.Errorf("%q", got)
	}
	n, err := one.Get(Default)
	if err != nil || n.Bridge != "cradle0" {
		t.Errorf("%+v, %v", n, err)
	}
	if again := one.reopen(ea.Sandbox, eb.Sandbox); len(again.Made)+len(again.Removed)+len(again.Lost) > 0 {
		t.Errorf("%+v", again)
	}
	if m, err := one.Get(Default); err != nil || m.ID != n.ID || len(m.Subnets) != 1 {
		t.Errorf("%+v, %v", m, err)
	}
}

// TestMoving: a TAP goes from one network to another, and in between it passes nothing.
func TestMoving(t *testing.T) {
	h := newHouse(t)
	h.create(Spec{Name: "one"})
	h.create(Spec{Name: "two"})
	g, e := h.guest(EndpointSpec{Network: "one", Name: "a"})
	b, eb := h.guest(EndpointSpec{Network: "two", Name: "b"})
	listen(t, b, "b")
	if _, err := h.tryAttach(EndpointSpec{Network: "two", Name: "a", TAP: e.TAP}); !errors.Is(err, ErrExists) {
		t.Errorf("%v", err)
	}
	for range 2 {
		if err := h.Detach(context.Background(), e.ID); err != nil {
			t.Fatal(err)
		}
	}
	closed(t, door{g, port7(eb.IPv4.Addr())})
	old := e
	e = h.attach(EndpointSpec{Network: "two", Name: "a", TAP: e.TAP})
	closed(t, door{g, port7(eb.IPv4.Addr())})                                      // the guest has its old addresses
	if err := g.Send(nettest.Honest(identity(old), identity(eb))[0]); err != nil { // whatever its stack has sent meanwhile
		t.Fatal(err)
	}
	if from, _, err := h.Counters(e.ID); err != nil || from.Drops() == 0 {
		t.Errorf("%v, %v", from, err)
	}
	g.Configure(e.MAC, e.MTU, []netip.Prefix{e.IPv4}, []netip.Addr{e.Gateway4})
	reaches(t, g, port7(eb.IPv4.Addr()), "b")
}

// TestHostWithoutIPv6: networks and ports are there, of IPv4; who asks for IPv6 is told why not.
func TestHostWithoutIPv6(t *testing.T) {
	nettest.NeedRoot(t)
	set := func(value string) {
		for _, name := range []string{"all", "default"} {
			if err := os.WriteFile("/proc/sys/net/ipv6/conf/"+name+"/disable_ipv6", []byte(value), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	set("1")
	t.Cleanup(func() { set("0") })
	h := newHouse(t)
	if _, err := h.Create(context.Background(), Spec{Name: "six", IPv6: true}); !errors.Is(err, ErrInvalid) || err.Error() != "IPv6 is switched off on this host" {
		t.Errorf("a network of IPv6: %v", err)
	}
	h.create(Spec{Name: "n"})
	a, ea := h.guest(EndpointSpec{Network: "n", Name: "a", Ports: []PortSpec{{Protocol: "tcp", Host: 8080, Container: 7}, {Protocol: "udp", Host: 8080, Container: 7}}})
	b, _ := h.guest(EndpointSpec{Network: "n", Name: "b"})
	listen(t, a, "a")
	if len(ea.Ports) != 2 {
		t.Errorf("ports: %v", ea.Ports)
	}
	reaches(t, here{}, netip.MustParseAddrPort("127.0.0.1:8080"), "a")
	reaches(t, b, port7(ea.IPv4.Addr()), "a")
	if r := h.reopen(ea.Sandbox, "sandbox-b"); len(r.Made)+len(r.Removed)+len(r.Lost) > 0 {
		t.Errorf("%+v", r)
	}
}

// TestPoolsRunOut: where the pools have no subnet left, the error says so, and what was made stays.
func TestPoolsRunOut(t *testing.T) {
	nettest.NeedRoot(t)
	n, err := Open(context.Background(), Options{Dir: t.TempDir(), Upstreams: []netip.AddrPort{}, Pools: []Pool{{netip.MustParsePrefix("10.61.0.0/23"), 24}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(n.Reset(context.Background()), n.Close()); err != nil {
			t.Error(err)
		}
	})
	for _, name := range []string{"one", "two"} {
		if _, err := n.Create(context.Background(), Spec{Name: name}); err != nil {
			t.Fatal(err)
		}
	}
	_, err = n.Create(context.Background(), Spec{Name: "three"})
	if !errors.Is(err, ErrExhausted) || err.Error() != "all predefined address pools have been fully subnetted" {
		t.Errorf("a third network of two subnets: %v", err)
	}
	if err := n.Remove(context.Background(), "one"); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Create(context.Background(), Spec{Name: "three"}); err != nil {
		t.Errorf("in the place of one that was removed: %v", err)
	}
}
