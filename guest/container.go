package guest

import (
	"fmt"
	"io"
	"os"
	"runtime"
	"sync"

	"github.com/cradlevm/cradle/api"
	"github.com/cradlevm/cradle/guest/launch"
	"golang.org/x/sys/unix"
)

// state of a container.
type state int

const (
	created state = iota
	prepared
	starting
	running // also once stopped: init's exited channel tells
	deleting
)

// container is one container from create to delete.
type container struct {
	agent  *Agent
	req    *api.CreateRequest // its ID is the one it was created with; agent.containers has the one it goes by
	thread *thread
	cgroup *cgroup
	nodes  []string       // block devices that it holds
	later  []launch.Mount // for the first process to make
	parked *parkedProcess // the first process, when it has been made ahead; nil otherwise
	disks  map[string]string
	given  givenFiles
	covers covers
	users  users

	working sync.WaitGroup // calls that work on the container's files; c.work adds to it
	cutWork chan struct{}  // closed to end them

	mu    sync.Mutex
	state state
	init  *process
	execs map[string]*process // nil value: being started
	env   []string            // what execs have, where it is not the first process's
	caps  *launch.Caps        // the first process's, once they are known
}

// create makes a container from a request that has been checked.
func (a *Agent) create(r *api.CreateRequest) error {
	if r.Configure != nil {
		if err := a.configure(r.Configure); err != nil {
			return err
		}
	}
	if err := a.createNetwork(r); err != nil {
		return err
	}
	if r.Prepared != "" {
		return a.assign(r)
	}
	if err := checkCreate(r); err != nil {
		return err
	}
	c, err := a.build(r)
	if err == nil {
		err = c.thread.do(c.finish)
	}
	return c.settle(created, err)
}

// prepare makes of a container what does not depend on who it is.
func (a *Agent) prepare(r *api.CreateRequest) error {
	if err := checkPrepare(r); err != nil {
		return err
	}
	if err := a.createNetwork(r); err != nil {
		return err
	}
	c, err := a.build(r)
	if err == nil && r.Park {
		err = c.park()
	}
	if err == nil && len(r.Read) > 0 {
		err = c.thread.do(func() error { readAhead(r.Read); return nil })
	}
	return c.settle(prepared, err)
}

// maxReadAhead is how much of a file is read ahead, in bytes.
const maxReadAhead = 8 << 20

// readAhead reads the first of some paths that is a file, in the root of the calling thread. It is for speed only: what cannot be read is left.
func readAhead(paths []string) {
	root, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer unix.Close(root)
	how := unix.OpenHow{Flags: unix.O_RDONLY | unix.O_NONBLOCK | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	for _, p := range paths {
		fd, err := unix.Openat2(root, p, &how)
		if err != nil {
			continue
		}
		f := os.NewFile(uintptr(fd), p)
		info, err := f.Stat()
		if err == nil && info.Mode().IsRegular() {
			_, _ = io.CopyN(io.Discard, f, maxReadAhead)
		}
		f.Close()
		if err == nil && info.Mode().IsRegular() {
			return
		}
	}
}

// assign makes the prepared container that r names the one that r describes.
func (a *Agent) assign(r *api.CreateRequest) error {
	c, err := a.claim(r)
	if err != nil {
		return err
	}
	return c.settle(created, c.become(r))
}

// claim gives a prepared container the id that it goes by from now on.
func (a *Agent) claim(r *api.CreateRequest) (*container, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	c := a.containers[r.Prepared]
	switch {
	case c == nil:
		return nil, api.Errorf(api.CodeNotFound, "no prepared container %.128s", r.Prepared)
	case a.containers[r.ID] != nil:
		return nil, api.Errorf(api.CodeExists, "container %.128s exists", r.ID)
	case !c.turn(prepared, starting):
		return nil, api.Errorf(api.CodeFailedPrecondition, "container %s is not in state prepared", r.Prepared)
	}
	delete(a.containers, r.Prepared)
	a.containers[r.ID] = c
	return c, nil
}

// become gives a prepared container its identity.
func (c *container) become(r *api.CreateRequest) error {
	if !r.Join(c.req) {
		return api.Errorf(api.CodeInvalid, "container %.128s was prepared for other files", r.Prepared)
	}
	if err := checkCreate(r); err != nil {
		return err
	}
	c.req = r
	if err := c.given.rewrite(r.Files); err != nil {
		return err
	}
	return c.thread.do(c.finish)
}

// turn changes the state from one to another, and tells whether it was that one.
func (c *container) turn(from, to state) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state != from {
		return false
	}
	c.state = to
	return true
}

