package network

import (
	"context"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/cradlevm/cradle/network/dump"
)

// monitorOf opens a TAP as a machine's monitor does.
func monitorOf(t *testing.T, tap string) int {
	t.Helper()
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	ifr, err := unix.NewIfreq(tap)
	if err != nil {
		t.Fatal(err)
	}
	ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
		t.Fatal(err)
	}
	return fd
}

// idle waits until none of the house's spare TAPs is being made or deleted, and tells how many there are.
func (h *house) idle() int {
	h.t.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		h.spares.mu.Lock()
		free, done := len(h.spares.free), !h.spares.making && len(h.spares.left) == 0
		h.spares.mu.Unlock()
		if done {
			return free
		}
		if time.Now().After(end) {
			h.t.Fatal("the TAPs are not deleted")
		}
	}
}

// TestUsedTAP: of a TAP that a machine has left nothing is left, also when somebody holds it; whoever removes it twice, or late, removes
// nothing else.
func TestUsedTAP(t *testing.T) {
	h := newHouse(t)
	h.create(Spec{Name: "n"})
	ctx := context.Background()
	e := h.attach(EndpointSpec{Network: "n", Name: "a", Policy: Policy{Deny: true, Egress: Rate{BytesPerSecond: 1},
		Rules: []Rule{{Allow: true, Prefix: netip.MustParsePrefix("10.0.0.0/8")}}}})
	held := monitorOf(t, e.TAP)
	defer unix.Close(held)
	if err := h.RemoveTAP(ctx, e.TAP); err != nil {
		t.Fatal(err)
	}
	if link, err := netlink.LinkByName(e.TAP); err == nil && link.Attrs().Flags&net.FlagUp != 0 {
		t.Error("it is up")
	}
	next, err := h.MakeTAP(ctx)
	if err != nil || next == e.TAP {
		t.Fatalf("%s is made after %s was left, %v", next, e.TAP, err)
	}
	for range 2 {
		if err := h.RemoveTAP(ctx, e.TAP); err != nil {
			t.Error(err)
		}
	}
	h.idle()
	if taps, err := h.links.taps(); err != nil || len(taps) != 1 || taps[next] == nil {
		t.Errorf("there are %v, %v", taps, err)
	}
	if assigned, err := h.links.guards.Assigned(); err != nil || len(assigned) != 0 {
		t.Errorf("guards know of %v, %v", assigned, err)
	}
}

// TestSpareTAPs: so many are made ahead, those that machines have left do not stay, Reconcile knows both, and none outlasts Close.
func TestSpareTAPs(t *testing.T) {
	h := newHouse(t)
	ctx := context.Background()
	h.spares.ahead = 2
	var made []string
	for range 2 * deletionsAtOnce {
		tap, err := h.MakeTAP(ctx)
		if err != nil {
			t.Fatal(err)
		}
		made = append(made, tap)
	}
	if free := h.idle(); free != 2 {
		t.Errorf("%d TAPs are made ahead", free)
	}
	for _, tap := range made {
		if err := h.RemoveTAP(ctx, tap); err != nil {
			t.Fatal(err)
		}
	}
	if r, err := h.Reconcile(ctx, Live{}); err != nil || len(r.Removed)+len(r.Made) > 0 {
		t.Errorf("%+v, %v", r, err)
	}
	if free := h.idle(); free != 2 {
		t.Errorf("%d TAPs are kept", free)
	}
	if taps, err := h.links.taps(); err != nil || len(taps) != 2 {
		t.Errorf("%d TAPs, %v", len(taps), err)
	}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	if taps, err := h.links.taps(); err != nil || len(taps) != 0 {
		t.Errorf("%d TAPs are left, %v", len(taps), err)
	}
	h.open()
}

