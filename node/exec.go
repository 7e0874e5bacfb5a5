package node

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"

	"github.com/cradlevm/cradle/api"
	"github.com/cradlevm/cradle/node/runspec"
)

// exec is one exec of a container: created, running, ended.
type exec struct {
	id   string
	c    *ctr
	size int // of its request, roughly, bytes
	keys []byte

	mu  sync.Mutex
	rec execRecord // what has been kept; the request does not change once it has begun

	recordMu sync.Mutex
	record   *os.File // its record's file between takeOut and putAway, to add to; nil otherwise

	exitCode *int
	done     chan struct{} // closed when it has ended
	drained  chan struct{} // closed when its output has been written, too

	// asked is closed when the agent has said what came of a start that an earlier daemon asked for and did not hear the
	// end of; nil for all other execs.
	asked chan struct{}
}

func newExec(c *ctr, id string, rec execRecord) *exec {
	e := &exec{id: id, c: c, rec: rec, done: make(chan struct{}), drained: make(chan struct{})}
	if r := rec.Request; r != nil {
		for _, words := range [][]string{r.Cmd, r.Env, {r.User, r.WorkingDir}} {
			for _, w := range words {
				e.size += len(w)
			}
		}
		e.keys, _ = detachKeys(r.DetachKeys) // ExecCreate refuses the others
	}
	return e
}

func newID() string {
	var b [32]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// Of one container's execs there are so many at most, and as many bytes of requests. Those that have ended make room for
// new ones before their time.
const (
	maxExecs     = 1000
	maxExecBytes = 32 << 20
)

// execMemory is how long an exec that has ended can still be inspected.
const execMemory = 5 * time.Minute

// ExecCreate implements dockerapi.Backend.
func (n *Node) ExecCreate(_ context.Context, name string, r container.ExecCreateRequest) (string, error) {
	c, err := n.find(name)
	if err != nil {
		return "", err
	}
	e, err := c.createExec(name, r, false)
	if err != nil {
		return "", err
	}
	return e.id, nil
}

// createExec makes an exec in the container, which the caller calls by name; probe is one of a healthcheck, which is
// forgotten as soon as it has ended.
func (c *ctr) createExec(name string, r container.ExecCreateRequest, probe bool) (*exec, error) {
	if len(r.Cmd) == 0 {
		return nil, invalid("no exec command specified")
	}
	run, paused, err := c.currentPaused()
	if err != nil {
		return nil, err
	}
	if paused {
		return nil, conflict("container %s is paused, unpause the container before exec", name)
	}
	if _, err := detachKeys(r.DetachKeys); err != nil {
		return nil, err
	}
	rec, e := c.snapshot(), newExec(c, newID(), execRecord{Request: &r, Created: time.Now(), Probe: probe})
	if _, err := runspec.Exec(rec.spec(), e.id, r); err != nil {
		return nil, err
	}
	e.keep()
	if err := e.register(); err != nil {
		e.unkeep()
		return nil, err
	}
	if now, err := c.current(); err != nil || now != run { // it ended meanwhile, and nobody else would forget this one
		e.forget()
		return nil, conflict("container %s is not running", c.id)
	}
	c.emit(events.Action("exec_create: "+strings.Join(r.Cmd, " ")), map[string]string{"execID": e.id})
	return e, nil
}

// register makes the exec known, in the place of ended ones if need be.
func (e *exec) register() error {
	n, c := e.c.node, e.c
	dropped, err := func() (dropped []*exec, err error) {
		n.mu.Lock()
		defer n.mu.Unlock()
		if n.containers[c.id] != c {
			return nil, notFound("No such container: %s", c.id)
		}
		count, bytes := len(c.execs)+1, e.size
		for _, o := range c.execs {
			bytes += o.size
		}
		for _, o := range c.execs {
			if count <= maxExecs && bytes <= maxExecBytes {
				break
			}
			if o.hasEnded() {
				dropped = append(dropped, o)
				count, bytes = count-1, bytes-o.size
			}
		}
		if count > maxExecs || bytes > maxExecBytes {
			return nil, conflict("container %s has too many execs", c.id)
		}
		for _, o := range dropped {
			n.dropExec(o)
		}
		n.execs[e.id] = e
		c.execs = append(c.execs, e)
		return dropped, nil
	}()
	for _, o := range dropped {
		o.unkeep()
	}
	return err
}

// dropExec takes an exec from the lists. n.mu is held.
func (n *Node) dropExec(e *exec) {
	delete(n.execs, e.id)
	e.c.execs = slices.DeleteFunc(e.c.execs, func(o *exec) bool { return o == e })
}

// forget makes the exec unknown to everyone.
func (e *exec) forget() {
	n := e.c.node
	n.mu.Lock()
	n.dropExec(e)
	n.mu.Unlock()
	e.unkeep()
}

// expire has an exec that has ended forgotten in time; a probe at once.
func (e *exec) expire() {
	e.mu.Lock()
	rest := execMemory
	if !e.rec.Ended.IsZero() {
		rest = min(execMemory, max(0, execMemory-time.Since(e.rec.Ended)))
	}
	e.mu.Unlock()
	if e.rec.Probe {
		e.forget()
		return
	}
	time.AfterFunc(rest, func() {
		if e.c.node.enter() == nil { // the next daemon has it otherwise
			defer e.c.node.running.Done()
			e.forget()
		}
	})
}

func (n *Node) findExec(id string) (*exec, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if e := n.execs[id]; e != nil {
		return e, nil
	}
	return nil, notFound("No such exec instance: %s", id)
}

// listExecs returns the container's execs, the oldest first.
func (c *ctr) listExecs() []*exec {
	c.node.mu.Lock()
	defer c.node.mu.Unlock()
	return slices.Clone(c.execs)
}

// forgetExecs drops the execs of a container that has been removed, whose files have gone with it.
func (c *ctr) forgetExecs() {
	c.node.mu.Lock()
	defer c.node.mu.Unlock()
	for _, e := range c.execs {
		delete(c.node.execs, e.id)
	}
	c.execs = nil
}

// forgetUnstartedExecs drops those that can no longer be started.
func (c *ctr) forgetUnstartedExecs() {
	for _, e := range c.listExecs() {
		if !e.isRunning() && !e.hasEnded() {
			e.forget()
		}
	}
}

// claim marks the exec as begun; once only. size, if any, is the terminal's.
func (e *exec) claim(size *[2]uint) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.exitCode != nil {
		return conflict("exec command %s has already run", e.id)
	}
	if e.rec.Begun {
		return conflict("exec command %s is already running", e.id)
	}
	e.rec.Begun = true
	if size != nil {
		e.rec.Request.ConsoleSize = size
	}
	return nil
}

