package qemu

import (
	"fmt"
	"net/netip"

	"github.com/cradlevm/cradle/api"
	"github.com/cradlevm/cradle/vm"
)

// Network interfaces are virtio-net devices whose backends carry plain frames, each with its checksums and no longer than
// the MTU: a TAP device is attached to without the header that could say otherwise, QEMU's user-mode network knows none.
// So a guest never agrees on anything that another backend lacks, and a saved one fits all.

// nicID names an interface's device, netdevID its backend.
func nicID(i int) string    { return fmt.Sprintf("nic%d", i) }
func netdevID(i int) string { return fmt.Sprintf("net%d", i) }

// nicArg is one interface on the command line.
type nicArg struct {
	tap  int      // descriptor of the TAP device; 0: none
	user *vm.User // nil: none
}

// args are the options of interface i. An interface without a backend drops what it is given.
func (n nicArg) args(i int) []string {
	// QEMU's word to guests that they have moved, upon which they tell all the network where they are, is not for
	// ones that a template or another guest has been made into: they do not yet know who they are.
	device := fmt.Sprintf("virtio-net-device,id=%s,mac=%s,guest_announce=off", nicID(i), api.SlotMAC(i))
	switch {
	case n.tap != 0:
		return []string{"-netdev", fmt.Sprintf("tap,id=%s,fd=%d,vhost=off", netdevID(i), n.tap), "-device", device + ",netdev=" + netdevID(i)}
	case n.user != nil:
		u := n.user
		return []string{"-netdev", fmt.Sprintf("user,id=%s,ipv6=off,restrict=off,net=%s,host=%s,dns=%s,dhcpstart=%s",
			netdevID(i), u.Subnet, u.Gateway, u.DNS, spare(u)), "-device", device + ",netdev=" + netdevID(i)}
	}
	return []string{"-device", device}
}

// spare is an address of u's that is neither gateway nor resolver. QEMU's DHCP server, which nobody asks, must have one.
func spare(u *vm.User) netip.Addr {
	a := u.Subnet.Addr().Next()
	for a == u.Gateway || a == u.DNS {
		a = a.Next()
	}
	return a
}
