package nettest

import (
	"net"
	"net/netip"
	"runtime"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Outside stands for the world: a network namespace at the far end of the host's uplink, without a way to any guest's subnet.
type Outside struct {
	t  testing.TB
	ns netns.NsHandle
}

// Addresses of the uplink: the host's and the world's.
func HostAddr() netip.Addr     { return netip.MustParseAddr("203.0.113.1") }
func HostAddr6() netip.Addr    { return netip.MustParseAddr("2001:db8::1") }
func OutsideAddr() netip.Addr  { return netip.MustParseAddr("203.0.113.2") }
func OutsideAddr6() netip.Addr { return netip.MustParseAddr("2001:db8::2") }

// NewOutside gives the test's host an uplink and a default route.
func NewOutside(t testing.TB) *Outside {
	t.Helper()
	o := &Outside{t: t}
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			o.ns, err = netns.Get()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	pair := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "uplink", MTU: 1500}, PeerName: "world", PeerNamespace: netlink.NsFd(o.ns)}
	if err := netlink.LinkAdd(pair); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		netlink.LinkDel(pair)
		o.ns.Close()
	})
	setUp(t, "uplink", HostAddr(), HostAddr6())
	o.Do(func() error { setUp(t, "lo"); setUp(t, "world", OutsideAddr(), OutsideAddr6()); return nil })
	for _, gateway := range []netip.Addr{OutsideAddr(), OutsideAddr6()} {
		if err := netlink.RouteReplace(&netlink.Route{LinkIndex: index(t, "uplink"), Gw: gateway.AsSlice()}); err != nil {
			t.Fatal(err)
		}
	}
	return o
}

// Do runs f in the world. Sockets that it opens stay there.
func (o *Outside) Do(f func() error) {
	o.t.Helper()
	if err := o.Try(f); err != nil {
		o.t.Fatalf("outside: %v", err)
	}
}

// Try is Do for what may fail.
func (o *Outside) Try(f func() error) error {
	return (&Guest{t: o.t, ns: o.ns}).Try(f)
}

func setUp(t testing.TB, name string, addresses ...netip.Addr) {
	t.Helper()
	link, err := netlink.LinkByName(name)
	if err != nil {
		t.Error(err)
		return
	}
	for _, a := range addresses {
		bits := 24
		address := &netlink.Addr{}
		if a.Is6() {
			bits, address.Flags = 64, unix.IFA_F_NODAD
		}
		address.IPNet = &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(bits, a.BitLen())}
		if err := netlink.AddrReplace(link, address); err != nil {
			t.Error(err)
		}
	}
	if err := netlink.LinkSetUp(link); err != nil {
		t.Error(err)
	}
}

func index(t testing.TB, name string) int {
	t.Helper()
	link, err := netlink.LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	return link.Attrs().Index
}
