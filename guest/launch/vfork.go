// Package launch starts a process in a container without running Go in the child.
//
// A Go program cannot fork: only the calling thread lives on in the child, and the runtime does not survive that.
// What must happen between clone and exec (a dozen to a hundred system calls) is therefore prepared as data, a
// program of raw system calls, and played in the child by a short loop in assembly. The child is a vfork child: it
// borrows the agent's memory, so no page table is copied, and tells which step failed by writing it there.
package launch

import (
	"runtime"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// step is one system call of the child. Its layout is known to the assembly.
type step struct {
	nr   uintptr
	args [6]uintptr
	// save, when not nil, receives the result; it may point into a later step's args.
	save *uintptr
	// allow are the error numbers that do not end the program.
	allow [2]uintptr
}

// outcome is shared by parent and child. Its layout is known to the assembly.
type outcome struct {
	left  uintptr // steps not done, the failed one included; 0: all went well
	errno uintptr
	block uint64 // signals blocked while the child prepares: all
	_     uint64 // the thread's signal mask meanwhile
}

// cloneArgs is struct clone_args of clone3(2).
type cloneArgs struct {
	flags      uint64
	pidFD      uint64 // address of an int32
	_          [2]uint64
	exitSignal uint64
	_          [5]uint64 // stack, TLS, set_tid: none
	cgroup     uint64
}

// vfork runs steps in a child that clone3 makes from args.
//
//go:noescape
func vfork(args *cloneArgs, size uintptr, steps *step, n uintptr, out *outcome) (pid, errno uintptr)

// The runtime's own brackets around a system call that may block: an exec may take long, for the file may lie on a
// FUSE filesystem that a container serves, and it must not hold up the whole agent (a garbage collection waits for
// every thread that is not in a system call).

//go:linkname entersyscall runtime.entersyscall
func entersyscall()

//go:linkname exitsyscall runtime.exitsyscall
func exitsyscall()

// run is what package syscall's Syscall is to a system call.
//
//go:nosplit
//go:norace
func run(args *cloneArgs, steps *step, n uintptr, out *outcome) (pid, errno uintptr) {
	entersyscall()
	pid, errno = vfork(args, unsafe.Sizeof(*args), steps, n, out)
	exitsyscall()
	return pid, errno
}

// spawn plays the program in a new process. With a word, names are read only after it: who has written it has written them before.
func (p *program) spawn(args *cloneArgs, word *uint32) (pid int, err error) {
	if p.err != nil {
		return 0, p.err
	}
	p.resolve()
	var out outcome
	out.block = ^uint64(0)
	args.flags |= unix.CLONE_VM | unix.CLONE_VFORK | unix.CLONE_CLEAR_SIGHAND
	args.exitSignal = uint64(unix.SIGCHLD)
	n, errno := run(args, &p.steps[0], uintptr(len(p.steps)), &out)
	if word != nil {
		atomic.LoadUint32(word)
	}
	runtime.KeepAlive(p)
	if errno != 0 {
		return 0, &Error{Step: "clone", Errno: unix.Errno(errno)}
	}
	if out.left != 0 {
		// Whoever reaps first, we or the agent's reaper, takes the child away.
		unix.Wait4(int(n), nil, unix.WALL, nil)
		return 0, &Error{Step: p.names[len(p.steps)-int(out.left)], Errno: unix.Errno(out.errno)}
	}
	return int(n), nil
}
