// Package qemu runs virtual machines on QEMU's microvm machine, one QEMU process each.
//
// The process is this package's child, or that of an earlier run of the daemon: it is in a session of its own
// and outlives its parent. It opens nothing: kernel, initrd, disks and listening sockets reach it as
// descriptors, so it needs no access to the VM's directory and can run as a user that has none anywhere.
//
// In the VM's directory are, while it runs, qemu.pid (which process it is), qmp.sock, agent.sock and console.sock;
// console.log, the end of the console's output, stays.
//
// A VM that is restored has the template's memory, a sealed file, as a private mapping. It has a price: a page that is a hole
// of the file takes memory there, once for all VMs of the template, as soon as one of them reads or writes it, beside its
// own copy. That copy the VM has until its guest frees the page (balloon.go).
package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"github.com/cradlevm/cradle/vm"
)

// Options of a Driver. The zero value is right where QEMU is installed as usual.
type Options struct {
	// Binary is the QEMU program, a path or a name to be found in PATH; empty means qemu-system-x86_64.
	Binary string
	// CountInstructions makes one guest instruction take one nanosecond of the guest's time, under TCG: its clock then
	// counts what it has executed, the same on every machine. For benchmarks only; it is slow.
	CountInstructions bool
	// Apart keeps VMs from being copied (vm.Forker): copies have one address space layout.
	Apart bool
}

// Driver implements vm.Driver.
type Driver struct {
	count  bool // Options.CountInstructions
	apart  bool // Options.Apart
	qemu   func() (*installation, error)
	accel  func() accelerator
	tscKHz func() int
	netns  func() (*os.File, error) // noNetwork, once
}

// New makes a driver. It looks at nothing yet; what it needs to know about the machine, it finds out once.
func New(o Options) *Driver {
	d := &Driver{count: o.CountInstructions, apart: o.Apart, tscKHz: sync.OnceValue(tscKHz), netns: sync.OnceValues(noNetwork)}
	d.qemu = installed(o.Binary)
	d.accel = sync.OnceValue(d.findAccelerator)
	return d
}

// Start implements vm.Driver.
func (d *Driver) Start(ctx context.Context, c vm.Config) (vm.VM, error) {
	return d.run(ctx, c, d.openInputs, func(ctx context.Context, m *machine, in *inputs) error {
		for i, disk := range c.Disks {
			if err := m.plug(ctx, disk, in.disks[i]); err != nil {
				return fmt.Errorf("disk %s: %w", disk.Serial, err)
			}
		}
		return m.mon.run(ctx, "cont", nil)
	})
}

// run starts QEMU with what open opens, and then its guest by begin.
func (d *Driver) run(ctx context.Context, c vm.Config, open func(c vm.Config, accel string) (*inputs, error),
	begin func(context.Context, *machine, *inputs) error) (_ vm.VM, err error) {
	if err := c.Check(); err != nil {
		return nil, err
	}
	if err := checkUser(c); err != nil {
		return nil, err
	}
	var made undo
	defer func() {
		if err != nil {
			made.run()
			err = fmt.Errorf("start VM %s: %w", c.ID, err)
		}
	}()
	accel, err := d.choose(c.Accel)
	if err != nil {
		return nil, err
	}
	in, err := open(c, accel)
	if err != nil {
		return nil, err
	}
	defer in.close()
	q, err := d.qemu()
	if err != nil {
		return nil, err
	}
	if p, err := findProcess(c.Dir); err == nil {
		pid := p.pid
		p.close()
		return nil, fmt.Errorf("%w: Dir: process %d already runs a VM in %s", vm.ErrInvalid, pid, c.Dir)
	}
	// A console of an earlier VM in this directory is not this one's.
	forgetConsole := func() { os.Remove(filepath.Join(c.Dir, consoleName)) }
	forgetConsole()
	made.push(forgetConsole)
	made.push(func() { removeTraces(c.Dir) })
	proc, l, err := d.launch(c, q, accel, in)
	if err != nil {
		return nil, err
	}
	m, err := d.takeCharge(ctx, c, proc, in, begin)
	if err != nil {
		err = withWords(err, proc)
		proc.kill()
		proc.wait()
		proc.close()
		return nil, err
	}
	m.forkable = &forkable{config: c, launch: l}
	go m.watch()
	return m, nil
}

