// Package fork makes copies of a process that runs, with all its threads, from outside: the process neither knows nor takes part.
//
// fork(2) copies a process as cheaply as can be, its memory being shared until one of the two writes to it, but only the thread that
// calls it. Here the process stands still under ptrace(2); its first thread is made to call clone(2), and the copy to do all the rest:
// to take the descriptors that are to be its own, to give up privileges, and to make the other threads again, on their old stacks, where they go
// on with the registers that they had. CRIU restores threads in the same way.
//
// # Parents
//
// A process becomes a Parent by Seize and never runs again. Its end comes with Close, or with that of the process that has seized it
// (PTRACE_O_EXITKILL), and so does that of a copy that is not complete yet. Root's parents and copies are not dumpable (prctl(2)): other
// processes of the same user cannot look into them.
//
// A parent's seccomp filter must let it make copies (clone), and them do what Options say, unless the caller may suspend it meanwhile
// (CAP_SYS_ADMIN; Parent.Unfiltered).
//
// Copies that are other users take capabilities. A process that is to be a parent later need not be able to use them until it stands still: a copy with
// Options.Parent holds them without effect (capabilities(7): permitted, not effective), and Seize puts them into effect. What keeps it from
// doing so itself is its filter, which must deny capset(2), and everything else that changes them or its user.
//
// Every thread must be waiting in a system call that can be interrupted and made again with the same arguments, such as ppoll(2) and futex(2): the
// caller must have brought the process to rest. Of the descriptors those of eventfds are made anew in each copy, with their counts. All
// others, unless they are replaced, are shared with the parent as by fork(2), offsets and all. Memory that it would share with the parent, and could write to,
// makes a process no parent. What exists once for each process and is
// not copied by fork(2) either (POSIX timers, asynchronous I/O, record locks) is not there.
//
// A copy has the parent's address space layout, stack canaries included: who can read one's memory knows them of its siblings as well.
package fork

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Sentinels, to be found with errors.Is.
var (
	// ErrUnsupported means that this kind of machine, kernel or process cannot be copied here.
	ErrUnsupported = errors.New("processes cannot be copied here")
	// ErrBusy means that a thread does not stand still; another try may succeed.
	ErrBusy = errors.New("the process is not at rest")
	// ErrGone means that the parent has ended.
	ErrGone = errors.New("the process that is copied has ended")
)

// maxFiles is how many descriptors can be replaced in a copy: what one message carries (SCM_MAX_FD of unix(7)).
const maxFiles = 253

// Options say how a copy differs from its parent. It is always in a session of its own.
type Options struct {
	// Parent makes a copy that can be a parent as well: it keeps capabilities, without effect.
	Parent bool
	// Files are the descriptors of the copy that are not the parent's, by number. They stay the caller's. At most 253.
	Files map[int]*os.File
	// Memory is what the copy has at some addresses instead of what the parent has there.
	Memory map[uint64][]byte
	// UID and GID the copy runs as; 0: the parent's. The parent must have CAP_SETUID and CAP_SETGID, which the copy has not.
	UID, GID uint32
	// Filter makes a seccomp filter that the copy, whose number it gets, has beside the parent's; nil: none. The parent must have
	// no_new_privs.
	Filter func(pid int) []unix.SockFilter
	// Cgroup is a cgroup v2 directory the copy is moved into; empty: the parent's.
	Cgroup string
}

func (o *Options) check() error {
	if len(o.Files) > maxFiles {
		return fmt.Errorf("%d descriptors are to be replaced, %d can be", len(o.Files), maxFiles)
	}
	return nil
}