// TestTAPAfterReset: a machine that was being made while all was reset leaves no TAP when it goes.
func TestTAPAfterReset(t *testing.T) {
	h := newHouse(t)
	ctx := context.Background()
	h.spares.ahead = 2
	tap, err := h.MakeTAP(ctx)
	if err != nil {
		t.Fatal(err)
	}
	h.idle()
	if err := h.Reset(ctx); err != nil {
		t.Fatal(err)
	}
	late, err := h.MakeTAP(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{tap, late} {
		if err := h.RemoveTAP(ctx, name); err != nil {
			t.Error(err)
		}
	}
	if taps, err := h.links.taps(); err != nil || len(taps) != 0 {
		t.Errorf("left: %v, %v", taps, err)
	}
}

// TestMovingOut: without endpoints nothing is left on the host when the daemon ends, and the next one makes it again.
func TestMovingOut(t *testing.T) {
	h := newHouse(t)
	n := h.create(Spec{Name: "n", IPv6: true})
	e := h.attach(EndpointSpec{Network: "n", Name: "a"})
	left := func() (all []string) {
		links, err := dump.Whole(netlink.LinkList)
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range links {
			if l.Attrs().Alias == h.links.alias || strings.HasPrefix(l.Attrs().Name, h.links.tapPrefix) {
				all = append(all, l.Attrs().Name)
			}
		}
		c, err := nftables.New()
		if err != nil {
			t.Fatal(err)
		}
		tables, err := c.ListTables()
		if err != nil {
			t.Fatal(err)
		}
		for _, table := range tables {
			if table.Name == h.firewall.table {
				all = append(all, "table")
			}
		}
		return all
	}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	if all := left(); len(all) != 3 { // bridge, TAP, table
		t.Errorf("with an endpoint, %v stay", all)
	}
	h.open()
	h.reopen()
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	if all := left(); len(all) != 0 {
		t.Errorf("%v are left", all)
	}
	h.open()
	if _, err := h.Reconcile(context.Background(), Live{}); err != nil {
		t.Fatal(err)
	}
	again, err := h.Get("n")
	if err != nil || again.ID != n.ID || again.Bridge != n.Bridge || again.Subnets[0].Prefix != n.Subnets[0].Prefix {
		t.Errorf("%+v, %v", again, err)
	}
	if b := h.attach(EndpointSpec{Network: "n", Name: "b"}); b.IPv4 != e.IPv4 {
		t.Errorf("%v is given, not %v again", b.IPv4, e.IPv4)
	}
	if !h.firewall.intact(h.hostState()) {
		t.Error("the firewall is not made again")
	}
}

// TestIntroduced: the host does not have to ask for a new endpoint's address, nor to wait for the answer of who had it before.
func TestIntroduced(t *testing.T) {
	h := newHouse(t)
	made := h.create(Spec{Name: "n"})
	first := h.attach(EndpointSpec{Network: "n", Name: "first"})
	address := first.IPv4.Addr()
	if err := h.Detach(context.Background(), first.ID); err != nil {
		t.Fatal(err)
	}
	bridge := bridgeOf(t, made)
	state := func() (int, string) {
		all, err := netlink.NeighList(bridge.Attrs().Index, netlink.FAMILY_V4)
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range all {
			if n.IP.Equal(net.IP(address.AsSlice())) {
				return n.State, n.HardwareAddr.String()
			}
		}
		return 0, ""
	}
	if err := netlink.NeighSet(&netlink.Neigh{LinkIndex: bridge.Attrs().Index, IP: address.AsSlice(), State: netlink.NUD_STALE, HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 9}}); err != nil {
		t.Fatal(err)
	}
	second := h.attach(EndpointSpec{Network: "n", Name: "second", MAC: net.HardwareAddr{2, 0, 0, 0, 0, 7}})
	if second.IPv4 != first.IPv4 {
		t.Skipf("it has another address: %s, not %s", second.IPv4, first.IPv4)
	}
	if s, mac := state(); s != netlink.NUD_REACHABLE || mac != second.MAC {
		t.Errorf("the host knows %s by %q (state %#x), not by %s", address, mac, s, second.MAC)
	}
}
