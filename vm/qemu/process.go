package qemu

import (
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// maxWords bounds what QEMU's standard output and error keep, in bytes. A guest may be able to make QEMU
// complain without end.
const maxWords = 64 << 10

// process is a QEMU process: our child, or one that an earlier process of ours has started. It is held by a
// pidfd, so no signal ever reaches a process that merely got the same number later.
type process struct {
	pid   int
	pidfd *os.File
	child bool
	words *os.File // the memory file behind its standard output and error; nil when unknown
}

// spawn describes a process to start.
type spawn struct {
	argv     []string
	files    []*os.File // the child's descriptors from 3 on
	uid, gid uint32     // 0: the caller's own
	groups   []uint32   // supplementary groups, when uid or gid changes
	cgroup   string     // cgroup v2 directory; empty: the caller's
	caps     []uintptr  // capabilities it keeps although its user is not root
	netns    *os.File   // network namespace; nil: the caller's
}

// start runs the program argv[0] in a session of its own, without environment, in the root directory: it needs
// nothing that is not handed to it.
func (s *spawn) start() (*process, error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	words, err := boundedFile(maxWords)
	if err != nil {
		return nil, fmt.Errorf("make a file for QEMU's messages: %w", err)
	}
	fds := []uintptr{null.Fd(), words.Fd(), words.Fd()}
	for _, f := range s.files {
		fds = append(fds, f.Fd())
	}
	// What this process has inherited without asking for it is not for QEMU. Kernels older than 5.11 do not know the flag.
	unix.CloseRange(3, math.MaxInt32, unix.CLOSE_RANGE_CLOEXEC)
	pidfd := -1
	attr := &syscall.SysProcAttr{Setsid: true, PidFD: &pidfd}
	if (s.uid != 0 || s.gid != 0) && os.Geteuid() == 0 {
		attr.Credential = &syscall.Credential{Uid: s.uid, Gid: s.gid, Groups: s.groups}
		attr.AmbientCaps = s.caps
	}
	if s.cgroup != "" {
		dir, err := unix.Open(s.cgroup, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			words.Close()
			return nil, fmt.Errorf("open cgroup %s: %w", s.cgroup, err)
		}
		defer unix.Close(dir)
		attr.UseCgroupFD, attr.CgroupFD = true, dir
	}
	execute := func() (int, error) {
		return syscall.ForkExec(s.argv[0], s.argv, &syscall.ProcAttr{Dir: "/", Files: fds, Sys: attr})
	}
	var pid int
	if s.netns == nil {
		pid, err = execute()
	} else {
		pid, err = in(s.netns, execute)
	}
	if err != nil {
		words.Close()
		return nil, fmt.Errorf("start %s: %w", s.argv[0], err)
	}
	p := &process{pid: pid, child: true, words: words}
	if pidfd < 0 {
		p.words.Close()
		syscall.Kill(pid, syscall.SIGKILL)
		syscall.Wait4(pid, nil, 0, nil)
		return nil, errors.New("start QEMU: the kernel has no pidfds; Linux 5.4 or newer is needed")
	}
	p.pidfd = pollable(pidfd)
	return p, nil
}

// settle gives a new process its limits: it goes before its daemon when memory runs out (rather than inherit
// the daemon's protection), leaves no core with the guest's memory in it, and may hold a file for each of many
// disks. None of it is worth failing for.
func (p *process) settle() {
	os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", p.pid), []byte("100"), 0)
	unix.Prlimit(p.pid, unix.RLIMIT_CORE, &unix.Rlimit{}, nil)
	var files unix.Rlimit
	if unix.Prlimit(p.pid, unix.RLIMIT_NOFILE, nil, &files) == nil {
		files.Cur = files.Max
		unix.Prlimit(p.pid, unix.RLIMIT_NOFILE, &files, nil)
	}
}

// adopt takes hold of a process that is not our child.
func adopt(pid int) (*process, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, err
	}
	p := &process{pid: pid, pidfd: pollable(fd)}
	if words, err := os.OpenFile(fmt.Sprintf("/proc/%d/fd/2", pid), os.O_RDONLY, 0); err == nil {
		p.words = words
	}
	return p, nil
}

