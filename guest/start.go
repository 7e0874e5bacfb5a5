package guest

import (
	"errors"
	"fmt"
	"path"

	"github.com/cradlevm/cradle/api"
	"github.com/cradlevm/cradle/guest/launch"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// request is what a container's start and an exec have in common.
type request struct {
	process   *specs.Process
	user      string
	groupAdd  []string
	seccomp   []byte
	stdinOpen bool
	first     bool // the container's first process
}

// launchExec starts a process that is as the first one, but for what r says.
func (c *container) launchExec(r *api.ExecRequest) (*process, error) {
	p := *c.req.Spec.Process
	p.Args, p.Terminal, p.ConsoleSize = r.Args, r.Terminal, r.ConsoleSize
	p.Env = c.execEnv(r.Env)
	if r.Cwd != "" {
		p.Cwd = r.Cwd
	}
	if r.Capabilities != nil {
		p.Capabilities = r.Capabilities
	}
	user := r.User
	if user == "" {
		user = c.req.User
	}
	if err := checkProcess(&p); err != nil {
		return nil, err
	}
	return c.launch(&request{process: &p, user: user, groupAdd: c.req.GroupAdd, seccomp: c.req.Seccomp, stdinOpen: r.StdinOpen})
}

// execEnv is an exec's environment: what is asked for or, without that, the container's.
func (c *container) execEnv(asked []string) []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case asked != nil:
		return asked
	case c.env != nil:
		return c.env
	}
	return c.req.Spec.Process.Env
}

// launch starts a process in the container, on the container's thread.
func (c *container) launch(r *request) (*process, error) {
	var p *process
	initFD := 0
	if r.first && c.req.Init {
		var err error
		if initFD, err = c.agent.initProgram(); err != nil {
			return nil, err
		}
	}
	t, caps, err := c.threadFor(r)
	if err != nil {
		return nil, err
	}
	if t != c.thread {
		defer t.leave(c.agent.mountNS)
	}
	err = t.do(func() error {
		if !r.first {
			if err := c.joinFirst(t); err != nil {
				return err
			}
		}
		if err := c.confine(t, r, caps.Bounding); err != nil {
			return err
		}
		spec, err := c.launchSpec(r)
		if err != nil {
			return err
		}
		spec.Caps, spec.Confined = caps, t.confined
		io, err := openStdio(r)
		if err != nil {
			return err
		}
		if r.first && r.process.Terminal {
			if err := mountConsole(io.child[0]); err != nil {
				io.closeChild()
				io.closeParent()
				return err
			}
		}
		spec.Stdio = io.child
		if initFD > 0 {
			spec.ExecFD = initFD
			spec.Args = append([]string{"cradle-init", InitMode, spec.Path}, spec.Args...)
		}
		p = newProcess(io)
		if r.first {
			p.oom = c.cgroup.oomKills
		}
		err = p.run(c.agent.reaper, func() (int, int, error) { return c.spawn(spec) })
		return execError(r.process.Args[0], err)
	})
	return p, err
}

// joinFirst makes the children of t, which is the calling thread, members of the first process's PID namespace.
func (c *container) joinFirst(t *thread) error {
	if t.joined {
		return nil
	}
	c.init.mu.Lock()
	defer c.init.mu.Unlock()
	if c.init.pidfd < 0 {
		return api.Errorf(api.CodeFailedPrecondition, "container %s is not running", c.req.ID)
	}
	err := unix.Setns(c.init.pidfd, unix.CLONE_NEWPID|unix.CLONE_NEWCGROUP)
	if err == unix.ESRCH {
		return api.Errorf(api.CodeFailedPrecondition, "container %s is not running", c.req.ID)
	}
	if err != nil {
		return fmt.Errorf("join the container's namespaces: %w", err)
	}
	t.joined = true
	return nil
}

