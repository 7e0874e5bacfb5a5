package fork

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Supported tells whether processes can be copied on this kind of machine.
const Supported = true

// Parent is a process that copies are made of. All methods may be called from any goroutine.
type Parent struct {
	calls      chan func()
	closed     chan struct{}
	close      func()
	unfiltered bool
	caps       capabilities
	pidfd      int

	// What follows belongs to the thread that serves.
	threads  []*thread // the first is the process's first
	eventfds []eventfd
}

// eventfd is a descriptor of one.
type eventfd struct {
	fd    int
	count uint64
	flags uint64
}

// Seize makes a parent of a process, a child of the caller's, to which pidfd refers. On error the process goes on, if it still can. Errors:
// ErrUnsupported, ErrBusy, ErrGone.
func Seize(pid int, pidfd *os.File) (*Parent, error) {
	p := &Parent{calls: make(chan func()), closed: make(chan struct{})}
	seized := make(chan error)
	go p.serve(pid, pidfd, seized)
	if err := <-seized; err != nil {
		return nil, fmt.Errorf("seize process %d: %w", pid, err)
	}
	p.close = sync.OnceFunc(func() { close(p.closed) })
	return p, nil
}

// Unfiltered tells whether the parent's seccomp filter is of no effect until a copy is complete.
func (p *Parent) Unfiltered() bool { return p.unfiltered }

// Able tells whether the parent has capabilities: whether its copies may be other users.
func (p *Parent) Able() bool { return p.caps.any() }

// Close ends the parent. Its copies go on.
func (p *Parent) Close() { p.close() }

// serve does on one thread, which alone may, all that concerns what it traces.
func (p *Parent) serve(pid int, pidfd *os.File, seized chan<- error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err := p.seize(pid, pidfd)
	if err != nil {
		for _, t := range p.threads {
			t.release()
		}
	}
	seized <- err
	if err != nil {
		return
	}
	defer unix.Close(p.pidfd)
	go reap(p.threads[1:])
	for {
		select {
		case f := <-p.calls:
			f()
		case <-p.closed:
			unix.PidfdSendSignal(p.pidfd, unix.SIGKILL, nil, 0) // it may have ended before
			return
		}
	}
}

// reap waits for the end of threads that are not their process's first, of which nobody else is told: the process has not ended before.
func reap(threads []*thread) {
	for _, t := range threads {
		t.reap()
	}
}

// seize stops all threads and learns all that a copy needs to know.
func (p *Parent) seize(pid int, pidfd *os.File) error {
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/[0-9]*", pid))
	if err != nil {
		return err
	}
	var tids []int
	for _, path := range tasks {
		tid, err := strconv.Atoi(filepath.Base(path))
		if err != nil {
			return err
		}
		tids = append(tids, tid)
	}
	// The first thread comes first.
	slices.SortFunc(tids, func(a, b int) int {
		if (a == pid) != (b == pid) {
			return map[bool]int{true: -1, false: 1}[a == pid]
		}
		return a - b
	})
	if len(tids) == 0 || tids[0] != pid {
		return ErrGone
	}
	p.unfiltered = true
	for _, tid := range tids {
		t, unfiltered, err := seize(tid)
		if t != nil {
			p.threads = append(p.threads, &thread{tracee: *t})
		}
		p.unfiltered = p.unfiltered && unfiltered
		if err != nil {
			return err
		}
	}
	if again, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/[0-9]*", pid)); len(again) != len(tids) {
		return fmt.Errorf("%w: it makes and ends threads", ErrBusy)
	}
	// What stands still keeps its number: if the process has not ended, it is that one.
	if ended, err := over(pidfd); err != nil || ended {
		return errors.Join(ErrGone, err)
	}
	for i, t := range p.threads {
		if err := t.rest(); err != nil {
			return err
		}
		if p.threads[i], err = look(&t.tracee); err != nil {
			return err
		}
	}
	if err := p.threads[0].checkInstruction(); err != nil {
		return err
	}
	if err := p.findNumbers(); err != nil {
		return err
	}
	if p.eventfds, err = eventfds(pid); err != nil {
		return err
	}
	if err := p.advise(pid); err != nil {
		return err
	}
	if err := p.threads[0].hide(); err != nil {
		return err
	}
	if p.pidfd, err = unix.PidfdOpen(pid, 0); err != nil {
		return err
	}
	if err := p.empower(); err != nil { // last: it never runs again
		unix.Close(p.pidfd)
		return fmt.Errorf("put its capabilities into effect: %w", err)
	}
	return nil
}

// over tells whether a process has ended: its pidfd is readable then.
func over(pidfd *os.File) (ended bool, err error) {
	conn, err := pidfd.SyscallConn()
	if err != nil {
		return false, err
	}
	controlled := conn.Control(func(fd uintptr) {
		var n int
		n, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		ended = n > 0
	})
	return ended, errors.Join(controlled, err)
}

// checkInstruction looks whether there is a system call where there must be one.
func (t *tracee) checkInstruction() error {
	b := make([]byte, 2)
	if err := readMemory(t.tid, t.syscall, b); err != nil {
		return err
	}
	if b[0] != 0x0f || b[1] != 0x05 {
		return fmt.Errorf("%w: it makes its system calls by % x", ErrUnsupported, b)
	}
	return nil
}

