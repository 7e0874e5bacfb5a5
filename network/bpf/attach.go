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

// attach puts p in front of all other programs of the device, or in the place of an older one of ours.
func attach(ifindex int, d direction, p *ebpf.Program) error {
	return attachAt(ifindex, d, p, d.program(), link.Head(), 1)
}

// attachAt puts p where anchor says (priority on kernels without TCX, the lower the earlier), or in the place of the program
// called name.
func attachAt(ifindex int, d direction, p *ebpf.Program, name string, anchor link.Anchor, priority uint16) error {
	if old, err := attachedTCX(ifindex, d, name); err == nil {
		defer old.Close()
		if programID(old) == programID(p) {
			return nil
		}
		anchor = link.ReplaceProgram(old) // the kernel takes a descriptor here, and no id
	}
	err := link.RawAttachProgram(link.RawAttachProgramOptions{Target: ifindex, Program: p, Attach: d.tcx(), Anchor: anchor})
	if err == nil || !noTCX(err) {
		return err
	}
	return attachClsact(ifindex, d, p, name, priority)
}

// noTCX tells whether an error means a kernel before 6.6.
func noTCX(err error) bool {
	return errors.Is(err, ebpf.ErrNotSupported) || errors.Is(err, unix.EINVAL)
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

// attached opens our program on a device. ErrUnknown when there is none.
func attached(ifindex int, d direction) (*ebpf.Program, error) {
	if p, err := attachedTCX(ifindex, d, d.program()); err == nil {
		return p, nil
	}
	p, _, err := attachedClsact(ifindex, d, d.program())
	return p, err
}

// attachedClsact finds the program called name, and its filter, where a kernel without TCX has it. ErrUnknown when there is
// none.
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
