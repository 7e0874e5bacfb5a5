package qemu

import (
	"fmt"

	"github.com/cradlevm/cradle/api"
)

// Network interfaces are virtio-net devices whose backends carry plain frames, each with its checksums and no longer than
// the MTU: a TAP device is attached to without the header that could say otherwise, a stream knows none.
// So a guest never agrees on anything that another backend lacks, and a saved one fits all.

// nicID names an interface's device, netdevID its backend.
func nicID(i int) string    { return fmt.Sprintf("nic%d", i) }
func netdevID(i int) string { return fmt.Sprintf("net%d", i) }

// nicSocket is where in Dir the stream of interface i listens.
func nicSocket(i int) string { return fmt.Sprintf("nic%d.sock", i) }

// nicArg is one interface on the command line.
type nicArg struct {
	tap    int // descriptor of the TAP device; 0: none
	stream int // descriptor of the listening socket; 0: none
}

// args are the options of interface i. An interface without a backend drops what it is given.
func (n nicArg) args(i int) []string {
	// QEMU's word to guests that they have moved, upon which they tell all the network where they are, is not for
	// ones that a template or another guest has been made into: they do not yet know who they are.
	// Nor does QEMU filter by VLAN, which a guest's kernel would ask for as soon as the interface is up, and then visit 8192
	// places for a VLAN's device whenever something changes: 7 % of what a guest executes for a start.
	device := fmt.Sprintf("virtio-net-device,id=%s,mac=%s,guest_announce=off,ctrl_vlan=off", nicID(i), api.SlotMAC(i))
	switch {
	case n.tap != 0:
		return []string{"-netdev", fmt.Sprintf("tap,id=%s,fd=%d,vhost=off", netdevID(i), n.tap), "-device", device + ",netdev=" + netdevID(i)}
	case n.stream != 0:
		return []string{"-netdev", fmt.Sprintf("stream,id=%s,server=on,addr.type=fd,addr.str=%d", netdevID(i), n.stream),
			"-device", device + ",netdev=" + netdevID(i)}
	}
	return []string{"-device", device}
}
