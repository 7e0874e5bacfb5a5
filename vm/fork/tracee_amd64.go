package fork

import (
	"encoding/binary"
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Requests and numbers of ptrace(2) that package unix has no function for.
const (
	ntXState       = 0x202 // NT_X86_XSTATE of elf.h
	maxXState      = 16 << 10
	sigsetBytes    = 8
	eventShift     = 16
	seizeOptions   = unix.PTRACE_O_TRACECLONE | unix.PTRACE_O_TRACEFORK | unix.PTRACE_O_EXITKILL
	eventStop      = 128        // PTRACE_EVENT_STOP of linux/ptrace.h
	rseqConfigSize = 8 + 4*4    // struct ptrace_rseq_configuration
	notInSyscall   = ^uint64(0) // orig_rax
)

// Errors of a system call that was interrupted and is to be made again, which only a tracer sees (linux/errno.h).
const (
	restartSys     = 512
	restartNoIntr  = 513
	restartNoHand  = 514
	restartBlocked = 516
)

// tracee is a thread that we trace and that stands still, but during step. All calls for it are made by the one thread of ours that traces it.
type tracee struct {
	tid     int
	regs    unix.PtraceRegs // what it goes on with
	syscall uint64          // address of a system call instruction
	leads   bool            // it is its process's first, which has a process group of its own, and makes threads
	made    int             // the thread whose stop has been waited for already, and which that is; 0: none
	madeAt  unix.WaitStatus
	gone    bool // its end has been waited for: its number may be another's by now
}

// ptrace makes a request.
func ptrace(request, tid int, addr, data uintptr) error {
	_, _, errno := unix.RawSyscall6(unix.SYS_PTRACE, uintptr(request), uintptr(tid), addr, data, 0, 0)
	switch errno {
	case 0:
		return nil
	case unix.ESRCH: // what does not stand still does not run either: it has been killed
		return fmt.Errorf("%w (thread %d)", ErrGone, tid)
	}
	return fmt.Errorf("ptrace %#x of thread %d: %w", request, tid, errno)
}

// seize stops a thread. unfiltered tells whether its seccomp filter is suspended.
func seize(tid int) (_ *tracee, unfiltered bool, err error) {
	err = ptrace(unix.PTRACE_SEIZE, tid, 0, seizeOptions|unix.PTRACE_O_SUSPEND_SECCOMP)
	if unfiltered = err == nil; !unfiltered {
		err = ptrace(unix.PTRACE_SEIZE, tid, 0, seizeOptions)
	}
	if err != nil {
		return nil, false, err
	}
	if err := ptrace(unix.PTRACE_INTERRUPT, tid, 0, 0); err != nil {
		return nil, false, err
	}
	t := &tracee{tid: tid}
	return t, unfiltered, t.stopped()
}

// stopped waits until a thread stands still that was interrupted, or has just been made, and reads its registers.
func (t *tracee) stopped() error {
	ws, err := t.wait()
	if err != nil {
		return err
	}
	return t.standing(ws)
}

// standing is stopped for one whose stop has been waited for.
func (t *tracee) standing(ws unix.WaitStatus) error {
	if int(ws)>>eventShift != eventStop {
		return fmt.Errorf("%w: thread %d has stopped by signal %d", ErrBusy, t.tid, ws.StopSignal())
	}
	return t.read(&t.regs)
}

// wait waits for the thread's next stop.
func (t *tracee) wait() (unix.WaitStatus, error) {
	var ws unix.WaitStatus
	for {
		how := unix.WALL
		if t.leads {
			if err := t.awaitGroup(); err != nil {
				return 0, err
			}
			how |= unix.WNOHANG // it may have been killed since
		}
		got, err := unix.Wait4(t.tid, &ws, how, nil)
		switch {
		case err == unix.EINTR, err == nil && got == 0:
		case err != nil:
			return 0, fmt.Errorf("wait for thread %d: %w", t.tid, err)
		case !ws.Stopped():
			t.gone = true
			return 0, fmt.Errorf("%w (thread %d)", ErrGone, t.tid)
		default:
			return ws, nil
		}
	}
}

func (t *tracee) read(regs *unix.PtraceRegs) error {
	return ptrace(unix.PTRACE_GETREGS, t.tid, 0, uintptr(unsafe.Pointer(regs)))
}

func (t *tracee) write(regs *unix.PtraceRegs) error {
	return ptrace(unix.PTRACE_SETREGS, t.tid, 0, uintptr(unsafe.Pointer(regs)))
}

// rest turns the registers of a thread that was interrupted in a system call into those with which it makes the call again: its instruction is two bytes long.
func (t *tracee) rest() error {
	if t.regs.Orig_rax == notInSyscall {
		return fmt.Errorf("%w: thread %d is not in a system call", ErrBusy, t.tid)
	}
	switch -int64(t.regs.Rax) {
	case restartSys, restartNoIntr, restartNoHand, restartBlocked:
	default:
		return fmt.Errorf("%w: thread %d is at the end of system call %d", ErrBusy, t.tid, t.regs.Orig_rax)
	}
	t.regs.Rax = t.regs.Orig_rax
	t.regs.Rip -= 2
	t.regs.Orig_rax = notInSyscall
	t.syscall = t.regs.Rip
	return nil
}

// call makes the thread make a system call, and returns what that does. child is the process or thread that clone has made, also on error.
func (t *tracee) call(number uintptr, args ...uint64) (result uint64, child int, err error) {
	regs := t.regs
	regs.Rax, regs.Rip, regs.Orig_rax = uint64(number), t.syscall, notInSyscall
	for i, to := range []*uint64{&regs.Rdi, &regs.Rsi, &regs.Rdx, &regs.R10, &regs.R8, &regs.R9} {
		*to = 0
		if i < len(args) {
			*to = args[i]
		}
	}
	if err := t.write(&regs); err != nil {
		return 0, 0, err
	}
	for {
		if err := ptrace(unix.PTRACE_SINGLESTEP, t.tid, 0, 0); err != nil {
			return 0, child, err
		}
		ws, err := t.wait()
		if err != nil {
			return 0, child, err
		}
		if event := int(ws) >> eventShift; event == unix.PTRACE_EVENT_CLONE || event == unix.PTRACE_EVENT_FORK {
			var id uint64
			if err := ptrace(unix.PTRACE_GETEVENTMSG, t.tid, 0, uintptr(unsafe.Pointer(&id))); err != nil {
				return 0, 0, err
			}
			child = int(id)
			continue
		} else if event != 0 || ws.StopSignal() != unix.SIGTRAP {
			return 0, child, fmt.Errorf("%w: thread %d has stopped by signal %d (event %d)", ErrBusy, t.tid, ws.StopSignal(), event)
		}
		break
	}
	if err := t.read(&regs); err != nil {
		return 0, child, err
	}
	// A system call leaves in RCX where it returns to (the x86-64 architecture).
	if regs.Rip != t.syscall+2 || regs.Rcx != regs.Rip {
		return 0, child, fmt.Errorf("%w: thread %d was to make system call %d and did something else", ErrUnsupported, t.tid, number)
	}
	if errno := -int64(regs.Rax); errno > 0 && errno < 4096 {
		return 0, child, fmt.Errorf("system call %d in thread %d: %w", number, t.tid, unix.Errno(errno))
	}
	return regs.Rax, child, nil
}

// detach lets the thread go on.
func (t *tracee) detach() error {
	if err := t.write(&t.regs); err != nil {
		return err
	}
	return ptrace(unix.PTRACE_DETACH, t.tid, 0, 0)
}

// release lets the thread of a process go on that was not seized after all: by itself, or, if it has been told to, from rest.
func (t *tracee) release() {
	if t.syscall == 0 || t.detach() != nil {
		ptrace(unix.PTRACE_DETACH, t.tid, 0, 0)
	}
}

// reap waits for the thread's end, and for that of all threads if it leads.
func (t *tracee) reap() {
	for t.leads && !t.gone {
		if _, err := unix.Wait4(-t.tid, nil, unix.WALL, nil); err != nil && err != unix.EINTR {
			return // there are no more
		}
	}
	for !t.gone {
		var ws unix.WaitStatus
		_, err := unix.Wait4(t.tid, &ws, unix.WALL, nil)
		t.gone = err != unix.EINTR && (err != nil || ws.Exited() || ws.Signaled())
	}
}

// hide makes the process undumpable, where that does not keep the caller out of it as well.
func (t *tracee) hide() error {
	if unix.Geteuid() != 0 {
		return nil
	}
	if _, _, err := t.call(unix.SYS_PRCTL, unix.PR_SET_DUMPABLE, 0); err != nil {
		return fmt.Errorf("make it undumpable: %w", err)
	}
	return nil
}

// thread is what a thread has beside its memory: what another one like it must be given.
type thread struct {
	tracee
	xstate  []byte
	mask    uint64
	robust  uint64 // head of its list of robust futexes, 0: none
	length  uint64
	rseq    uint64 // address of its restartable sequences' area, 0: none
	size    uint32
	sign    uint32
	tidAt   uint64 // where its C library keeps its number
	tlsBase uint64
}

// look reads all of a thread that stands still.
func look(t *tracee) (*thread, error) {
	th := &thread{tracee: *t, tlsBase: t.regs.Fs_base, xstate: make([]byte, maxXState)}
	vec := unix.Iovec{Base: &th.xstate[0], Len: maxXState}
	if err := ptrace(unix.PTRACE_GETREGSET, t.tid, ntXState, uintptr(unsafe.Pointer(&vec))); err != nil {
		return nil, err
	}
	th.xstate = th.xstate[:vec.Len]
	if err := ptrace(unix.PTRACE_GETSIGMASK, t.tid, sigsetBytes, uintptr(unsafe.Pointer(&th.mask))); err != nil {
		return nil, err
	}
	if _, _, errno := unix.Syscall(unix.SYS_GET_ROBUST_LIST, uintptr(t.tid), uintptr(unsafe.Pointer(&th.robust)), uintptr(unsafe.Pointer(&th.length))); errno != 0 {
		return nil, fmt.Errorf("ask for robust futexes of thread %d: %w", t.tid, errno)
	}
	var rseq [rseqConfigSize]byte
	err := ptrace(unix.PTRACE_GET_RSEQ_CONFIGURATION, t.tid, rseqConfigSize, uintptr(unsafe.Pointer(&rseq)))
	switch {
	case err == nil:
		th.rseq = binary.NativeEndian.Uint64(rseq[:])
		th.size, th.sign = binary.NativeEndian.Uint32(rseq[8:]), binary.NativeEndian.Uint32(rseq[12:])
	case !errors.Is(err, unix.EIO) && !errors.Is(err, unix.EINVAL): // of kernels without
		return nil, err
	}
	return th, nil
}

// become gives a thread that has just been made in a copy what th has.
func (th *thread) become(t *tracee) error {
	t.regs, t.syscall = th.regs, th.syscall
	vec := unix.Iovec{Base: &th.xstate[0], Len: uint64(len(th.xstate))}
	if err := ptrace(unix.PTRACE_SETREGSET, t.tid, ntXState, uintptr(unsafe.Pointer(&vec))); err != nil {
		return err
	}
	if err := ptrace(unix.PTRACE_SETSIGMASK, t.tid, sigsetBytes, uintptr(unsafe.Pointer(&th.mask))); err != nil {
		return err
	}
	if th.rseq != 0 {
		if _, _, err := t.call(unix.SYS_RSEQ, th.rseq, uint64(th.size), 0, uint64(th.sign)); err != nil {
			return err
		}
	}
	return th.keepRobust(t)
}

// keepRobust gives a thread of a copy the list of robust futexes of th.
func (th *thread) keepRobust(t *tracee) error {
	if th.robust == 0 {
		return nil
	}
	_, _, err := t.call(unix.SYS_SET_ROBUST_LIST, th.robust, th.length)
	return err
}
