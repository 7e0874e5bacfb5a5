package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"
)

// traced makes one call again and again, which its tracer makes others of: what becomes of it is what the filter says of those.
func traced() error {
	err := errors.Join(expect("allowed", unix.SYS_GETPGID, 0, 0), expect("allowed", unix.SYS_GETUID, 0, 0),
		install(0, program(allow, native(unix.SYS_GETPPID, any, unix.SECCOMP_RET_TRACE), native(unix.SYS_GETPGID, 7, deny(77)), native(unix.SYS_SCHED_YIELD, any, deny(78)))))
	for i := range 3 * len(replaced) {
		want := replaced[i%len(replaced)]
		if got := call(unix.SYS_GETPPID, 0); got != want.errno {
			err = errors.Join(err, fmt.Errorf("call %d(%d) in the place of another: error %d, want %d", want.number, want.first, got, want.errno))
		}
	}
	return err
}

// replaced is what the tracer makes of the calls, in turn, and what comes of each.
var replaced = []struct {
	number, first uint64
	errno         uint32
}{{unix.SYS_GETPGID, 0, 0}, {unix.SYS_GETPGID, 7, 77}, {unix.SYS_GETUID, 0, 0}, {unix.SYS_SCHED_YIELD, 0, 78}}

// tracer traces traced.
func tracer() error {
	cmd := exec.Command("/proc/self/exe", "traced")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Ptrace: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	next := 0
	for begun := false; ; {
		var ws unix.WaitStatus
		tid, err := unix.Wait4(-1, &ws, unix.WALL, nil)
		if err != nil {
			return err
		}
		if ws.Exited() || ws.Signaled() {
			if tid != cmd.Process.Pid {
				continue // another thread of it
			}
			if ws.ExitStatus() != 0 || next != 3*len(replaced) {
				return fmt.Errorf("the traced process ended with %#x after %d calls", ws, next)
			}
			return nil
		}
		pass := 0
		switch {
		case ws.TrapCause() == unix.PTRACE_EVENT_SECCOMP:
			if err := replace(tid, next); err != nil {
				return err
			}
			next++
		case !begun: // it has just been executed
			begun = true
			const options = unix.PTRACE_O_TRACESECCOMP | unix.PTRACE_O_TRACECLONE | unix.PTRACE_O_EXITKILL
			if err := unix.PtraceSetOptions(tid, options); err != nil {
				return err
			}
		case ws.StopSignal() != unix.SIGTRAP && ws.StopSignal() != unix.SIGSTOP: // neither an event nor a thread that has just been made
			pass = int(ws.StopSignal())
		}
		if err := unix.PtraceCont(tid, pass); err != nil && err != unix.ESRCH {
			return err
		}
	}
}

// replace makes another call of the one that a thread is about to make.
func replace(tid, turn int) error {
	var regs unix.PtraceRegs
	if err := unix.PtraceGetRegs(tid, &regs); err != nil {
		return err
	}
	what := replaced[turn%len(replaced)]
	regs.Orig_rax, regs.Rdi = what.number, what.first
	return unix.PtraceSetRegs(tid, &regs)
}
