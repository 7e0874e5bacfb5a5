package qemu

import (
	"fmt"
	"os"
	"slices"
	"syscall"

	"github.com/cradlevm/cradle/vm"
	"golang.org/x/sys/unix"
)

// inputs are the files of a Config, opened.
type inputs struct {
	kernel, initrd *os.File // initrd is nil when there is none
	disks          []*os.File
	taps           []*os.File // of each interface; nil where it has none
	ram            *os.File   // nil: anonymous memory
	hollow         *os.File   // what takes the place of ram once that is mapped (balloon.go); nil: nothing does
	restore        bool       // the guest goes on from saved state, with a private copy of ram
	parent         *parent    // the guest goes on from a copy of this VM's; nil: it is started
}

func (d *Driver) openInputs(c vm.Config, accel string) (_ *inputs, err error) {
	in := &inputs{}
	defer func() {
		if err != nil {
			in.close()
		}
	}()
	if in.kernel, err = openKernel(c.Kernel, c.UID, c.GID); err != nil {
		return nil, err
	}
	if c.Initrd != "" {
		if in.initrd, err = openInitrd(c.Initrd, c.UID, c.GID); err != nil {
			return nil, err
		}
	}
	if err := in.openDevices(c); err != nil {
		return nil, err
	}
	if c.Savable {
		if in.ram, err = memoryFile("cradle-ram"); err == nil {
			err = in.ram.Truncate(ramSize(accel, c.Memory))
		}
		if err != nil {
			return nil, fmt.Errorf("make memory that can be saved: %w", err)
		}
	}
	return in, nil
}

// openDevices opens disks and network interfaces.
func (in *inputs) openDevices(c vm.Config) error {
	for _, disk := range c.Disks {
		f, err := openDisk(disk)
		if err != nil {
			return err
		}
		in.disks = append(in.disks, f)
	}
	in.taps = make([]*os.File, len(c.NICs))
	for i, n := range c.NICs {
		if n.TAP == "" {
			continue
		}
		var err error
		if in.taps[i], err = openTAP(n); err != nil {
			return err
		}
	}
	return nil
}

func (in *inputs) close() {
	for _, f := range slices.Concat([]*os.File{in.kernel, in.initrd, in.ram, in.hollow}, in.disks, in.taps) {
		if f != nil {
			f.Close()
		}
	}
}

// doors are what a monitor is reached by, and found: its listening sockets and its record.
type doors struct {
	monitor, console, port *os.File
	streams                []*os.File // of each interface; nil where it is no stream
	record                 *record
}

// openDoors makes those of a VM.
func openDoors(c vm.Config) (_ *doors, err error) {
	d := &doors{streams: make([]*os.File, len(c.NICs))}
	defer func() {
		if err != nil {
			d.close()
		}
	}()
	for i, n := range c.NICs {
		if n.Stream {
			if d.streams[i], err = listen(c.Dir, nicSocket(i)); err != nil {
				return nil, err
			}
		}
	}
	for _, socket := range []struct {
		name string
		file **os.File
	}{{monitorSocket, &d.monitor}, {consoleSocket, &d.console}, {agentSocket, &d.port}} {
		if *socket.file, err = listen(c.Dir, socket.name); err != nil {
			return nil, err
		}
	}
	if d.record, err = newRecord(c.Dir); err != nil {
		return nil, err
	}
	return d, nil
}

// close closes our own copies, which must go whatever happens: QEMU's end is noticed by theirs being closed.
func (d *doors) close() {
	for _, f := range slices.Concat([]*os.File{d.monitor, d.console, d.port}, d.streams) {
		if f != nil {
			f.Close()
		}
	}
	if d.record != nil {
		d.record.file.Close()
	}
}

// launch starts QEMU, or copies one that runs, with what it inherits, and records its process. On error nothing runs.
func (d *Driver) launch(c vm.Config, q *installation, accel string, in *inputs) (*process, *launch, error) {
	doors, err := openDoors(c)
	if err != nil {
		return nil, nil, err
	}
	defer doors.close()
	var proc *process
	var l *launch
	if in.parent != nil {
		proc, err = in.parent.copy(c, in, doors)
		l = in.parent.launch
	} else {
		proc, l, err = d.execute(c, q, accel, in, doors)
	}
	if err != nil {
		return nil, nil, err
	}
	if err := doors.record.write(proc.pid); err != nil {
		proc.kill()
		proc.wait()
		proc.close()
		return nil, nil, err
	}
	proc.settle()
	return proc, l, nil
}

// execute starts QEMU.
func (d *Driver) execute(c vm.Config, q *installation, accel string, in *inputs, doors *doors) (*process, *launch, error) {
	var s spawn
	inherit := func(f *os.File) int {
		s.files = append(s.files, f)
		return 2 + len(s.files)
	}
	l := &launch{
		binary: q.binary, version: q.version, id: c.ID, accel: accel,
		cpus: c.CPUs, memory: ramSize(accel, c.Memory), cmdline: c.Cmdline, code: c.CodeCache, initrd: -1, restore: in.restore,
		forkable: c.Forkable,
	}
	if accel == vm.AccelTCG {
		l.tscKHz, l.count = d.tscKHz(), d.count
		if d.count {
			l.tscKHz = 1_000_000 // the time stamp counter counts nanoseconds then
		}
	}
	l.kernel = inherit(in.kernel)
	if in.initrd != nil {
		l.initrd = inherit(in.initrd)
	}
	if in.ram != nil {
		l.ram = inherit(in.ram)
	}
	if in.hollow != nil {
		inherit(in.hollow)
	}
	for i := range c.NICs {
		a := nicArg{}
		if in.taps[i] != nil {
			a.tap = inherit(in.taps[i])
		}
		if doors.streams[i] != nil {
			a.stream = inherit(doors.streams[i])
		}
		l.nics = append(l.nics, a)
	}
	l.monitor, l.console, l.port = inherit(doors.monitor), inherit(doors.console), inherit(doors.port)
	l.record = inherit(doors.record.file)
	if c.Forkable {
		s.caps = []uintptr{unix.CAP_SETUID, unix.CAP_SETGID}
	}

	s.argv, s.cgroup = l.args(), c.Cgroup
	s.uid, s.gid, s.groups = c.UID, c.GID, nil
	if accel == vm.AccelKVM {
		s.groups = kvmGroup()
	}
	var err error
	if s.netns, err = d.netns(); err != nil {
		return nil, nil, err
	}
	proc, err := s.start()
	return proc, l, err
}

// kvmGroup is the group that /dev/kvm is open to, the one supplementary group a monitor is given: QEMU opens the
// device itself.
func kvmGroup() []uint32 {
	info, err := os.Stat("/dev/kvm")
	if err != nil || info.Mode().Perm()&0o060 != 0o060 {
		return nil
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && st.Gid != 0 {
		return []uint32{st.Gid}
	}
	return nil
}
