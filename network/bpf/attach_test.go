package bpf

import (
	"fmt"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"

	"github.com/cradlevm/cradle/network/nettest"
)

// TestTCX: what earlier versions put under TCX is found there, by another process as well, and stays there.
func TestTCX(t *testing.T) {
	g := guards(t, Endpoint{})
	nettest.NeedRoot(t)
	index := device(t, "a0")
	if g.Guarded(index) {
		t.Error("guarded before")
	}
	underTCX(t, g, index)
	for range 2 {
		if err := g.Guard(index); err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range []direction{fromGuest, toGuest} {
		if at, p, err := find(index, d, d.program()); err != nil || at != nil {
			t.Errorf("%s: %v, %v, %v", d.program(), at, p, err)
		}
	}
	if !g.Guarded(index) {
		t.Error("not guarded after")
	}
	other, err := Adopt([]int{index})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if !other.Guarded(index) {
		t.Error("another process does not find them")
	}
	if err := other.Assign(index, whole()); err != nil {
		t.Fatal(err)
	}
	if all, err := g.Assigned(); err != nil || len(all) != 1 || all[0] != index {
		t.Errorf("the maps are not the same: %v, %v", all, err)
	}
}

// underTCX puts the programs on a device as earlier versions did.
func underTCX(t *testing.T, g *Guards, index int) {
	t.Helper()
	for d, p := range map[direction]*ebpf.Program{fromGuest: g.from, toGuest: g.to} {
		if err := attachTCX(index, d, p, link.Head()); err != nil {
			t.Fatal(err)
		}
	}
}

// device makes one end of a pair of devices.
func device(t *testing.T, name string) (index int) {
	t.Helper()
	pair := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: name + "peer"}
	if err := netlink.LinkAdd(pair); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { netlink.LinkDel(pair) })
	link, err := netlink.LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	return link.Attrs().Index
}

// TestNewer: a newer program takes an older one's place, where that one is.
func TestNewer(t *testing.T) {
	old, newer := guards(t, Endpoint{}), guards(t, Endpoint{})
	nettest.NeedRoot(t)
	for _, tcx := range []bool{false, true} {
		index := device(t, fmt.Sprintf("b%t", tcx))
		if tcx {
			underTCX(t, old, index)
		}
		for _, g := range []*Guards{old, old, newer, newer} {
			if err := g.Guard(index); err != nil {
				t.Fatal(err)
			}
		}
		if old.Guarded(index) || !newer.Guarded(index) {
			t.Errorf("the older one is there: %v, the newer one: %v", old.Guarded(index), newer.Guarded(index))
		}
		_, _, onClsact := attachedClsact(index, fromGuest, fromGuest.program())
		_, underTCX := attachedTCX(index, fromGuest, fromGuest.program())
		if (underTCX == nil) != tcx || (onClsact == nil) == tcx {
			t.Errorf("put under TCX: %v; clsact: %v, TCX: %v", tcx, onClsact, underTCX)
		}
	}
}

// TestUnredirect: a redirection goes, and what was made for it, also where earlier versions put it; others' filters stay.
func TestUnredirect(t *testing.T) {
	g := guards(t, Endpoint{})
	from, to := device(t, "c0"), device(t, "c1")
	for range 2 {
		for _, target := range []int{to, from, to} {
			if err := Redirect(from, target); err != nil {
				t.Fatal(err)
			}
		}
		for range 2 {
			if err := Unredirect(from); err != nil {
				t.Fatal(err)
			}
		}
		if _, p, err := find(from, fromGuest, redirectName); err == nil {
			t.Errorf("%v is there", p)
		}
	}
	p, err := redirection(to)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if err := attachTCX(from, fromGuest, p, link.Tail()); err != nil {
		t.Fatal(err)
	}
	if err := Unredirect(from); err != nil {
		t.Fatal(err)
	}
	if _, p, err := find(from, fromGuest, redirectName); err == nil {
		t.Errorf("%v is there", p)
	}
	for _, others := range []bool{true, false} {
		if others {
			err = attachClsact(from, fromGuest, g.from, fromGuest.program(), 2)
		} else {
			err = netlink.QdiscDel(clsact(from))
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := Redirect(from, to); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := Unredirect(from); err != nil {
				t.Fatal(err)
			}
		}
		link, err := netlink.LinkByIndex(from)
		if err != nil {
			t.Fatal(err)
		}
		qdiscs, err := netlink.QdiscList(link)
		if err != nil {
			t.Fatal(err)
		}
		left := slices.ContainsFunc(qdiscs, func(q netlink.Qdisc) bool { return q.Type() == "clsact" })
		if left != others || g.Guarded(from) {
			t.Errorf("beside others' filters (%v) clsact is left: %v", others, left)
		}
		if _, _, err := attachedClsact(from, fromGuest, fromGuest.program()); (err == nil) != others {
			t.Errorf("others' filter: %v", err)
		}
	}
}
