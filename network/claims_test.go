package network

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

// TestDaemonsShareThePools: a daemon that is idle keeps its subnets and its bridge's name from another one of the host, until its
// state is gone.
func TestDaemonsShareThePools(t *testing.T) {
	first, second := newHouse(t), newHouse(t)
	first.attach(EndpointSpec{Network: Default, Name: "a"})
	if err := first.DetachAll(context.Background(), "sandbox-a"); err != nil {
		t.Fatal(err)
	}
	first.create(Spec{Name: "one"})
	before := map[string]Network{}
	for _, n := range first.List() {
		before[n.Name] = n
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if linkExists(before["one"].Bridge) {
		t.Fatal("the idle daemon's bridge is there: the test tests nothing")
	}
	second.attach(EndpointSpec{Network: Default, Name: "b"})
	second.create(Spec{Name: "one"})
	for _, n := range second.List() {
		for _, old := range before {
			if len(n.Subnets) > 0 && len(old.Subnets) > 0 && (n.Subnets[0].Prefix.Overlaps(old.Subnets[0].Prefix) || n.Bridge == old.Bridge) {
				t.Errorf("%s has %s and %s, as %s of the other daemon", n.Name, n.Subnets[0].Prefix, n.Bridge, old.Name)
			}
		}
	}
	_, err := second.Create(context.Background(), Spec{Name: "chosen", Subnets: []Subnet{{Prefix: before["one"].Subnets[0].Prefix}}})
	if !errors.Is(err, ErrInvalid) {
		t.Errorf("the other daemon's subnet: %v", err)
	}
	first.open()
	if r, err := first.Reconcile(context.Background(), Live{}); err != nil || len(r.Made) == 0 {
		t.Errorf("the first daemon comes back: %+v, %v", r, err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(first.dir, networksName)); err != nil {
		t.Fatal(err)
	}
	second.create(Spec{Name: "chosen", Subnets: []Subnet{{Prefix: before["one"].Subnets[0].Prefix}}})
	first.open()
}

// TestSubnetTakenMeanwhile: a network whose subnet an interface of the host has by now does not come back, and says so by the
// interface's name; the others do. It is there again when the interface has gone.
func TestSubnetTakenMeanwhile(t *testing.T) {
	ctx := context.Background()
	for name, take := range map[string]func(t *testing.T, link netlink.Link){
		"address": func(t *testing.T, link netlink.Link) {
			if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(10, 250, 0, 1), Mask: net.CIDRMask(16, 32)}}); err != nil {
				t.Fatal(err)
			}
		},
		"route": func(t *testing.T, link netlink.Link) {
			if err := addRoute(prefix("10.250.7.128/25"), addr("0.0.0.0"), link.Attrs().Name); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHouse(t)
			h.create(Spec{Name: "taken", Subnets: []Subnet{{Prefix: prefix("10.250.7.0/24")}}})
			h.create(Spec{Name: "free"})
			if err := h.Close(); err != nil {
				t.Fatal(err)
			}
			attrs := netlink.NewLinkAttrs()
			attrs.Name = "thief"
			thief := &netlink.Bridge{LinkAttrs: attrs}
			if err := errors.Join(netlink.LinkAdd(thief), netlink.LinkSetUp(thief)); err != nil {
				t.Fatal(err)
			}
			take(t, thief)
			h.open()
			r, err := h.Reconcile(ctx, Live{})
			if !errors.Is(err, ErrOverlap) || len(r.Made) == 0 {
				t.Errorf("reconciled: %+v, %v", r, err)
			}
			_, err = h.tryAttach(EndpointSpec{Network: "taken", Name: "a"})
			if !errors.Is(err, ErrOverlap) || !strings.Contains(err.Error(), "interface thief") || !strings.Contains(err.Error(), "10.250.7.0/24") {
				t.Errorf("attached: %v", err)
			}
			h.attach(EndpointSpec{Network: "free", Name: "b"})
			if err := netlink.LinkDel(thief); err != nil {
				t.Fatal(err)
			}
			if name == "address" { // the watch sees it; otherwise whoever comes first
				bridge, err := h.Get("taken")
				for end := time.Now().Add(15 * time.Second); err == nil && !linkExists(bridge.Bridge); time.Sleep(10 * time.Millisecond) {
					if time.Now().After(end) {
						t.Fatal("the network does not come back by itself")
					}
				}
			}
			h.attach(EndpointSpec{Network: "taken", Name: "c"})
			if r, err := h.Reconcile(ctx, Live{Sandboxes: []string{"sandbox-b", "sandbox-c"}}); err != nil {
				t.Errorf("reconciled at last: %+v, %v", r, err)
			}
		})
	}
}
