package bpf

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// direction of frames, seen from the host: what a guest sends is a TAP's ingress. The values are tap.c's.
type direction uint32

const (
	fromGuest direction = 0
	toGuest   direction = 1
)

func (d direction) tcx() ebpf.AttachType {
	if d == fromGuest {
		return ebpf.AttachTCXIngress
	}
	return ebpf.AttachTCXEgress
}

func (d direction) clsact() uint32 {
	if d == fromGuest {
		return netlink.HANDLE_MIN_INGRESS
	}
	return netlink.HANDLE_MIN_EGRESS
}

func (d direction) program() string {
	if d == fromGuest {
		return "from_guest"
	}
	return "to_guest"
}

// Priorities of our filters: the lower, the earlier. A redirection comes after whatever else a device has.
const (
	guardPriority    = 1
	redirectPriority = 0xffff
)

// attach puts p where its priority says, or in the place of the program called name. A new place is one of clsact's, since to
// make the first one on a device under TCX has the kernel wait twice until no processor can be using the old list: 27 ms, with
// the lock held that every change of an interface needs; clsact takes 0.4 ms. What an earlier version put under TCX is replaced
// there, and runs before clsact's. Kernels without clsact have TCX since 6.6.
func attach(ifindex int, d direction, p *ebpf.Program, name string, priority uint16) error {
	at, old, err := find(ifindex, d, name)
	if err == nil {
		defer old.Close()
		if programID(old) == programID(p) {
			return nil
		}
		if at == nil {
			return attachTCX(ifindex, d, p, link.ReplaceProgram(old)) // the kernel takes a descriptor here, and no id
		}
		priority = at.Attrs().Priority
	}
	err = attachClsact(ifindex, d, p, name, priority)
	if err == nil || !noClsact(err) {
		return err
	}
	anchor := link.Tail()
	if priority == guardPriority {
		anchor = link.Head()
	}
	return attachTCX(ifindex, d, p, anchor)
}

func attachTCX(ifindex int, d direction, p *ebpf.Program, anchor link.Anchor) error {
	err := link.RawAttachProgram(link.RawAttachProgramOptions{Target: ifindex, Program: p, Attach: d.tcx(), Anchor: anchor})
	if err != nil {
		return fmt.Errorf("attach by TCX: %w", err)
	}
	return nil
}

// noClsact tells whether an error means a kernel without the queueing discipline clsact or the classifier bpf.
func noClsact(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EOPNOTSUPP)
}

func clsact(ifindex int) netlink.Qdisc {
	return &netlink.GenericQdisc{QdiscType: "clsact", QdiscAttrs: netlink.QdiscAttrs{LinkIndex: ifindex,
		Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT}}
}

func attachClsact(ifindex int, d direction, p *ebpf.Program, name string, priority uint16) error {
	if err := netlink.QdiscAdd(clsact(ifindex)); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("add clsact: %w", err)
	}
	return netlink.FilterReplace(&netlink.BpfFilter{FilterAttrs: netlink.FilterAttrs{LinkIndex: ifindex, Parent: d.clsact(),
		Handle: 1, Protocol: unix.ETH_P_ALL, Priority: priority}, Fd: p.FD(), Name: name, DirectAction: true})
}

// find opens the program called name on a device, and tells the filter that it is; nil under TCX. ErrUnknown when there is none.
func find(ifindex int, d direction, name string) (netlink.Filter, *ebpf.Program, error) {
	p, filter, err := attachedClsact(ifindex, d, name)
	if err == nil {
		return filter, p, nil
	}
	p, err = attachedTCX(ifindex, d, name)
	return nil, p, err
}

// attachedClsact finds the program called name, and its filter, on clsact. ErrUnknown when there is none.
func attachedClsact(ifindex int, d direction, name string) (*ebpf.Program, netlink.Filter, error) {
	device := &netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: ifindex}}
	filters, err := netlink.FilterList(device, d.clsact())
	if err != nil {
		return nil, nil, fmt.Errorf("%w: list filters: %w", ErrUnknown, err)
	}
	for _, f := range filters {
		if b, ok := f.(*netlink.BpfFilter); ok && b.DirectAction {
			if p, err := open(ebpf.ProgramID(b.Id), name); err == nil {
				return p, f, nil
			}
		}
	}
	return nil, nil, ErrUnknown
}

// attachedTCX is attachedClsact for TCX.
func attachedTCX(ifindex int, d direction, name string) (*ebpf.Program, error) {
	r, err := link.QueryPrograms(link.QueryOptions{Target: ifindex, Attach: d.tcx()})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnknown, err)
	}
	for _, a := range r.Programs {
		if p, err := open(a.ID, name); err == nil {
			return p, nil
		}
	}
	return nil, ErrUnknown
}

func open(id ebpf.ProgramID, name string) (*ebpf.Program, error) {
	p, err := ebpf.NewProgramFromID(id)
	if err != nil {
		return nil, err
	}
	info, err := p.Info()
	if err != nil || info.Name != name {
		p.Close()
		return nil, ErrUnknown
	}
	return p, nil
}

func programID(p *ebpf.Program) ebpf.ProgramID {
	info, err := p.Info()
	if err != nil {
		return 0
	}
	id, _ := info.ID()
	return id
}