// pollable makes a file of a pidfd whose waits take no thread.
func pollable(fd int) *os.File {
	unix.SetNonblock(fd, true)
	return os.NewFile(uintptr(fd), "pidfd")
}

// wait returns once the process has ended: how, when that can be known, or nil. Only one caller may wait.
func (p *process) wait() *syscall.WaitStatus {
	conn, err := p.pidfd.SyscallConn()
	if err == nil {
		err = conn.Read(func(fd uintptr) bool { return readable(fd, 0) })
	}
	for err != nil && !p.ended(-1) {
	}
	if !p.child {
		return nil
	}
	var status syscall.WaitStatus
	for {
		_, err := syscall.Wait4(p.pid, &status, 0, nil)
		if err == nil {
			return &status
		}
		if err != syscall.EINTR {
			return nil
		}
	}
}

// ended reports whether the process has ended, waiting for it as long as timeout (milliseconds) says.
func (p *process) ended(timeout int) bool {
	over := true
	p.withFD(func(fd uintptr) { over = readable(fd, timeout) })
	return over
}

// readable polls a pidfd, which is readable once its process has ended.
func readable(pidfd uintptr, timeout int) bool {
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, timeout)
	return err == nil && n > 0
}

// kill ends the process the hard way; one that has already ended is fine.
func (p *process) kill() error {
	var err error
	p.withFD(func(fd uintptr) { err = unix.PidfdSendSignal(int(fd), unix.SIGKILL, nil, 0) })
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	return err
}

// withFD calls f with the pidfd, unless the process has ended and been closed.
func (p *process) withFD(f func(fd uintptr)) {
	if conn, err := p.pidfd.SyscallConn(); err == nil {
		conn.Control(f)
	}
}

// lastWords returns what the process has said on its standard output and error.
func (p *process) lastWords() string {
	if p.words == nil {
		return ""
	}
	b, _ := io.ReadAll(io.NewSectionReader(p.words, 0, maxWords))
	var words strings.Builder
	for line := range strings.Lines(strings.Trim(string(b), "\x00")) {
		// A network interface that is connected to nothing, as was asked; and what becomes of holes in a file of memory (balloon.go).
		if !strings.Contains(line, " has no peer") && !strings.Contains(line, "ram_block_discard_range: ") {
			words.WriteString(line)
		}
	}
	return strings.TrimSpace(words.String())
}

func (p *process) close() {
	p.pidfd.Close()
	if p.words != nil {
		p.words.Close()
	}
}

// boundedFile makes a memory file of so many zero bytes that cannot grow: writing past the end fails. A process
// keeps it when its parent goes, as it would not keep a pipe, and cannot fill the disk, as it could with a file.
func boundedFile(size int64) (*os.File, error) {
	fd, err := unix.MemfdCreate("cradle-qemu-words", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "words")
	if err = f.Truncate(size); err == nil {
		_, err = unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_GROW|unix.F_SEAL_SHRINK|unix.F_SEAL_SEAL)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// startTime returns when the process started, in clock ticks since boot, as /proc counts, and whether it still
// runs (a zombie does not).
func startTime(pid int) (ticks uint64, runs bool) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, false
	}
	// The command, in parentheses, may contain anything; the state follows it. proc(5) counts it field 3.
	_, rest, ok := cutLast(string(b), ") ")
	fields := strings.Fields(rest)
	if !ok || len(fields) < 20 {
		return 0, false
	}
	ticks, err = strconv.ParseUint(fields[22-3], 10, 64)
	return ticks, err == nil && fields[0] != "Z" && fields[0] != "X"
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

// killLimit is how long a killed process may take to go before it counts as stuck in the kernel.
const killLimit = 15 * time.Second
