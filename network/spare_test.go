package network

import (
	"bytes"
	"context"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"
	"unsafe"

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

// frames reads what has reached a monitor until there is nothing for a while.
func frames(t *testing.T, fd int) (all [][]byte) {
	t.Helper()
	buf := make([]byte, 1<<16)
	for {
		ready, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 100)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if ready == 0 {
			return all
		}
		n, err := unix.Read(fd, buf)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, bytes.Clone(buf[:n]))
	}
}

// idle waits until the house's TAPs are cleaned, and tells how many are free.
func (h *house) idle() int {
	h.t.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		h.spares.mu.Lock()
		free, done := len(h.spares.free), !h.spares.working
		h.spares.mu.Unlock()
		if done {
			return free
		}
		if time.Now().After(end) {
			h.t.Fatal("the TAPs are not cleaned")
		}
	}
}

// flood sends datagrams to a guest that does not read: some wait in the descriptor's queue, the others in the device's.
func flood(t *testing.T, e Endpoint, mark []byte) {
	t.Helper()
	bridge, err := netlink.LinkByName(linkOf(t, e.TAP, func(l netlink.Link) string {
		b, err := netlink.LinkByIndex(l.Attrs().MasterIndex)
		if err != nil {
			t.Fatal(err)
		}
		return b.Attrs().Name
	}))
	if err != nil {
		t.Fatal(err)
	}
	mac, err := net.ParseMAC(e.MAC)
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.NeighSet(&netlink.Neigh{LinkIndex: bridge.Attrs().Index, State: netlink.NUD_PERMANENT, IP: e.IPv4.Addr().AsSlice(), HardwareAddr: mac}); err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("udp", netip.AddrPortFrom(e.IPv4.Addr(), 9).String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for range 3000 {
		c.Write(mark) // refused when all queues are full
	}
}

func linkOf[T any](t *testing.T, name string, what func(netlink.Link) T) T {
	t.Helper()
	l, err := netlink.LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	return what(l)
}

func indexOf(l netlink.Link) int { return l.Attrs().Index }

// TestRecycledTAP: a TAP that a machine has left is given to another one under another name, and neither frames for the first
// nor anything that its monitor or its policy has set on it is there any more.
func TestRecycledTAP(t *testing.T) {
	h := newHouse(t)
	h.create(Spec{Name: "n"})
	ctx := context.Background()
	old := h.attach(EndpointSpec{Network: "n", Name: "old", Policy: Policy{Deny: true, Egress: Rate{BytesPerSecond: 1},
		Ingress: Rate{}, Rules: []Rule{{Allow: true, Prefix: netip.MustParsePrefix("10.0.0.0/8")}}}})
	index := linkOf(t, old.TAP, indexOf)
	monitor := monitorOf(t, old.TAP)
	waitCarrier(t, old.TAP)
	mark := []byte("for the old guest only")
	flood(t, old, mark)
	if _, to, err := h.Counters(old.ID); err != nil || to.Packets < 100 {
		t.Fatalf("the queue is not filled: %+v, %v", to, err)
	}
	// A monitor that a guest has taken over.
	ret := []unix.SockFilter{{Code: unix.BPF_RET, K: 0}}
	program := unix.SockFprog{Len: 1, Filter: &ret[0]}
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(monitor), unix.TUNATTACHFILTER, uintptr(unsafe.Pointer(&program))); e != 0 {
		t.Fatal(e)
	}
	for name, err := range map[string]error{
		"owner":  unix.IoctlSetInt(monitor, unix.TUNSETOWNER, 12345),
		"header": unix.IoctlSetPointerInt(monitor, unix.TUNSETVNETHDRSZ, 12),
	} {
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	unix.Close(monitor)
	if err := h.RemoveTAP(ctx, old.TAP); err != nil {
		t.Fatal(err)
	}
	if free := h.idle(); free != 1 {
		t.Fatalf("%d TAPs are kept", free)
	}
	again, err := h.MakeTAP(ctx)
	if err != nil || again == old.TAP || linkOf(t, again, indexOf) != index {
		t.Fatalf("%s is made after %s was left, %v", again, old.TAP, err)
	}
	if assigned, err := h.links.guards.Assigned(); err != nil || len(assigned) != 0 {
		t.Errorf("guards know of %v, %v", assigned, err)
	}
	if up := linkOf(t, again, func(l netlink.Link) bool { return l.Attrs().Flags&net.FlagUp != 0 || l.Attrs().MasterIndex != 0 }); up {
		t.Error("the TAP is up, or on a bridge")
	}
	if !h.links.guards.Guarded(index) {
		t.Error("the TAP has no guard")
	}
	// Late or twice: it is another machine's now.
	if err := h.RemoveTAP(ctx, old.TAP); err != nil {
		t.Error(err)
	}
	e := h.attach(EndpointSpec{Network: "n", Name: "new", TAP: again})
	monitor = monitorOf(t, again)
	defer unix.Close(monitor)
	waitCarrier(t, again)
	if from, to, err := h.Counters(e.ID); err != nil || from.Packets != 0 || to.Packets > 10 {
		t.Errorf("counters begin at %+v, %+v, %v", from, to, err)
	}
	own := []byte("for the new one")
	flood(t, e, own)
	found := false
	for _, f := range frames(t, monitor) {
		found = found || bytes.Contains(f, own)
		if bytes.Contains(f, mark) {
			t.Fatal("a frame of the old guest's reaches the new one")
		}
	}
	if !found {
		t.Error("nothing reaches the new guest: a filter of the old monitor's holds")
	}
	h.idle()
	if link := linkOf(t, again, indexOf); link != index {
		t.Error("the second removal of the old name has touched the new TAP")
	}
	if owner := linkOf(t, again, func(l netlink.Link) uint32 { return l.(*netlink.Tuntap).Owner }); owner == 12345 {
		t.Error("the TAP has the owner that the old monitor gave it")
	}
}

func waitCarrier(t *testing.T, name string) {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); linkOf(t, name, func(l netlink.Link) bool { return l.Attrs().OperState != netlink.OperUp }); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s does not come up", name)
		}
	}
}

// TestHeldTAPIsDeleted: a TAP that somebody still has open is not given to another.
func TestHeldTAPIsDeleted(t *testing.T) {
	h := newHouse(t)
	tap, err := h.MakeTAP(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	held := monitorOf(t, tap)
	defer unix.Close(held)
	if err := h.RemoveTAP(context.Background(), tap); err != nil {
		t.Fatal(err)
	}
	if free := h.idle(); free != 0 {
		t.Errorf("%d TAPs are kept", free)
	}
	if taps, err := h.links.taps(); err != nil || len(taps) != 0 {
		t.Errorf("left: %v, %v", taps, err)
	}
}

// TestSpareTAPs: some are made ahead, not too many are kept, Reconcile leaves them, and none outlasts Close.
func TestSpareTAPs(t *testing.T) {
	h := newHouse(t)
	ctx := context.Background()
	h.spares.ahead = 2
	var made []string
	for range maxFree + 3 {
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
	if free := h.idle(); free != maxFree {
		t.Errorf("%d TAPs are kept, not %d", free, maxFree)
	}
	if r, err := h.Reconcile(ctx, Live{}); err != nil || len(r.Removed)+len(r.Made) > 0 {
		t.Errorf("%+v, %v", r, err)
	}
	if taps, err := h.links.taps(); err != nil || len(taps) != maxFree {
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