// spawn starts the process in the container's cgroup. A container that has split its cgroup into children cannot take
// processes at the top; they go where its first process is.
func (c *container) spawn(s *launch.Spec) (pid, pidfd int, err error) {
	if c.parked != nil && c.init == nil {
		return c.parked.start(s)
	}
	s.Cgroup = c.cgroup.fd
	pid, pidfd, err = launch.Start(s)
	if errors.Is(err, unix.ENOMEM) && !s.NewPID && c.init.ending(c.agent.proc) {
		// What clone says when the PID namespace has lost its first process.
		return 0, -1, api.Errorf(api.CodeFailedPrecondition, "container %s is not running", c.req.ID)
	}
	if !errors.Is(err, unix.EBUSY) || c.init == nil {
		return pid, pidfd, err
	}
	fd, err := c.agent.cgroupOf(c.init.pid, c.cgroup.dir)
	if err != nil {
		return 0, -1, err
	}
	defer unix.Close(fd)
	s.Cgroup = fd
	return launch.Start(s)
}

// launchSpec works out how the process runs, by the container's own files.
func (c *container) launchSpec(r *request) (*launch.Spec, error) {
	p, l := r.process, c.req.Spec.Linux
	user, err := c.users.resolve(r.user, r.groupAdd, &p.User)
	if err != nil {
		return nil, err
	}
	s := &launch.Spec{
		Args: p.Args, Dir: path.Clean("/" + p.Cwd), NewPID: r.first, NewCgroup: r.first, Proc: c.agent.proc,
		OOMScoreAdj: p.OOMScoreAdj, UID: user.uid, GID: user.gid, Groups: user.groups, Umask: p.User.Umask,
		NoNewPrivs: p.NoNewPrivileges, Seccomp: r.seccomp, Terminal: p.Terminal,
	}
	s.Env = p.Env
	if lastEnv(s.Env, "HOME") == "" {
		home := user.home
		if home == "" {
			home = "/"
		}
		s.Env = append(s.Env[:len(s.Env):len(s.Env)], "HOME="+home)
	}
	if s.Rlimits, err = rlimits(p); err != nil {
		return nil, err
	}
	if s.Schedule, err = schedule(p, !r.first); err != nil {
		return nil, err
	}
	if s.Personality, err = personality(l); err != nil {
		return nil, err
	}
	if r.first {
		s.Mounts = c.later
	}
	if err := checkCwd(s.Dir); err != nil {
		return nil, err
	}
	if s.Path, err = lookPath(p.Args[0], s.Env, s.Dir); err != nil {
		return nil, err
	}
	return s, nil
}

// openStdio makes the process's streams; a terminal comes from the container's own devpts.
func openStdio(r *request) (*stdio, error) {
	if !r.process.Terminal {
		return pipes(r.stdinOpen)
	}
	var size *unix.Winsize
	if b := r.process.ConsoleSize; b != nil {
		size = &unix.Winsize{Row: uint16(b.Height), Col: uint16(b.Width)}
	}
	return terminal(r.stdinOpen, size)
}

// execError gives the failure of a launch its code: what is wrong with the command is the user's to know.
func execError(name string, err error) error {
	var e *launch.Error
	if !errors.As(err, &e) {
		return err
	}
	if e.Step != "exec" {
		return api.Errorf(api.CodeInternal, "start the process: %w", e)
	}
	switch e.Errno {
	case unix.ENOENT, unix.ENOTDIR:
		return api.Errorf(api.CodeCommandNotFound, "exec: %q: %w", name, e.Errno)
	case unix.ENOEXEC:
		return api.Errorf(api.CodeCommandNotRunnable, "exec: %q: exec format error", name)
	}
	return api.Errorf(api.CodeCommandNotRunnable, "exec: %q: %w", name, e.Errno)
}

// makeCwd makes the working directory when the image lacks it, as docker does.
func makeCwd(dir string) error {
	if dir == "" || dir == "/" {
		return nil
	}
	if _, err := makePath(dir, true, makeOne); err != nil {
		return fmt.Errorf("working directory: %w", err)
	}
	return nil
}

func checkCwd(dir string) error {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return api.Errorf(api.CodeCommandNotRunnable, "chdir to cwd (%q) set in config.json failed: %w", dir, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return api.Errorf(api.CodeCommandNotRunnable, "chdir to cwd (%q) set in config.json failed: %w", dir, unix.ENOTDIR)
	}
	return nil
}
