package fork

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// capabilities are a process's, as capget(2) has them.
type capabilities struct {
	header unix.CapUserHeader
	sets   [2]unix.CapUserData // the lower and the upper 32
}

// capabilitiesOf asks for those of a process.
func capabilitiesOf(pid int) (capabilities, error) {
	c := capabilities{header: unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3, Pid: int32(pid)}}
	err := unix.Capget(&c.header, &c.sets[0])
	c.header.Pid = 0
	return c, err
}

// any tells whether there are some.
func (c *capabilities) any() bool { return c.sets[0].Permitted|c.sets[1].Permitted != 0 }

// enable puts into effect what is permitted, or nothing of it. What is not inheritable is not ambient either (capabilities(7)): no program that it
// executes has any.
func (c *capabilities) enable(on bool) {
	for i := range c.sets {
		s := &c.sets[i]
		s.Effective, s.Inheritable = 0, 0
		if on {
			s.Effective = s.Permitted
		}
	}
}

// set has a thread that stands still make them its own. scratch is memory of its process's.
func (c *capabilities) set(t *tracee, scratch uint64) error {
	if err := writeMemory(t.tid, scratch, unsafe.Slice((*byte)(unsafe.Pointer(c)), unsafe.Sizeof(*c))); err != nil {
		return err
	}
	_, _, err := t.call(unix.SYS_CAPSET, scratch, scratch+uint64(unsafe.Offsetof(c.sets)))
	return err
}

// redZone is what lies below a thread's stack pointer and is in use all the same (the x86-64 ABI), in bytes.
const redZone = 128

// empower puts the first thread's capabilities into effect. It never runs again, but copies have them from it, until they are complete.
func (p *Parent) empower() error {
	t := &p.threads[0].tracee
	var err error
	if p.caps, err = capabilitiesOf(t.tid); err != nil || !p.Able() {
		return err
	}
	p.caps.enable(true)
	return p.caps.set(t, t.regs.Rsp-redZone-uint64(unsafe.Sizeof(p.caps)))
}
