package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cradlevm/cradle/vm"
	"github.com/cradlevm/cradle/vm/fork"
)

// A VM that is frozen is a QEMU whose processors stand still, to which nobody is connected and which waits in poll(2). A copy of it
// has sockets, TAPs and a user of its own, and goes on as soon as it is told to. It shares with it what an emulated processor costs
// most to have: the guest's code as QEMU has translated it.

// forkable is what is kept of a VM for it to be frozen.
type forkable struct {
	config vm.Config
	launch *launch // which descriptor is what
}

// parent is a frozen VM. It implements vm.Source.
type parent struct {
	*forkable
	machine *machine
	process *fork.Parent
	form    shape
	disks   map[string][]int // descriptors of each disk's image, by serial
	nameAt  uint64           // address of the VM's id in the command line that ps(1) shows; 0: unknown
}

// restLimit bounds the time that QEMU takes to notice that nobody is connected to it any more, and to come to rest.
const restLimit = 20 * time.Second

// Forks implements vm.Forker. What emulates the processor is memory of QEMU's; KVM's virtual machines are bound to their process.
func (d *Driver) Forks(context.Context) bool {
	accel, err := d.choose(vm.AccelAuto)
	return err == nil && accel == vm.AccelTCG && fork.Supported && !d.apart
}

// Freeze implements vm.Freezer.
func (m *machine) Freeze(ctx context.Context) (vm.Source, error) {
	p, err := m.freeze(ctx)
	if err != nil {
		return nil, m.explain(fmt.Errorf("freeze VM %s: %w", m.id, err))
	}
	return p, nil
}

func (m *machine) freeze(ctx context.Context) (*parent, error) {
	m.steady.Lock()
	defer m.steady.Unlock()
	switch {
	case m.forkable == nil:
		return nil, fmt.Errorf("%w: another process has started it", errors.ErrUnsupported)
	case m.forkable.launch.accel != vm.AccelTCG:
		return nil, fmt.Errorf("%w: a VM under %s is bound to its process", errors.ErrUnsupported, m.forkable.launch.accel)
	case m.forkable.config.Savable:
		return nil, fmt.Errorf("%w: copies of a VM that was started Savable would share its memory", errors.ErrUnsupported)
	}
	ctx, cancel := context.WithTimeout(ctx, restLimit)
	defer cancel()
	if err := m.mon.run(ctx, "stop", nil); err != nil {
		return nil, err
	}
	m.mu.Lock()
	m.frozen = true
	for _, conn := range m.streams {
		conn.Close()
	}
	m.mu.Unlock()
	m.mon.close()
	m.consoleConn.Close()
	p := &parent{forkable: m.forkable, machine: m}
	p.form.Disks, p.form.Slot = m.disks.saved()
	var err error
	if p.disks, err = m.diskDescriptors(); err != nil {
		return nil, err
	}
	p.nameAt = nameAddress(m.proc.pid, m.id)
	err = m.poll(ctx, func() (_ bool, err error) {
		if alone, err := m.alone(); err != nil || !alone {
			return false, err
		}
		p.process, err = fork.Seize(m.proc.pid, m.proc.pidfd)
		if errors.Is(err, fork.ErrBusy) {
			return false, nil
		}
		if errors.Is(err, fork.ErrGone) {
			err = fmt.Errorf("%w: %w", vm.ErrExited, err)
		}
		return true, err
	})
	if err == nil && !m.forkable.config.Forkable && !p.process.Unfiltered() {
		p.process.Close()
		err = fmt.Errorf("%w: it was not started Forkable, and its seccomp filter cannot be suspended", errors.ErrUnsupported)
	}
	if err == nil {
		if err = p.checkShared(); err != nil {
			p.process.Close()
		}
	}
	if err != nil {
		if errors.Is(err, fork.ErrUnsupported) {
			err = fmt.Errorf("%w: %w", errors.ErrUnsupported, err)
		}
		return nil, err
	}
	return p, nil
}

// diskDescriptors finds QEMU's descriptors of the disks' images. They are at rest once its processors are.
func (m *machine) diskDescriptors() (map[string][]int, error) {
	open, err := openFiles(m.proc.pid)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", vm.ErrExited, err)
	}
	all := map[string][]int{}
	for serial, id := range m.disks.files() {
		if len(open[id]) == 0 {
			return nil, fmt.Errorf("the monitor does not have the image of disk %s open", serial)
		}
		all[serial] = open[id]
	}
	return all, nil
}

// nameAddress finds the VM's id in the memory of a process where its command line is (proc(5): arg_start of /proc/PID/stat). 0 when it is not there:
// a copy is then listed under its parent's name, and nothing else.
func nameAddress(pid int, id string) uint64 {
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return 0
	}
	const option = "\x00-name\x00"
	at := strings.Index(string(line), option+id+"\x00")
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil || at < 0 {
		return 0
	}
	_, rest, _ := cutLast(string(stat), ") ")
	fields := strings.Fields(rest)
	if len(fields) < 48-2 {
		return 0
	}
	start, err := strconv.ParseUint(fields[48-3], 10, 64)
	if err != nil || start == 0 {
		return 0
	}
	return start + uint64(at+len(option))
}