// settle ends the making of a container: it is in a state from now on or, after an error, which is returned, gone. A nil
// container is one that has never been.
func (c *container) settle(s state, err error) error {
	if c == nil {
		return err
	}
	if err != nil {
		if c.kill() == nil {
			c.release()
		}
		c.agent.removeContainer(c)
		return err
	}
	c.turn(starting, s)
	return nil
}

// build makes of a container what does not depend on who it is. On error the container, if there is one, is for settle.
func (a *Agent) build(r *api.CreateRequest) (*container, error) {
	// Nothing else may be asked for yet.
	c := &container{agent: a, req: r, state: starting, execs: map[string]*process{}, cutWork: make(chan struct{})}
	if err := a.add(r.ID, c); err != nil {
		return nil, err
	}
	serials := requestDisks(r)
	mounted := mountDisks(r.Spec.Mounts)
	nodes, err := findDisks(append(serials, mounted...))
	if err != nil {
		return c, err
	}
	a.mu.Lock()
	c.nodes = nodes
	a.mu.Unlock()
	c.disks = map[string]string{}
	for i, s := range mounted {
		c.disks[s] = c.nodes[len(serials)+i]
	}
	if c.cgroup, err = newCgroup(r.ID); err != nil {
		return c, err
	}
	if err := c.cgroup.limit(r.Spec.Linux.Resources); err != nil {
		return c, err
	}
	if err := a.devices.limit(c.cgroup.fd, r.Spec.Linux.Resources); err != nil {
		return c, err
	}
	c.thread = newThread()
	return c, c.thread.do(func() error { return c.furnish(c.nodes[:len(serials)]) })
}

// furnish builds the container's view of the world; the thread stays in it.
func (c *container) furnish(nodes []string) error {
	r, spec := c.req, c.req.Spec
	if err := enterNamespaces(); err != nil {
		return err
	}
	if err := c.agent.sysctl(spec.Linux.Sysctl); err != nil {
		return err
	}
	own := len(nodes) - len(r.VolumeDisks) // the rest are volumes'
	if err := mountRootfs(&r.Rootfs, nodes[:own]); err != nil {
		return err
	}
	files, err := c.given.stage(r.Files)
	if err != nil {
		return err
	}
	volumes, err := stageVolumes(r, nodes[own:])
	if err != nil {
		return err
	}
	if err := enterRoot(); err != nil {
		return err
	}
	m := &mounter{volumes: volumes, disks: c.disks}
	if err := m.all(spec.Mounts); err != nil {
		return err
	}
	for _, f := range files {
		if err := f.attach(); err != nil {
			return err
		}
	}
	c.later = append(m.later, hiddenMounts(spec.Linux)...)
	return makeDevices(spec.Linux)
}

// finish does what depends on who the container is, on its thread.
func (c *container) finish() error {
	spec := c.req.Spec
	if err := setNames(spec.Hostname, spec.Domainname); err != nil {
		return err
	}
	if err := makeCwd(spec.Process.Cwd); err != nil {
		return err
	}
	return finishRoot(spec)
}

