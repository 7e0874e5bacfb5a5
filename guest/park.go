package guest

import (
	"bytes"
	"fmt"

	"github.com/cradlevm/cradle/guest/launch"
	"golang.org/x/sys/unix"
)

// parkedProcess is a prepared container's first process, made before it is known what it runs: in its namespaces, with its
// mounts and its filter. The thread that it borrows is another one than the container's, which has work to do meanwhile.
type parkedProcess struct {
	*launch.Parked
	thread *thread
	filter []byte // installed
}

// park makes the first process ahead.
func (c *container) park() error {
	t, err := c.visitor()
	if err != nil {
		return err
	}
	p := &parkedProcess{thread: t, filter: c.req.Seccomp}
	p.Parked = launch.Park(&launch.Spec{NewPID: true, NewCgroup: true, Cgroup: c.cgroup.fd, Mounts: c.later, Seccomp: p.filter})
	c.parked = p
	go p.thread.do(func() error { p.Run(); return nil })
	return nil
}

// visitor makes another thread that is in the container's namespaces, but for those that its children are born in.
func (c *container) visitor() (*thread, error) {
	var spaces []int
	defer func() {
		for _, fd := range spaces {
			unix.Close(fd)
		}
	}()
	err := c.thread.do(func() error {
		for _, name := range []string{"mnt", "ipc", "uts"} {
			fd, err := unix.Openat(c.agent.proc, "thread-self/ns/"+name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				return fmt.Errorf("open the container's namespaces: %w", err)
			}
			spaces = append(spaces, fd)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	t := newThread()
	if err := t.do(func() error { return joinSpaces(spaces) }); err != nil {
		t.leave(c.agent.mountNS)
		return nil, err
	}
	return t, nil
}

// joinSpaces takes the calling thread into namespaces, the mount namespace's root being its root then.
func joinSpaces(spaces []int) error {
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return err
	}
	for _, fd := range spaces {
		if err := unix.Setns(fd, 0); err != nil {
			return fmt.Errorf("join the container's namespaces: %w", err)
		}
	}
	return nil
}

// start tells the process what it runs.
func (p *parkedProcess) start(s *launch.Spec) (pid, pidfd int, err error) {
	if len(p.filter) > 0 {
		if !bytes.Equal(p.filter, s.Seccomp) {
			return 0, -1, fmt.Errorf("the process was prepared with another seccomp filter")
		}
		s.Seccomp = nil
	}
	return p.Start(s)
}

// leave ends the process, if it is still parked, and the thread. That the container's cgroup has been killed is not enough:
// the process may not have been there yet.
func (p *parkedProcess) leave(home int) {
	p.End()
	p.thread.leave(home)
}
