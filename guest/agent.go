// Package guest is cradle's agent: PID 1 of a microVM. It boots the guest, listens on the agent port, and makes,
// runs and removes containers as package api says.
//
// # How a container comes to be
//
// Each container has an OS thread of its own (thread.go) that enters new mount, IPC and UTS namespaces, stacks the
// image's layers and makes the result its root directory. All that concerns the container's files happens on that
// thread, so whatever an image contains, no path leads out of it. Its processes are cloned from that thread by
// package launch. Nothing of a container is ever mounted in the agent's own mount namespace, so that when its
// processes and its thread have gone, the kernel has let go of its disks.
//
// All of that may come before anybody wants the container (MethodPrepare): even its first process may be there (park.go) and
// wait to be told what to run. MethodCreate and MethodRun then do what is left: names, files, credentials, the program.
package guest

import (
	"fmt"
	"io"
	"maps"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cradlevm/cradle/api"
	"github.com/cradlevm/cradle/api/wire"
	"golang.org/x/sys/unix"
)

// portTimeout is how long the kernel may take to find the agent port.
const portTimeout = time.Minute

// Agent serves the agent protocol.
type Agent struct {
	reaper  *reaper
	proc    int // descriptor of /proc in the first PID namespace
	mountNS int // the agent's own mount namespace
	ready   int64
	devices devicePrograms

	initOnce sync.Once
	initFD   int
	initErr  error

	network network

	mu         sync.Mutex
	listener   *wire.Listener // nil before Listen
	containers map[string]*container

	// halt ends the machine; a test has its own.
	halt func()
}

// NewAgent makes an agent that has no containers. Its reaper takes the exits of all children of this process.
func NewAgent() (*Agent, error) {
	a := &Agent{reaper: newReaper(), containers: map[string]*container{}, halt: PowerOff}
	var err error
	if a.proc, err = unix.Open("/proc", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
		return nil, fmt.Errorf("open /proc: %w", err)
	}
	if a.mountNS, err = unix.Open("/proc/self/ns/mnt", unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
		return nil, fmt.Errorf("open the mount namespace: %w", err)
	}
	return a, nil
}

// The agent's garbage collector. A collection takes an emulated guest 15 ms, more than all else that the agent does for a
// container, so it is to come when nobody waits, after a container's end (container.delete), and otherwise not before the heap has
// grown to 16 MiB; but it comes often rather than let the agent have more than 32 MiB of a small guest's memory.
const (
	gcPercent = 400
	gcLimit   = 32 << 20
)

// Run is the life of PID 1 after Boot: it returns only when the agent cannot do its work.
func Run() error {
	a, err := NewAgent()
	if err != nil {
		return err
	}
	go a.reaper.run(nil)
	if err := a.network.park(); err != nil {
		return err
	}
	if err := calmMonitor(); err != nil {
		return err
	}
	debug.SetGCPercent(gcPercent)
	debug.SetMemoryLimit(gcLimit)
	p, err := openPort(api.AgentPortName, portTimeout)
	if err != nil {
		return err
	}
	return a.Listen(p)
}

// Listen serves sessions on a port until the port fails.
func (a *Agent) Listen(p io.ReadWriter) error {
	a.ready = bootTime()
	l := wire.Listen(p)
	a.mu.Lock()
	a.listener = l
	a.mu.Unlock()
	for {
		conn, err := l.Accept()
		if err != nil {
			return fmt.Errorf("agent port: %w", err)
		}
		// A session may have calls that take their time to end; the next one does not wait for them.
		go wire.Serve(conn, a.Handle)
	}
}

// add registers a container under an id that must be free.
func (a *Agent) add(id string, c *container) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.containers[id] != nil {
		return api.Errorf(api.CodeExists, "container %s exists", id)
	}
	a.containers[id] = c
	return nil
}

func (a *Agent) removeContainer(c *container) {
	a.mu.Lock()
	defer a.mu.Unlock()
	maps.DeleteFunc(a.containers, func(_ string, other *container) bool { return other == c })
}

// unshared lists the devices that only c holds; the host may unplug those once c is gone.
func (a *Agent) unshared(c *container) []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	var own []string
	for _, n := range c.nodes {
		shared := false
		for _, other := range a.containers {
			shared = shared || other != c && slices.Contains(other.nodes, n)
		}
		if !shared {
			own = append(own, n)
		}
	}
	return own
}

func (a *Agent) container(id string) (*container, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if c := a.containers[id]; c != nil {
		return c, nil
	}
	return nil, api.Errorf(api.CodeNotFound, "no container %.128s", id)
}

// process finds a started process by its reference.
func (a *Agent) process(r *api.ProcessRef) (*process, error) {
	c, err := a.container(r.ID)
	if err != nil {
		return nil, err
	}
	return c.process(r.Exec)
}

// sysctl sets kernel parameters in the namespaces of the calling thread; it works before the thread has left the
// agent's root.
func (a *Agent) sysctl(values map[string]string) error {
	for key, value := range values {
		name := strings.ReplaceAll(key, ".", "/")
		if strings.Contains(key, "/") {
			name = key // the other spelling, for names that have dots in them
		}
		how := unix.OpenHow{Flags: unix.O_WRONLY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS}
		fd, err := unix.Openat2(a.proc, "sys/"+name, &how)
		if err == nil {
			_, err = unix.Write(fd, []byte(value))
			unix.Close(fd)
		}
		if err != nil {
			return api.Errorf(api.CodeInvalid, "linux.sysctl: %.80s: %w", key, err)
		}
	}
	return nil
}

// cgroupOf opens the cgroup that a process is in, which must be at or below dir.
func (a *Agent) cgroupOf(pid int, dir string) (int, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return -1, err
	}
	_, p, ok := strings.Cut(strings.TrimSpace(string(b)), "0::")
	p = cgroupRoot + p
	if !ok || p != dir && !within(p, dir) {
		return -1, api.Errorf(api.CodeFailedPrecondition, "the container's first process has left its cgroup")
	}
	return unix.Open(p, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
}

// bootTime is CLOCK_BOOTTIME in nanoseconds.
func bootTime() int64 {
	var ts unix.Timespec
	unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts)
	return ts.Nano()
}
