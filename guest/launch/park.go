package launch

import (
	"errors"
	"runtime"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// room is how many steps a parked process can be given.
const room = 192

// Parked is a process that has been made and has done what does not depend on what it runs; it waits to be told that. The
// thread that made it sleeps meanwhile: the process is its vfork child.
type Parked struct {
	program *program
	base    int // of its steps were there from the beginning
	args    *cloneArgs
	fd      *int32
	word    *uint32 // 0 while it is to wait
	told    uintptr // not 0 once it has been told
	done    chan struct{}
	pid     int // and err: set when done is closed
	err     error
}

// Park describes a process of which s has the namespaces, the cgroup and the mounts, and the filter if it is to be installed
// already: what Start says of the process afterwards has to pass it. Nothing else of s is used.
func Park(s *Spec) *Parked {
	p := &program{}
	k := &Parked{program: p, fd: new(int32), word: new(uint32), done: make(chan struct{})}
	*k.fd = -1
	p.add("setsid", unix.SYS_SETSID)
	p.places(s)
	p.seccomp(s.Seccomp)
	const waitPrivate = 0 | 128 // FUTEX_WAIT, FUTEX_PRIVATE_FLAG
	p.try("wait", []unix.Errno{unix.EAGAIN}, unix.SYS_FUTEX, hold(p, k.word), waitPrivate, 0, 0, 0, 0)
	p.add("told", unix.SYS_GETPID)
	p.steps[len(p.steps)-1].save = &k.told
	k.base = len(p.steps)
	for range room {
		p.add("", unix.SYS_GETPID)
	}
	// It has the caller's descriptors, not copies of them, until it is told what to run: it holds none that is closed meanwhile,
	// and finds those that are opened.
	k.args = &cloneArgs{flags: unix.CLONE_PIDFD | unix.CLONE_FILES, pidFD: uint64(hold(p, k.fd))}
	if s.NewPID {
		k.args.flags |= unix.CLONE_NEWPID
	}
	if s.Cgroup > 0 {
		k.args.flags |= unix.CLONE_INTO_CGROUP
		k.args.cgroup = uint64(s.Cgroup)
	}
	return k
}

// Run makes the process, from the calling thread as Start does, and returns when it has been executed or has ended.
func (k *Parked) Run() {
	defer close(k.done)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	k.pid, k.err = k.program.spawn(k.args, k.word)
}

// End has the process end, unless Start has made it a program, and returns when it has: also when Run, which must have been
// called or be about to be, has not made it yet, so that nothing could have killed it. It may be called again.
func (k *Parked) End() {
	k.wake() // to do nothing
	<-k.done
	k.closeFD()
}

// wake has the process go on, or not wait at all.
func (k *Parked) wake() {
	atomic.StoreUint32(k.word, 1)
	const wakePrivate = 1 | 128 // FUTEX_WAKE
	unix.Syscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(k.word)), wakePrivate, 1, 0, 0, 0)
}

// closeFD closes the descriptor of the process, unless there is none or it is somebody else's.
func (k *Parked) closeFD() {
	if *k.fd >= 0 {
		unix.Close(int(*k.fd))
		*k.fd = -1
	}
}

// Start tells the process what it runs: s is the same as for Park in what Park uses of it, but for the filter, which is
// only there if it has not been installed. It returns as the function Start does. Once only.
func (k *Parked) Start(s *Spec) (pid, pidfd int, err error) {
	q := &program{}
	const unshare = 1 << 1 // CLOSE_RANGE_UNSHARE
	q.add("close descriptors", unix.SYS_CLOSE_RANGE, 3, uintptr(^uint32(0)), unshare|unix.CLOSE_RANGE_CLOEXEC)
	for i, fd := range s.Stdio {
		q.add("dup stdio", unix.SYS_DUP3, uintptr(fd), uintptr(i), 0)
	}
	q.rest(s)
	switch {
	case q.err != nil:
		return 0, -1, q.err
	case len(q.steps) > room:
		return 0, -1, errors.New("a process that is parked cannot be given so much to do")
	case s.Terminal:
		return 0, -1, errors.New("a process that is parked cannot be given a terminal")
	}
	p := k.program
	copy(p.steps[k.base:], q.steps)
	copy(p.names[k.base:], q.names)
	for _, l := range q.links {
		p.steps[k.base+l.from].save = &p.steps[k.base+l.to].args[0]
	}
	k.wake()
	<-k.done
	runtime.KeepAlive(q)
	if k.told == 0 && k.err == nil {
		k.err = &Error{Step: "wait", Errno: unix.ESRCH} // somebody has killed it
	}
	if k.err != nil {
		k.closeFD()
		return 0, -1, k.err
	}
	pidfd, *k.fd = int(*k.fd), -1
	return k.pid, pidfd, nil
}
