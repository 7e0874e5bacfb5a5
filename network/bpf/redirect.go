package bpf

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// redirectName is how a redirection is found on a device.
const redirectName = "cradle_redirect"

// Redirect has every frame that arrives on the device from leave by the device to, after all programs that are on from
// already have let it pass: its own network stack sees none of them. It lasts as long as the device, and takes the place
// of an earlier redirection.
func Redirect(from, to int) error {
	p, err := redirection(to)
	if err != nil {
		return fmt.Errorf("load redirection: %w", err)
	}
	defer p.Close()
	if err := attach(from, fromGuest, p, redirectName, redirectPriority); err != nil {
		return fmt.Errorf("attach redirection: %w", err)
	}
	return nil
}

func redirection(to int) (*ebpf.Program, error) {
	return ebpf.NewProgram(&ebpf.ProgramSpec{Name: redirectName, Type: ebpf.SchedCLS, License: "Dual MIT/GPL", Instructions: asm.Instructions{
		asm.Mov.Imm(asm.R1, int32(to)),
		asm.Mov.Imm(asm.R2, 0), // out of the device, not into it
		asm.FnRedirect.Call(),
		asm.Return(),
	}})
}

// Unredirect takes a device's redirection away. Idempotent. A clsact discipline that is left without filters goes too.
func Unredirect(from int) error {
	filter, p, err := find(from, fromGuest, redirectName)
	if errors.Is(err, ErrUnknown) {
		return nil
	}
	if err != nil {
		return err
	}
	defer p.Close()
	if filter == nil {
		err := link.RawDetachProgram(link.RawDetachProgramOptions{Target: from, Program: p, Attach: fromGuest.tcx()})
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("detach redirection: %w", err)
		}
		return nil
	}
	if err := netlink.FilterDel(filter); err != nil {
		return fmt.Errorf("remove redirection: %w", err)
	}
	device := &netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: from}}
	for _, d := range []direction{fromGuest, toGuest} {
		if left, err := netlink.FilterList(device, d.clsact()); err != nil || len(left) > 0 {
			return err
		}
	}
	if err := netlink.QdiscDel(clsact(from)); err != nil {
		return fmt.Errorf("remove clsact: %w", err)
	}
	return nil
}