// start runs the container's first process.
func (c *container) start() (*process, error) {
	if !c.turn(created, starting) {
		return nil, api.Errorf(api.CodeFailedPrecondition, "container %s is not in state created", c.req.ID)
	}
	r := c.req
	p, err := c.launch(&request{
		process: r.Spec.Process, user: r.User, groupAdd: r.GroupAdd, seccomp: r.Seccomp, stdinOpen: r.StdinOpen,
		first: true,
	})
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		c.state = created
		return nil, err
	}
	c.init, c.state = p, running
	return p, nil
}

// exec runs another process in the container.
func (c *container) exec(r *api.ExecRequest) (*process, error) {
	if !validID(r.Exec) {
		return nil, api.Errorf(api.CodeInvalid, "exec id %.40q", r.Exec)
	}
	c.mu.Lock()
	if c.state != running || !c.init.running() {
		c.mu.Unlock()
		return nil, api.Errorf(api.CodeFailedPrecondition, "container %s is not running", c.req.ID)
	}
	if _, taken := c.execs[r.Exec]; taken {
		c.mu.Unlock()
		return nil, api.Errorf(api.CodeExists, "exec %s exists", r.Exec)
	}
	c.execs[r.Exec] = nil
	c.mu.Unlock()
	p, err := c.launchExec(r)
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		delete(c.execs, r.Exec)
		return nil, err
	}
	if c.state == deleting {
		p.forget() // born too late: the container's end has killed it
	}
	c.execs[r.Exec] = p
	return p, nil
}

// process finds the first process or an exec, which must have been started.
func (c *container) process(exec string) (*process, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if exec == "" {
		if c.init == nil {
			return nil, api.Errorf(api.CodeFailedPrecondition, "container %s has not been started", c.req.ID)
		}
		return c.init, nil
	}
	if p := c.execs[exec]; p != nil {
		return p, nil
	}
	return nil, api.Errorf(api.CodeNotFound, "no exec %s in container %s", exec, c.req.ID)
}

// deleteExec kills and forgets an exec.
func (c *container) deleteExec(exec string) error {
	p, err := c.process(exec)
	if err != nil {
		return err
	}
	if p.running() {
		if err := p.signal(int(unix.SIGKILL)); err == nil {
			<-p.exited
		}
	}
	p.forget()
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.execs, exec)
	return nil
}

// delete kills the container and gives back everything it holds. A delete that failed may be tried again; but when flush has
// failed, whose error it returns, the container is gone.
func (c *container) delete() error {
	c.mu.Lock()
	if c.state == starting || c.state == deleting {
		c.mu.Unlock()
		return api.Errorf(api.CodeFailedPrecondition, "container %s is busy", c.req.ID)
	}
	before := c.state
	c.state = deleting
	c.mu.Unlock()
	c.endWork()
	var lost error
	err := c.kill()
	if err == nil {
		lost = c.flush()
		err = c.release()
	}
	if err != nil {
		c.mu.Lock()
		c.state, c.cutWork = before, make(chan struct{})
		c.mu.Unlock()
		return err
	}
	c.agent.removeContainer(c)
	go runtime.GC() // while nobody waits: see gcPercent
	return lost
}

// kill ends the container's processes; it can be repeated.
func (c *container) kill() error {
	if c.cgroup != nil {
		if err := c.cgroup.kill(); err != nil && err != unix.ENOENT {
			return fmt.Errorf("kill: %w", err)
		}
	}
	c.mu.Lock()
	var all []*process
	if c.init != nil {
		all = append(all, c.init)
	}
	for _, p := range c.execs {
		if p != nil {
			all = append(all, p)
		}
	}
	c.mu.Unlock()
	for _, p := range all {
		<-p.exited
		p.forget()
	}
	return nil
}

// release undoes whatever create and start got done, when no process is left; it can be repeated.
func (c *container) release() error {
	c.given.close()
	c.covers.close()
	if c.parked != nil {
		c.parked.leave(c.agent.mountNS)
	}
	if c.thread != nil {
		c.thread.leave(c.agent.mountNS)
	}
	if c.cgroup != nil {
		if err := c.cgroup.remove(); err != nil {
			return err
		}
	}
	return awaitReleased(c.agent.unshared(c))
}