// threadBlock is how many bytes of a thread's descriptor of its C library are looked through for its number.
const threadBlock = 0x900

// findNumbers finds out where the C library keeps the threads' numbers, which are others in a copy: at the same place of each thread's descriptor, which lies where
// its FS register points (the x86-64 ABI for thread-local storage).
func (p *Parent) findNumbers() error {
	var places []int
	for i, t := range p.threads {
		block := make([]byte, threadBlock)
		if err := readMemory(t.tid, t.tlsBase, block); err != nil {
			return err
		}
		var here []int
		for at := 0; at < threadBlock; at += 4 {
			if binary.NativeEndian.Uint32(block[at:]) == uint32(t.tid) && (i == 0 || slices.Contains(places, at)) {
				here = append(here, at)
			}
		}
		places = here
	}
	if len(places) != 1 {
		return fmt.Errorf("%w: its C library is not known (%d places for a thread's number)", ErrUnsupported, len(places))
	}
	for _, t := range p.threads {
		t.tidAt = t.tlsBase + uint64(places[0])
	}
	return nil
}

// eventfds lists a process's. Descriptors of a kind that a copy cannot share are an error.
func eventfds(pid int) ([]eventfd, error) {
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		return nil, err
	}
	var all []eventfd
	for _, e := range entries {
		fd, err := strconv.Atoi(e.Name())
		if err != nil {
			return nil, err
		}
		kind, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", pid, fd))
		if err != nil {
			return nil, err
		}
		switch kind {
		case "anon_inode:[eventfd]":
			v, err := readEventfd(pid, fd)
			if err != nil {
				return nil, err
			}
			all = append(all, v)
		case "anon_inode:[eventpoll]", "anon_inode:[io_uring]", "anon_inode:[timerfd]", "anon_inode:[userfaultfd]":
			return nil, fmt.Errorf("%w: descriptor %d is an %s", ErrUnsupported, fd, kind)
		}
	}
	return all, nil
}

// readEventfd reads /proc/PID/fdinfo/FD as proc(5) has it: flags in octal, the count in hexadecimal.
func readEventfd(pid, fd int) (eventfd, error) {
	v := eventfd{fd: fd}
	path := fmt.Sprintf("/proc/%d/fdinfo/%d", pid, fd)
	b, err := os.ReadFile(path)
	if err != nil {
		return v, err
	}
	for line := range strings.Lines(string(b)) {
		key, value, _ := strings.Cut(line, ":")
		value = strings.TrimSpace(value)
		var err error
		switch key {
		case "flags":
			var flags uint64
			flags, err = strconv.ParseUint(value, 8, 64)
			v.flags |= flags & (unix.O_NONBLOCK | unix.O_CLOEXEC) // EFD_NONBLOCK and EFD_CLOEXEC are the same numbers
		case "eventfd-count":
			v.count, err = strconv.ParseUint(value, 16, 64)
		case "eventfd-semaphore":
			if value == "1" {
				v.flags |= unix.EFD_SEMAPHORE
			}
		}
		if err != nil {
			return v, fmt.Errorf("%s: %w", path, err)
		}
	}
	if v.count > 1<<32-1 { // what eventfd2 takes
		return v, fmt.Errorf("%w: eventfd %d counts %d", ErrUnsupported, fd, v.count)
	}
	return v, nil
}

// advise says of the memory what there is to say (advices).
func (p *Parent) advise(pid int) error {
	f, err := os.Open(fmt.Sprintf("/proc/%d/smaps", pid))
	if err != nil {
		return err
	}
	defer f.Close()
	all, err := advices(f)
	if err != nil {
		return err
	}
	for _, a := range all {
		if _, _, err := p.threads[0].call(unix.SYS_MADVISE, a.from, a.to-a.from, a.what); err != nil {
			return fmt.Errorf("advise on memory at %#x: %w", a.from, err)
		}
	}
	return nil
}

// readMemory fills b from a process's memory.
func readMemory(pid int, from uint64, b []byte) error {
	local := []unix.Iovec{{Base: &b[0], Len: uint64(len(b))}}
	n, err := unix.ProcessVMReadv(pid, local, []unix.RemoteIovec{{Base: uintptr(from), Len: len(b)}}, 0)
	switch {
	case err == unix.ESRCH:
		err = ErrGone
	case err == nil && n != len(b):
		err = errors.New("it is shorter")
	}
	if err != nil {
		return fmt.Errorf("read memory of process %d at %#x: %w", pid, from, err)
	}
	return nil
}

// writeMemory writes b to a process's memory.
func writeMemory(pid int, to uint64, b []byte) error {
	local := []unix.Iovec{{Base: &b[0], Len: uint64(len(b))}}
	n, err := unix.ProcessVMWritev(pid, local, []unix.RemoteIovec{{Base: uintptr(to), Len: len(b)}}, 0)
	switch {
	case err == unix.ESRCH:
		err = ErrGone
	case err == nil && n != len(b):
		err = errors.New("it is shorter")
	}
	if err != nil {
		return fmt.Errorf("write memory of process %d at %#x: %w", pid, to, err)
	}
	return nil
}
