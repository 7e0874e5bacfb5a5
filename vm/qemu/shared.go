package qemu

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// checkShared looks at the descriptors that copies will have in common with a frozen VM: its monitor may have others than it was
// given, if a guest has broken out into it, and copies could write to one another by them.
func (p *parent) checkShared() error {
	pid := p.machine.proc.pid
	own := p.replaced()
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		fd, err := strconv.Atoi(e.Name())
		if err != nil {
			return err
		}
		if own[fd] {
			continue
		}
		harmless, err := readOnly(filepath.Join(dir, e.Name()), filepath.Join("/proc", strconv.Itoa(pid), "fdinfo", e.Name()))
		if err != nil {
			return err
		}
		if !harmless {
			what, _ := os.Readlink(filepath.Join(dir, e.Name()))
			return fmt.Errorf("%w: the monitor has descriptor %d (%s) open, by which copies could write to one another", errors.ErrUnsupported, fd, what)
		}
	}
	return nil
}

// replaced are the descriptors in whose place each copy has one of its own.
func (p *parent) replaced() map[int]bool {
	l := p.launch
	all := map[int]bool{1: true, 2: true, l.monitor: true, l.console: true, l.port: true, l.record: true}
	for _, n := range l.nics {
		all[n.tap], all[n.stream] = true, true
	}
	for _, fds := range p.disks {
		for _, fd := range fds {
			all[fd] = true
		}
	}
	delete(all, 0) // that of an interface's that has none
	return all
}

// readOnly tells whether nobody can leave anything in what a descriptor refers to, or, as with eventfds, copies do not share it.
func readOnly(link, info string) (bool, error) {
	to, err := os.Readlink(link)
	switch {
	case err != nil:
		return false, err
	case to == os.DevNull, to == "anon_inode:[eventfd]", to == "anon_inode:[signalfd]":
		return true, nil
	case strings.HasPrefix(to, "/memfd:"):
		return sealed(link)
	case strings.HasPrefix(to, "/"):
		flags, err := openFlags(info)
		return flags&unix.O_ACCMODE == unix.O_RDONLY, err
	}
	return false, nil
}

// sealed tells whether a memory file cannot be written to: it is sealed against that, or empty and sealed against growing.
func sealed(path string) (bool, error) {
	f, err := os.Open(path)
	if err != nil {
		return false, err
	}
	defer f.Close()
	seals, err := unix.FcntlInt(f.Fd(), unix.F_GET_SEALS, 0)
	if err != nil {
		return false, err
	}
	st, err := f.Stat()
	return seals&unix.F_SEAL_WRITE != 0 || err == nil && st.Size() == 0 && seals&unix.F_SEAL_GROW != 0, err
}

// openFlags reads those of open(2) from /proc/PID/fdinfo/FD, where they are octal (proc(5)).
func openFlags(info string) (int, error) {
	b, err := os.ReadFile(info)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if value, ok := strings.CutPrefix(line, "flags:"); ok {
			flags, err := strconv.ParseUint(strings.TrimSpace(value), 8, 32)
			return int(flags), err
		}
	}
	return 0, fmt.Errorf("%s has no flags", info)
}