// takeCharge connects to a QEMU that waits with its guest not yet running, and lets it run by begin.
func (d *Driver) takeCharge(ctx context.Context, c vm.Config, proc *process, in *inputs,
	begin func(context.Context, *machine, *inputs) error) (*machine, error) {
	m, err := d.open(ctx, c, proc)
	if err != nil {
		return nil, err
	}
	if err := begin(ctx, m, in); err != nil {
		m.abandon()
		return nil, err
	}
	if c.Savable && !in.restore {
		m.ram, in.ram = in.ram, nil // the machine's from here on
	}
	return m, nil
}

// withWords adds a failed process's last words to err. It gives one that is about to end the time to do so.
func withWords(err error, proc *process) error {
	if errors.Is(err, vm.ErrExited) {
		proc.ended(1000)
	}
	if words := proc.lastWords(); words != "" {
		return fmt.Errorf("%w: QEMU says: %s", err, words)
	}
	return err
}

func checkUser(c vm.Config) error {
	uid, gid := os.Geteuid(), os.Getegid()
	if uid != 0 && (c.UID != 0 && int(c.UID) != uid || c.GID != 0 && int(c.GID) != gid) {
		return fmt.Errorf("%w: UID %d, GID %d: %w", vm.ErrInvalid, c.UID, c.GID, errNotOurs)
	}
	return nil
}

// Attach implements vm.Driver. A VM whose Start never came to its end is ended.
func (d *Driver) Attach(ctx context.Context, c vm.Config) (vm.VM, error) {
	if err := c.Check(); err != nil {
		return nil, err
	}
	m, err := d.attach(ctx, c)
	if err != nil {
		return nil, fmt.Errorf("attach to VM %s: %w", c.ID, err)
	}
	return m, nil
}

// unfinished tells whether a machine's start, or restore, was cut short.
func unfinished(state string) bool { return state == "prelaunch" || state == "inmigrate" }

func (d *Driver) attach(ctx context.Context, c vm.Config) (*machine, error) {
	proc, err := findProcess(c.Dir)
	if err != nil {
		if errors.Is(err, vm.ErrExited) {
			removeTraces(c.Dir)
		}
		return nil, err
	}
	m, err := d.open(ctx, c, proc)
	var state string
	if err == nil {
		state, err = m.state(ctx)
		if err == nil && !unfinished(state) {
			err = errors.Join(m.readDisks(ctx), m.goOn(ctx))
		}
		if err != nil {
			m.abandon()
		}
	}
	switch {
	case err == nil && unfinished(state):
		m.abandon()
		proc.kill()
		proc.ended(int(killLimit.Milliseconds()))
		err = fmt.Errorf("%w: its start was never finished", vm.ErrExited)
	case err != nil && proc.ended(0):
		err = withWords(fmt.Errorf("%w: %w", vm.ErrExited, err), proc)
	case err != nil:
		proc.close()
		return nil, err
	default:
		go m.watch()
		return m, nil
	}
	proc.close()
	removeTraces(c.Dir)
	return nil, err
}

// End implements vm.Driver.
func (d *Driver) End(dir string) error {
	proc, err := findProcess(dir)
	switch {
	case errors.Is(err, vm.ErrExited):
	case err != nil:
		return fmt.Errorf("find the VM of %s: %w", dir, err)
	default:
		defer proc.close()
		if err := proc.kill(); err != nil {
			return fmt.Errorf("kill the VM of %s (process %d): %w", dir, proc.pid, err)
		}
		if !proc.ended(int(killLimit.Milliseconds())) {
			return fmt.Errorf("kill the VM of %s: process %d does not go; it is stuck in the kernel", dir, proc.pid)
		}
	}
	removeTraces(dir)
	return nil
}