// alone tells whether nobody is connected to QEMU: its sockets are those that it was given, which its copies have others in the place of.
func (m *machine) alone() (bool, error) {
	dir := fmt.Sprintf("/proc/%d/fd", m.proc.pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return false, fmt.Errorf("%w: %w", vm.ErrExited, err)
	}
	l := m.forkable.launch
	given := []int{l.monitor, l.console, l.port}
	for _, n := range l.nics {
		given = append(given, n.stream)
	}
	for _, e := range entries {
		to, err := os.Readlink(filepath.Join(dir, e.Name()))
		if err != nil || !strings.HasPrefix(to, "socket:") {
			continue
		}
		if fd, err := strconv.Atoi(e.Name()); err != nil || !slices.Contains(given, fd) {
			return false, err
		}
	}
	return true, nil
}

// Restore implements vm.Source.
func (p *parent) Restore(ctx context.Context, c vm.Config) (vm.VM, error) {
	of := p.config
	if c.Memory != of.Memory || c.CPUs != of.CPUs {
		return nil, fmt.Errorf("%w: CPUs, Memory: %d and %d bytes, not the %d and %d of the frozen VM", vm.ErrInvalid, c.CPUs, c.Memory, of.CPUs, of.Memory)
	}
	if len(c.NICs) != len(of.NICs) {
		return nil, fmt.Errorf("%w: NICs: %d, not the %d of the frozen VM", vm.ErrInvalid, len(c.NICs), len(of.NICs))
	}
	for i, n := range c.NICs {
		if n.Stream != of.NICs[i].Stream || (n.TAP != "") != (of.NICs[i].TAP != "") {
			return nil, fmt.Errorf("%w: NICs: interface %d is of another kind than the frozen VM's", vm.ErrInvalid, i)
		}
	}
	if len(c.Disks) != len(p.disks) {
		return nil, fmt.Errorf("%w: Disks: %d, not the %d of the frozen VM", vm.ErrInvalid, len(c.Disks), len(p.disks))
	}
	for _, d := range c.Disks {
		if p.disks[d.Serial] == nil {
			return nil, fmt.Errorf("%w: Disks: %s is none of the frozen VM's", vm.ErrInvalid, d.Serial)
		}
	}
	if !of.Forkable && (c.Forkable || c.UID != of.UID || c.GID != of.GID) {
		return nil, fmt.Errorf("%w: UID, GID, Forkable: a copy of a VM that was not started Forkable is the same user's, and not Forkable", vm.ErrInvalid)
	}
	if c.Forkable && p.process.Able() && !p.process.Unfiltered() {
		return nil, fmt.Errorf("%w: Forkable: nothing would keep the copy's monitor from becoming another user: its seccomp filter cannot be suspended (CAP_SYS_ADMIN)",
			errors.ErrUnsupported)
	}
	if c.Savable {
		return nil, fmt.Errorf("%w: Savable: a copy cannot be saved by Snapshot", vm.ErrInvalid)
	}
	return p.machine.driver.run(ctx, c, p.open, func(ctx context.Context, m *machine, in *inputs) error {
		m.disks.restore(p.form)
		for i, d := range c.Disks {
			if err := m.disks.opened(d.Serial, in.disks[i]); err != nil {
				return err
			}
			m.disks.settle(d.Serial)
		}
		// The guest does not know that the one who was connected has gone. If it writes before it does, and nobody is there, QEMU
		// holds back all that comes after.
		conn, err := connect(ctx, m.dir, agentSocket)
		if err != nil {
			return err
		}
		m.early, m.streams[agentSocket] = conn, conn
		return m.mon.run(ctx, "cont", nil)
	})
}

// open gives a copy what is its own.
func (p *parent) open(c vm.Config, accel string) (*inputs, error) {
	if accel != p.launch.accel {
		return nil, fmt.Errorf("%w: Accel: it was frozen under another accelerator", vm.ErrInvalid)
	}
	in := &inputs{parent: p, restore: true}
	if err := in.openDevices(c); err != nil {
		in.close()
		return nil, err
	}
	return in, nil
}

// copy makes a copy's process.
func (p *parent) copy(c vm.Config, in *inputs, d *doors) (*process, error) {
	words, err := boundedFile(maxWords)
	if err != nil {
		return nil, fmt.Errorf("make a file for QEMU's messages: %w", err)
	}
	o := fork.Options{Cgroup: c.Cgroup, Files: map[int]*os.File{
		1: words, 2: words, p.launch.monitor: d.monitor, p.launch.console: d.console, p.launch.port: d.port, p.launch.record: d.record.file,
	}}
	if p.nameAt != 0 {
		name := make([]byte, len(p.config.ID))
		copy(name, c.ID)
		o.Memory = map[uint64][]byte{p.nameAt: name}
	}
	if o.Filter = copyFilter; c.Forkable {
		o.Parent, o.Filter = true, parentFilter(p.process.Unfiltered())
	}
	for i, d := range c.Disks {
		for _, fd := range p.disks[d.Serial] {
			o.Files[fd] = in.disks[i]
		}
	}
	if os.Geteuid() == 0 && p.config.Forkable {
		o.UID, o.GID = c.UID, c.GID
	}
	for i, n := range p.launch.nics {
		if n.tap != 0 {
			o.Files[n.tap] = in.taps[i]
		}
		if n.stream != 0 {
			o.Files[n.stream] = d.streams[i]
		}
	}
	pid, pidfd, err := p.process.Fork(o)
	if err != nil {
		words.Close()
		if errors.Is(err, fork.ErrGone) {
			err = fmt.Errorf("%w: %w", vm.ErrExited, err)
		}
		return nil, err
	}
	return &process{pid: pid, pidfd: pidfd, child: true, words: words}, nil
}

// Close implements vm.Source.
func (p *parent) Close() error {
	p.process.Close()
	return p.machine.Kill()
}
