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
	anchor := link.Head()
	if old, err := attachedTCX(ifindex, d); err == nil {
		id := programID(old)
		old.Close()
		if id == programID(p) {
			return nil
		}
		anchor = link.ReplaceProgramByID(id)
	}
	err := link.RawAttachProgram(link.RawAttachProgramOptions{Target: ifindex, Program: p, Attach: d.tcx(), Anchor: anchor})
	if err == nil || !noTCX(err) {
		return err
	}
	return attachClsact(ifindex, d, p)
}

// noTCX tells whether an error means a kernel before 6.6.
func noTCX(err error) bool {
	return errors.Is(err, ebpf.ErrNotSupported) || errors.Is(err, unix.EINVAL)
}

func attachClsact(ifindex int, d direction, p *ebpf.Program) error {
	qdisc := &netlink.GenericQdisc{QdiscType: "clsact", QdiscAttrs: netlink.QdiscAttrs{LinkIndex: ifindex,
		Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT}}
	if err := netlink.QdiscAdd(qdisc); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("add clsact: %w", err)
	}
	return netlink.FilterReplace(&netlink.BpfFilter{FilterAttrs: netlink.FilterAttrs{LinkIndex: ifindex, Parent: d.clsact(),
		Handle: 1, Protocol: unix.ETH_P_ALL, Priority: 1}, Fd: p.FD(), Name: d.program(), DirectAction: true})
}

// attached opens our program on a device. ErrUnknown when there is none.
func attached(ifindex int, d direction) (*ebpf.Program, error) {
	if p, err := attachedTCX(ifindex, d); err == nil {
		return p, nil
	}
	device := &netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: ifindex}}
	filters, err := netlink.FilterList(device, d.clsact())
	if err != nil {
		return nil, fmt.Errorf("%w: list filters: %w", ErrUnknown, err)
	}
	for _, f := range filters {
		if b, ok := f.(*netlink.BpfFilter); ok && b.DirectAction {
			if p, err := open(ebpf.ProgramID(b.Id), d); err == nil {
				return p, nil
			}
		}
	}
	return nil, ErrUnknown
}

func attachedTCX(ifindex int, d direction) (*ebpf.Program, error) {
	r, err := link.QueryPrograms(link.QueryOptions{Target: ifindex, Attach: d.tcx()})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnknown, err)
	}
	for _, a := range r.Programs {
		if p, err := open(a.ID, d); err == nil {
			return p, nil
		}
	}
	return nil, ErrUnknown
}

func open(id ebpf.ProgramID, d direction) (*ebpf.Program, error) {
	p, err := ebpf.NewProgramFromID(id)
	if err != nil {
		return nil, err
	}
	info, err := p.Info()
	if err != nil || info.Name != d.program() {
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
