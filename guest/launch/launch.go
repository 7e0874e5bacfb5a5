package launch

import (
	"errors"
	"runtime"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Spec is a process to start. Descriptors are the caller's and stay open in it; the child keeps only Stdio.
type Spec struct {
	Path   string // what is executed, seen from the calling thread's root
	ExecFD int    // when > 0, executed instead of Path
	Args   []string
	Env    []string
	Dir    string // empty: stays

	Stdio [3]int
	// Terminal makes Stdio[0] the controlling terminal.
	Terminal bool

	// Cgroup is a descriptor of the cgroup directory the process starts in; 0: the caller's.
	Cgroup int
	// NewPID starts the process as the first one of a new PID namespace, NewCgroup with a cgroup namespace
	// whose root is its own cgroup. All other namespaces are the calling thread's.
	NewPID, NewCgroup bool
	// Mounts are made by the new process, for those that must be made inside of its PID namespace.
	Mounts []Mount

	// Proc is a descriptor of a procfs in which the new process is visible; OOMScoreAdj and Env need it.
	Proc        int
	OOMScoreAdj *int

	Rlimits  []Rlimit
	Schedule Schedule
	// Personality, when not nil, is the execution domain.
	Personality *uint32

	UID, GID   uint32
	Groups     []uint32
	Umask      *uint32
	Caps       *Caps // nil: unchanged
	Confined   bool  // the calling thread's bounding set is Caps' (Confine)
	NoNewPrivs bool
	Seccomp    []byte // struct sock_filter array
}

// Mount is one mount(2) of the new process, or one move_mount(2) when Tree is set.
type Mount struct {
	Source, Target, Type string
	Flags                uintptr
	Data                 string
	Tree                 int // when > 0: a detached mount to attach at Target
	// Optional mounts are skipped when the target is not there or is of the wrong kind.
	Optional bool
}

// Rlimit is one resource limit.
type Rlimit struct {
	Resource   int
	Soft, Hard uint64
}

// Schedule are the scheduling attributes of the process; the zero value changes nothing.
type Schedule struct {
	Attr       *unix.SchedAttr
	IOPriority int // ioprio_set's value; 0: unchanged
	CPUs       *unix.CPUSet
}

// Start starts the process from the calling thread, which lends its mount, IPC, UTS and network namespaces, and, when
// NewPID is not set, the PID namespace made for its children. It returns once the program has been executed: the
// error of anything before, the exec included, is an *Error.
func Start(s *Spec) (pid, pidfd int, err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	p := build(s)
	fd := new(int32)
	*fd = -1
	args := &cloneArgs{flags: unix.CLONE_PIDFD, pidFD: uint64(hold(p, fd))}
	if s.NewPID {
		args.flags |= unix.CLONE_NEWPID
	}
	if s.Cgroup > 0 {
		args.flags |= unix.CLONE_INTO_CGROUP
		args.cgroup = uint64(s.Cgroup)
	}
	pid, err = p.spawn(args, nil)
	if err != nil {
		if *fd >= 0 {
			unix.Close(int(*fd))
		}
		return 0, -1, err
	}
	return pid, int(*fd), nil
}

// build writes the program. The order matters: first what needs privileges, then giving them up, the filter last.
func build(s *Spec) *program {
	p := newProgram()
	p.add("setsid", unix.SYS_SETSID)
	p.stdio(s)
	p.places(s)
	p.rest(s)
	return p
}

// places makes the process's own cgroup namespace and mounts.
func (p *program) places(s *Spec) {
	if s.NewCgroup {
		p.add("unshare cgroup namespace", unix.SYS_UNSHARE, unix.CLONE_NEWCGROUP)
	}
	for i := range s.Mounts {
		p.mount(&s.Mounts[i])
	}
}

// rest is what follows the namespaces and the descriptors: who the process is, and what it runs.
func (p *program) rest(s *Spec) {
	if s.OOMScoreAdj != nil {
		p.writeFile("set oom_score_adj", s.Proc, "self/oom_score_adj", strconv.Itoa(*s.OOMScoreAdj))
	}
	for _, r := range s.Rlimits {
		lim := &unix.Rlimit{Cur: r.Soft, Max: r.Hard}
		p.add("set rlimit", unix.SYS_PRLIMIT64, 0, uintptr(r.Resource), hold(p, lim), 0)
	}
	p.schedule(&s.Schedule)
	if s.Personality != nil {
		p.add("set personality", unix.SYS_PERSONALITY, uintptr(*s.Personality))
	}
	if s.Dir != "" {
		p.add("chdir to "+s.Dir, unix.SYS_CHDIR, p.str(s.Dir))
	}
	// Without no_new_privs a filter may only be installed by a privileged process.
	if !s.NoNewPrivs {
		p.seccomp(s.Seccomp)
	}
	p.user(s)
	if s.NoNewPrivs {
		p.add("set no_new_privs", unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
		p.seccomp(s.Seccomp)
	}
	var none uint64
	p.add("unblock signals", unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, hold(p, &none), 0, 8)
	if s.ExecFD > 0 {
		p.add("exec", unix.SYS_EXECVEAT, uintptr(s.ExecFD), p.str(""), p.strs(s.Args), p.strs(s.Env), unix.AT_EMPTY_PATH)
	} else {
		p.add("exec", unix.SYS_EXECVE, p.str(s.Path), p.strs(s.Args), p.strs(s.Env))
	}
}

// stdio puts the three descriptors in place and lets exec close all others.
func (p *program) stdio(s *Spec) {
	for i, fd := range s.Stdio {
		if fd <= 2 {
			p.err = errors.New("a standard descriptor of the child must not be one of the caller's")
		}
		p.add("dup stdio", unix.SYS_DUP3, uintptr(fd), uintptr(i), 0)
	}
	if s.Terminal {
		p.add("set controlling terminal", unix.SYS_IOCTL, 0, unix.TIOCSCTTY, 0)
	}
	p.try("close descriptors", []unix.Errno{unix.ENOSYS, unix.EINVAL}, unix.SYS_CLOSE_RANGE, 3, uintptr(^uint32(0)), unix.CLOSE_RANGE_CLOEXEC)
}

func (p *program) mount(m *Mount) {
	var allow []unix.Errno
	if m.Optional {
		allow = []unix.Errno{unix.ENOENT, unix.ENOTDIR}
	}
	name := "mount " + m.Target
	if m.Tree > 0 {
		const fromTree = 0x4 | 0x10 // MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_SYMLINKS
		p.try(name, allow, unix.SYS_MOVE_MOUNT, uintptr(m.Tree), p.str(""), atFDCWD, p.str(m.Target), fromTree)
		return
	}
	p.try(name, allow, unix.SYS_MOUNT, p.optional(m.Source), p.str(m.Target), p.optional(m.Type), m.Flags, p.optional(m.Data))
}

const atFDCWD = ^uintptr(99) // AT_FDCWD, -100

// writeFile opens a file under a directory and writes to it; the descriptor goes with the exec.
func (p *program) writeFile(name string, dir int, path, data string) {
	p.add(name, unix.SYS_OPENAT, uintptr(dir), p.str(path), unix.O_WRONLY|unix.O_CLOEXEC, 0)
	opener := len(p.steps) - 1
	p.add(name, unix.SYS_WRITE, 0, p.str(data), uintptr(len(data)))
	p.links = append(p.links, link{opener, len(p.steps) - 1})
}

func (p *program) schedule(s *Schedule) {
	if s.Attr != nil {
		p.add("set scheduler", unix.SYS_SCHED_SETATTR, 0, hold(p, s.Attr), 0)
	}
	if s.IOPriority != 0 {
		p.add("set I/O priority", unix.SYS_IOPRIO_SET, 1, 0, uintptr(s.IOPriority))
	}
	if s.CPUs != nil {
		p.add("set CPU affinity", unix.SYS_SCHED_SETAFFINITY, 0, unsafe.Sizeof(*s.CPUs), hold(p, s.CPUs))
	}
}

// user changes the credentials, of which the kernel makes a copy at each step. Permitted capabilities survive the change of
// user (keepcaps) so that setCaps can choose among them. The caller is root: another root is no change.
func (p *program) user(s *Spec) {
	if s.Caps != nil && !s.Confined {
		p.dropBounding(s.Caps)
	}
	keep := s.Caps != nil && s.UID != 0
	if keep {
		p.add("keep capabilities", unix.SYS_PRCTL, unix.PR_SET_KEEPCAPS, 1, 0, 0, 0)
	}
	p.add("setgroups", unix.SYS_SETGROUPS, uintptr(len(s.Groups)), held(p, s.Groups))
	if s.GID != 0 {
		p.add("setgid", unix.SYS_SETRESGID, uintptr(s.GID), uintptr(s.GID), uintptr(s.GID))
	}
	if s.UID != 0 {
		p.add("setuid", unix.SYS_SETRESUID, uintptr(s.UID), uintptr(s.UID), uintptr(s.UID))
	}
	if s.Umask != nil {
		p.add("umask", unix.SYS_UMASK, uintptr(*s.Umask))
	}
	if keep {
		p.add("forget keepcaps", unix.SYS_PRCTL, unix.PR_SET_KEEPCAPS, 0, 0, 0, 0)
	}
	if s.Caps != nil {
		p.setCaps(s.Caps)
	}
}

// seccomp installs a filter: an array of struct sock_filter, little-endian.
func (p *program) seccomp(filter []byte) {
	if len(filter) == 0 {
		return
	}
	if len(filter)%8 != 0 || len(filter)/8 > 4096 {
		p.err = errors.New("seccomp filter is not an array of 1 to 4096 instructions")
		return
	}
	// The array is what the kernel takes: both are little-endian, and it copies it with whatever alignment.
	prog := &unix.SockFprog{Len: uint16(len(filter) / 8), Filter: (*unix.SockFilter)(unsafe.Pointer(&filter[0]))}
	p.add("install seccomp filter", unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, hold(p, prog))
}
