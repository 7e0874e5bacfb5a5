package network

import (
	"encoding/binary"
	"maps"
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// addRoute is what an outsider does who knows where guests are.
func addRoute(to netip.Prefix, gateway netip.Addr, device string) error {
	link, err := netlink.LinkByName(device)
	if err != nil {
		return err
	}
	return netlink.RouteReplace(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: gateway.AsSlice(),
		Dst: &net.IPNet{IP: to.Addr().AsSlice(), Mask: net.CIDRMask(to.Bits(), to.Addr().BitLen())}})
}

// TestChanges: the watch is woken by what is ours only, and by what it cannot read.
func TestChanges(t *testing.T) {
	n := &kernel{links: &links{tapPrefix: "ctabcd-", alias: "cradle /x"}, firewall: &firewall{"cradle-abcd"}}
	attr := func(kind uint16, value string) []byte {
		b := binary.NativeEndian.AppendUint16(nil, uint16(4+len(value)+1))
		b = append(binary.NativeEndian.AppendUint16(b, kind), value...)
		b = append(b, 0)
		return append(b, make([]byte, (4-len(b)%4)%4)...)
	}
	message := func(kind uint16, head int, attributes ...[]byte) []byte {
		data := make([]byte, head)
		for _, a := range attributes {
			data = append(data, a...)
		}
		b := binary.NativeEndian.AppendUint32(nil, uint32(16+len(data)))
		b = binary.NativeEndian.AppendUint16(b, kind)
		return append(append(b, make([]byte, 10)...), data...)
	}
	const newRule = unix.NFNL_SUBSYS_NFTABLES<<8 | 6
	for name, x := range map[string]struct {
		message []byte
		links   []string
		rules   bool
		all     bool
	}{
		"another's interface": {message(unix.RTM_NEWLINK, 16, attr(unix.IFLA_IFNAME, "eth0")), nil, false, false},
		"a TAP":               {message(unix.RTM_DELLINK, 16, attr(unix.IFLA_IFNAME, "ctabcd-01")), []string{"ctabcd-01"}, false, false},
		"a bridge": {message(unix.RTM_NEWLINK, 16, attr(unix.IFLA_IFNAME, "br7"), attr(unix.IFLA_IFALIAS, "cradle /x")),
			[]string{"br7"}, false, false},
		"two messages": {append(message(unix.RTM_NEWLINK, 16, attr(unix.IFLA_IFNAME, "eth0")),
			message(unix.RTM_NEWLINK, 16, attr(unix.IFLA_IFNAME, "ctabcd-02"))...), []string{"ctabcd-02"}, false, false},
		"another's rule":          {message(newRule, 4, attr(1, "filter")), nil, false, false},
		"a rule":                  {message(newRule, 4, attr(1, "cradle-abcd")), nil, true, false},
		"an attribute's end":      {message(newRule, 4, []byte{200, 0, 1, 0}), nil, false, false},
		"a short message":         {message(newRule, 4, attr(1, "cradle-abcd"))[:20], nil, false, true},
		"nothing in a message":    {message(unix.RTM_NEWLINK, 0), nil, false, false},
		"an attribute of no size": {message(unix.RTM_NEWLINK, 16, []byte{0, 0, 0, 0}), nil, false, false},
	} {
		c := n.changesIn(x.message)
		if !slices.Equal(slices.Sorted(maps.Keys(c.links)), x.links) || c.rules != x.rules || c.all != x.all {
			t.Errorf("%s: %+v", name, c)
		}
	}
}
