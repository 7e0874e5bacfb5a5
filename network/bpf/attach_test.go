package bpf

import (
	"slices"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/cradlevm/cradle/network/nettest"
)

// TestClsact: kernels without TCX have clsact, and the programs are found on it too, by another process as well.
func TestClsact(t *testing.T) {
	g := guards(t, Endpoint{})
	nettest.NeedRoot(t)
	index := device(t, "a0")
	if g.Guarded(index) {
		t.Error("guarded before")
	}
	for range 2 {
		if err := attachClsact(index, fromGuest, g.from, fromGuest.program(), 1); err != nil {
			t.Fatal(err)
		}
		if err := attachClsact(index, toGuest, g.to, toGuest.program(), 1); err != nil {
			t.Fatal(err)
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

// TestNewer: a newer program takes an older one's place.
func TestNewer(t *testing.T) {
	old, newer := guards(t, Endpoint{}), guards(t, Endpoint{})
	index := device(t, "b0")
	for _, g := range []*Guards{old, old, newer, newer} {
		if err := g.Guard(index); err != nil {
			t.Fatal(err)
		}
	}
	if old.Guarded(index) || !newer.Guarded(index) {
		t.Errorf("the older one is there: %v, the newer one: %v", old.Guarded(index), newer.Guarded(index))
	}
}

// TestUnredirect: a redirection goes, and on kernels without TCX what was made for it; others' filters stay.
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
		if p, err := attachedTCX(from, fromGuest, redirectName); err == nil {
			t.Errorf("%v is there", p)
		}
	}
	p, err := redirection(to)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	for _, others := range []bool{true, false} {
		if others {
			err = attachClsact(from, fromGuest, g.from, fromGuest.program(), 1)
		} else {
			err = netlink.QdiscDel(clsact(from))
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := attachClsact(from, fromGuest, p, redirectName, 2); err != nil {
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
