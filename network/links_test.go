package network

import (
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
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
