package fork

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
)

// threadFlags are those that pthreads are made with. The C library's note of a thread's number is filled in by the kernel.
const threadFlags = unix.CLONE_VM | unix.CLONE_FS | unix.CLONE_FILES | unix.CLONE_SIGHAND | unix.CLONE_THREAD | unix.CLONE_SYSVSEM |
	unix.CLONE_SETTLS | unix.CLONE_PARENT_SETTID | unix.CLONE_CHILD_CLEARTID

// copied is a copy in the making.
type copied struct {
	parent  *Parent
	o       *Options
	threads []*tracee // the first is the process's first
	scratch uint64    // address of a page of its own memory
	pidfd   *os.File
}

const scratchSize = 8 << 10

// Fork makes a copy, which runs when it returns, and is a child of the parent's parent. pidfd refers to it. On error none is left.
// Errors: ErrGone; what the kernel says.
func (p *Parent) Fork(o Options) (pid int, pidfd *os.File, err error) {
	if err := o.check(); err != nil {
		return 0, nil, err
	}
	done := make(chan struct{})
	select {
	case p.calls <- func() {
		defer close(done)
		pid, pidfd, err = p.fork(&o)
	}:
		<-done
	case <-p.closed:
		err = ErrGone
	}
	if err != nil {
		return 0, nil, fmt.Errorf("copy process %d: %w", p.threads[0].tid, err)
	}
	return pid, pidfd, nil
}

func (p *Parent) fork(o *Options) (_ int, _ *os.File, err error) {
	first := p.threads[0]
	// The kernel writes the copy's number to where its C library keeps it.
	flags := uint64(unix.CLONE_PARENT | unix.CLONE_CHILD_SETTID | unix.CLONE_CHILD_CLEARTID | unix.SIGCHLD)
	_, pid, err := first.call(unix.SYS_CLONE, flags, 0, 0, first.tidAt, 0)
	if err != nil && pid == 0 {
		pid = p.orphan()
	}
	if pid == 0 {
		return 0, nil, errors.Join(err, errors.New("no copy was made"))
	}
	t := &tracee{tid: pid}
	c := &copied{parent: p, o: o, threads: []*tracee{t}}
	defer func() {
		if err != nil {
			if !t.gone { // our child, and not waited for yet
				unix.Kill(t.tid, unix.SIGKILL)
			}
			t.reap()
		}
	}()
	if err != nil {
		return 0, nil, err
	}
	if err := t.stopped(); err != nil {
		return 0, nil, err
	}
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return 0, nil, fmt.Errorf("open pidfd: %w", err)
	}
	pidfd := os.NewFile(uintptr(fd), "pidfd")
	c.pidfd = pidfd
	t.regs, t.syscall = first.regs, first.syscall
	if err := c.complete(); err != nil {
		pidfd.Close()
		return 0, nil, err
	}
	return pid, pidfd, nil
}

// complete makes the copy a process of its own, and lets it go on.
func (c *copied) complete() error {
	t := c.threads[0]
	if c.o.Cgroup != "" {
		if err := os.WriteFile(filepath.Join(c.o.Cgroup, "cgroup.procs"), strconv.AppendInt(nil, int64(t.tid), 10), 0); err != nil {
			return fmt.Errorf("move into cgroup: %w", err)
		}
	}
	at, _, err := t.call(unix.SYS_MMAP, 0, scratchSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS, ^uint64(0), 0)
	if err != nil {
		return err
	}
	c.scratch = at
	steps := []struct {
		what string
		do   func() error
	}{
		{"begin a session", func() error { return c.call(unix.SYS_SETSID) }},
		{"keep robust futexes", func() error { return c.parent.threads[0].keepRobust(t) }},
		{"change memory", c.changeMemory},
		{"take descriptors", c.takeFiles},
		{"make eventfds", c.makeEventfds},
		{"change user", c.becomeUser},
		{"hide it", t.hide},
		{"install seccomp filter", c.confine},
		{"give back memory", func() error { return c.call(unix.SYS_MUNMAP, c.scratch, scratchSize) }},
		{"make threads", c.makeThreads},
	}
	for _, s := range steps {
		if err := s.do(); err != nil {
			return fmt.Errorf("%s: %w", s.what, err)
		}
	}
	for _, t := range slices.Backward(c.threads) {
		if err := t.detach(); err != nil {
			return err
		}
	}
	return nil
}

// call is tracee.call of the copy's first thread, for who does not want to know more.
func (c *copied) call(number uintptr, args ...uint64) error {
	_, _, err := c.threads[0].call(number, args...)
	return err
}

// put writes b to the scratch memory, at an offset.
func (c *copied) put(offset uint64, b []byte) error {
	return writeMemory(c.threads[0].tid, c.scratch+offset, b)
}

func (c *copied) changeMemory() error {
	for at, b := range c.o.Memory {
		if err := writeMemory(c.threads[0].tid, at, b); err != nil {
			return err
		}
	}
	return nil
}

// Layout of the scratch memory while a message is received: struct msghdr, struct iovec, the message's byte, control data.
const (
	iovecAt   = 64
	byteAt    = 96
	controlAt = 128
)

