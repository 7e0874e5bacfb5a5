package bpf

import (
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/cradlevm/cradle/network/nettest"
)

// TestClsact: kernels without TCX have clsact, and the programs are found on it too, by another process as well.
func TestClsact(t *testing.T) {
	g := guards(t, Endpoint{})
	nettest.NeedRoot(t)
	pair := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "a0"}, PeerName: "a1"}
	if err := netlink.LinkAdd(pair); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { netlink.LinkDel(pair) })
	link, err := netlink.LinkByName("a0")
	if err != nil {
		t.Fatal(err)
	}
	index := link.Attrs().Index
	if g.Guarded(index) {
		t.Error("guarded before")
	}
	for range 2 {
		if err := attachClsact(index, fromGuest, g.from); err != nil {
			t.Fatal(err)
		}
		if err := attachClsact(index, toGuest, g.to); err != nil {
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
