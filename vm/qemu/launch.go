package qemu

import (
	"fmt"
	"os"
	"slices"
	"syscall"

	"github.com/cradlevm/cradle/vm"
)

// inputs are the files of a Config, opened.
type inputs struct {
	kernel, initrd *os.File // initrd is nil when there is none
	disks          []*os.File
	taps           []*os.File // of each interface; nil where it has none
	ram            *os.File   // nil: anonymous memory
	restore        bool       // the guest goes on from saved state, with a private copy of ram
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
	for _, f := range slices.Concat([]*os.File{in.kernel, in.initrd, in.ram}, in.disks, in.taps) {
		if f != nil {
			f.Close()
		}
	}
}

// launch starts QEMU with what it inherits and records its process. On error nothing runs.
func (d *Driver) launch(c vm.Config, q *installation, accel string, in *inputs) (*process, error) {
	var s spawn
	// Our own copies of sockets and record must go whatever happens: QEMU's end is noticed by theirs being closed.
	var ours undo
	defer ours.run()
	inherit := func(f *os.File) int {
		s.files = append(s.files, f)
		return 2 + len(s.files)
	}
	l := launch{
		binary: q.binary, version: q.version, id: c.ID, accel: accel,
		cpus: c.CPUs, memory: ramSize(accel, c.Memory), cmdline: c.Cmdline, code: c.CodeCache, initrd: -1, restore: in.restore,
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
	for i, n := range c.NICs {
		a := nicArg{}
		if in.taps[i] != nil {
			a.tap = inherit(in.taps[i])
		}
		if n.Stream {
			f, err := listen(c.Dir, nicSocket(i))
			if err != nil {
				return nil, err
			}
			ours.push(func() { f.Close() })
			a.stream = inherit(f)
		}
		l.nics = append(l.nics, a)
	}
	for _, socket := range []struct {
		name string
		fd   *int
	}{{monitorSocket, &l.monitor}, {consoleSocket, &l.console}, {agentSocket, &l.port}} {
		f, err := listen(c.Dir, socket.name)
		if err != nil {
			return nil, err
		}
		ours.push(func() { f.Close() })
		*socket.fd = inherit(f)
	}
	rec, err := newRecord(c.Dir)
	if err != nil {
		return nil, err
	}
	ours.push(func() { rec.file.Close() })
	inherit(rec.file)

	s.argv, s.cgroup = l.args(), c.Cgroup
	s.uid, s.gid, s.groups = c.UID, c.GID, nil
	if accel == vm.AccelKVM {
		s.groups = kvmGroup()
	}
	proc, err := s.start()
	if err != nil {
		return nil, err
	}
	if err := rec.write(proc.pid); err != nil {
		proc.kill()
		proc.wait()
		proc.close()
		return nil, err
	}
	proc.settle()
	return proc, nil
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