// takeFiles receives Options.Files.
func (c *copied) takeFiles() error {
	numbers := slices.Sorted(maps.Keys(c.o.Files))
	if len(numbers) == 0 {
		return nil
	}
	fds := make([]int, len(numbers))
	for i, n := range numbers {
		fds[i] = int(c.o.Files[n].Fd())
	}
	theirs, err := c.send(fds)
	if err != nil {
		return err
	}
	size := unix.CmsgSpace(4 * len(fds))
	le := binary.LittleEndian
	head := make([]byte, controlAt)
	le.PutUint64(head[16:], c.scratch+iovecAt) // msg_iov, of which there is one
	le.PutUint64(head[24:], 1)
	le.PutUint64(head[32:], c.scratch+controlAt) // msg_control
	le.PutUint64(head[40:], uint64(size))
	le.PutUint64(head[iovecAt:], c.scratch+byteAt)
	le.PutUint64(head[iovecAt+8:], 1)
	if err := c.put(0, head); err != nil {
		return err
	}
	if err := c.call(unix.SYS_RECVMSG, theirs, c.scratch, unix.MSG_CMSG_CLOEXEC); err != nil {
		return err
	}
	if err := c.call(unix.SYS_CLOSE, theirs); err != nil {
		return err
	}
	rights := make([]byte, size)
	if err := readMemory(c.threads[0].tid, c.scratch+controlAt, rights); err != nil {
		return err
	}
	if got := le.Uint64(rights); got != uint64(unix.CmsgLen(4*len(fds))) { // cmsg_len
		return fmt.Errorf("%d descriptors do not fit beside those that it has", len(fds))
	}
	rights = rights[unix.CmsgLen(0):]
	for i, n := range numbers {
		if err := c.move(uint64(le.Uint32(rights[4*i:])), uint64(n)); err != nil {
			return err
		}
	}
	return nil
}

// send sends descriptors to a socket that it has the copy make, whose number there it returns.
func (c *copied) send(fds []int) (theirs uint64, err error) {
	if err := c.call(unix.SYS_SOCKETPAIR, unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0, c.scratch); err != nil {
		return 0, err
	}
	pair := make([]byte, 8)
	if err := readMemory(c.threads[0].tid, c.scratch, pair); err != nil {
		return 0, err
	}
	theirs, ours := uint64(binary.LittleEndian.Uint32(pair)), uint64(binary.LittleEndian.Uint32(pair[4:]))
	mine, _, errno := unix.Syscall(unix.SYS_PIDFD_GETFD, c.pidfd.Fd(), uintptr(ours), 0)
	if errno != 0 {
		return 0, fmt.Errorf("take a socket of the copy's: %w", errno)
	}
	defer unix.Close(int(mine))
	if err := unix.Sendmsg(int(mine), []byte{0}, unix.UnixRights(fds...), nil, unix.MSG_NOSIGNAL); err != nil {
		return 0, err
	}
	return theirs, c.call(unix.SYS_CLOSE, ours)
}

// move gives a descriptor another number.
func (c *copied) move(from, to uint64) error {
	if err := c.call(unix.SYS_DUP3, from, to, unix.O_CLOEXEC); err != nil {
		return err
	}
	return c.call(unix.SYS_CLOSE, from)
}

func (c *copied) makeEventfds() error {
	for _, v := range c.parent.eventfds {
		fd, _, err := c.threads[0].call(unix.SYS_EVENTFD2, v.count, v.flags)
		if err != nil {
			return err
		}
		if err := c.move(fd, uint64(v.fd)); err != nil {
			return err
		}
	}
	return nil
}

// becomeUser changes the user, and drops all capabilities; a parent's it puts out of effect.
func (c *copied) becomeUser() error {
	if gid := uint64(c.o.GID); gid != 0 {
		if err := c.call(unix.SYS_SETGROUPS, 0, 0); err != nil {
			return err
		}
		if err := c.call(unix.SYS_SETRESGID, gid, gid, gid); err != nil {
			return err
		}
	}
	if uid := uint64(c.o.UID); uid != 0 {
		if err := c.call(unix.SYS_SETRESUID, uid, uid, uid); err != nil {
			return err
		}
	}
	var caps capabilities
	caps.header.Version = unix.LINUX_CAPABILITY_VERSION_3
	if c.o.Parent {
		caps = c.parent.caps
		caps.enable(false)
	}
	return caps.set(c.threads[0], c.scratch)
}

// confine installs Options.Filter.
func (c *copied) confine() error {
	if c.o.Filter == nil {
		return nil
	}
	filter := c.o.Filter(c.threads[0].tid)
	le := binary.LittleEndian
	b := make([]byte, 16) // struct sock_fprog, then the filter
	le.PutUint16(b, uint16(len(filter)))
	le.PutUint64(b[8:], c.scratch+16)
	for _, f := range filter {
		b = le.AppendUint16(b, f.Code)
		b = append(b, f.Jt, f.Jf)
		b = le.AppendUint32(b, f.K)
	}
	if len(b) > scratchSize {
		return fmt.Errorf("a filter of %d instructions is too long", len(filter))
	}
	if err := c.put(0, b); err != nil {
		return err
	}
	return c.call(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, c.scratch)
}

// makeThreads makes all threads but the first again.
func (c *copied) makeThreads() error {
	c.threads[0].leads = true
	for _, th := range c.parent.threads[1:] {
		_, tid, err := c.threads[0].call(unix.SYS_CLONE, threadFlags, th.regs.Rsp, th.tidAt, th.tidAt, th.tlsBase)
		t := &tracee{tid: tid}
		if err == nil && tid == 0 {
			err = errors.New("no thread was made")
		}
		if err != nil {
			return err
		}
		c.threads = append(c.threads, t)
		if first := c.threads[0]; first.made == tid {
			err = t.standing(first.madeAt)
		} else {
			err = t.stopped()
		}
		if err != nil {
			return err
		}
		if err := th.become(t); err != nil {
			return err
		}
	}
	return nil
}