// unclaim takes claim back: it has not come to anything, and may be tried again.
func (e *exec) unclaim() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.rec.Begun = false
}

// ended notes the exit code.
func (e *exec) ended(code int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.exitCode = &code
	if e.rec.Ended.IsZero() {
		e.rec.Ended, e.rec.Code = time.Now(), code
	}
	close(e.done)
}

// code is the exit code of an exec that has ended.
func (e *exec) code() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return *e.exitCode
}

func (e *exec) isRunning() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.rec.Begun && e.exitCode == nil
}

func (e *exec) hasEnded() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.exitCode != nil
}

// request is what the client asked for.
func (e *exec) request() container.ExecCreateRequest {
	e.mu.Lock()
	defer e.mu.Unlock()
	return *e.rec.Request
}

func (e *exec) process() api.ProcessRef { return api.ProcessRef{ID: e.c.id, Exec: e.id} }

// ExecInspect implements dockerapi.Backend. The process id is the guest's, as ContainerTop shows it. CanRemove is what
// docker says of an exec that it is about to forget; until then neither says so.
func (n *Node) ExecInspect(ctx context.Context, id string) (container.ExecInspectResponse, error) {
	e, err := n.findExec(id)
	if err != nil {
		return container.ExecInspectResponse{}, err
	}
	if e.asked != nil { // whether it runs, and as which process, is known in a moment; an agent that is silent is not waited for
		waitFor(ctx, e.asked, adoptLimit)
	}
	running, r, keys := e.isRunning(), e.request(), []byte{}
	if r.DetachKeys != "" {
		keys = e.keys
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	return container.ExecInspectResponse{
		ID: e.id, Running: running, ExitCode: e.exitCode, Pid: e.rec.PID, ContainerID: e.c.id,
		OpenStdin: r.AttachStdin, OpenStdout: r.AttachStdout, OpenStderr: r.AttachStderr, DetachKeys: keys,
		ProcessConfig: &container.ExecProcessConfig{
			Tty: r.Tty, Entrypoint: r.Cmd[0], Arguments: r.Cmd[1:], Privileged: &r.Privileged, User: r.User,
		},
	}, nil
}

// ExecResize implements dockerapi.Backend.
func (n *Node) ExecResize(ctx context.Context, id string, height, width uint) error {
	e, err := n.findExec(id)
	if err != nil {
		return err
	}
	r, err := e.c.current()
	if err != nil {
		return err
	}
	w, h, err := terminalSize(width, height)
	if err != nil {
		return err
	}
	return r.vm.Resize(ctx, e.process(), w, h)
}
