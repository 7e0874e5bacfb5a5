package node

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/term"

	"github.com/cradlevm/cradle/api"
	"github.com/cradlevm/cradle/dockerapi"
	"github.com/cradlevm/cradle/node/runspec"
	"github.com/cradlevm/cradle/sandbox"
)

// exec is one exec of a container: created, running, ended. It goes when its container's run ends.
type exec struct {
	id      string
	c       *ctr
	request container.ExecCreateRequest
	keys    []byte

	mu       sync.Mutex
	started  bool
	running  bool
	exitCode *int
	done     chan struct{} // closed when it has ended
}

func newID() string {
	var b [32]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// ExecCreate implements dockerapi.Backend.
func (n *Node) ExecCreate(_ context.Context, name string, r container.ExecCreateRequest) (string, error) {
	c, err := n.find(name)
	if err != nil {
		return "", err
	}
	if len(r.Cmd) == 0 {
		return "", invalid("no exec command specified")
	}
	if _, err := c.current(); err != nil {
		return "", err
	}
	if c.snapshot().Status == container.StatePaused {
		return "", conflict("container %s is paused, unpause the container before exec", name)
	}
	keys, err := detachKeys(r.DetachKeys)
	if err != nil {
		return "", err
	}
	rec := c.snapshot()
	e := &exec{id: newID(), c: c, request: r, keys: keys, done: make(chan struct{})}
	if _, err := runspec.Exec(rec.spec(), e.id, r, n.settings); err != nil {
		return "", err
	}
	n.mu.Lock()
	n.execs[e.id] = e
	n.mu.Unlock()
	c.emit(events.Action("exec_create: "+strings.Join(r.Cmd, " ")), map[string]string{"execID": e.id})
	return e.id, nil
}

func (n *Node) findExec(id string) (*exec, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if e := n.execs[id]; e != nil {
		return e, nil
	}
	return nil, notFound("No such exec instance: %s", id)
}

// forgetExecs drops the execs of a container that is removed, forgetUnstartedExecs those that can no longer be started.
func (n *Node) forgetExecs(c *ctr) { n.dropExecs(c, func(*exec) bool { return true }) }

func (n *Node) forgetUnstartedExecs(c *ctr) {
	n.dropExecs(c, func(e *exec) bool {
		e.mu.Lock()
		defer e.mu.Unlock()
		return !e.started
	})
}

func (n *Node) dropExecs(c *ctr, drop func(*exec) bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for id, e := range n.execs {
		if e.c == c && drop(e) {
			delete(n.execs, id)
		}
	}
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
	return e.running
}

// ExecStart implements dockerapi.Backend.
func (n *Node) ExecStart(ctx context.Context, id string, r container.ExecStartRequest, ready func() (dockerapi.Streams, error)) error {
	e, err := n.findExec(id)
	if err != nil {
		return err
	}
	if err := e.claim(); err != nil {
		return err
	}
	run, err := e.c.current()
	if err == nil {
		err = n.enter()
	}
	if err != nil {
		e.ended(126)
		return err
	}
	// The node's end is the call's, whoever holds the connection.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(n.ctx, cancel)()
	if r.ConsoleSize != nil {
		e.request.ConsoleSize = r.ConsoleSize
	}
	if err := e.launch(run); err != nil {
		n.running.Done()
		return err
	}
	e.c.emit(events.Action("exec_start: "+strings.Join(e.request.Cmd, " ")), map[string]string{"execID": e.id})
	if r.Detach {
		go func() {
			defer n.running.Done()
			if err := e.serve(n.ctx, run, nowhere()); err != nil {
				n.options.Log.Warn("detached exec", "exec", e.id, "err", err)
			}
		}()
		return nil
	}
	defer n.running.Done()
	streams, err := ready()
	if err != nil { // the client went away: the process goes on without it
		streams = nowhere()
	}
	return e.serve(ctx, run, streams)
}

// nowhere are the streams of a process that nobody listens to.
func nowhere() dockerapi.Streams { return dockerapi.Streams{Stdout: io.Discard, Stderr: io.Discard} }

// claim marks the exec as started; once only.
func (e *exec) claim() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.exitCode != nil {
		return conflict("exec command %s has already run", e.id)
	}
	if e.started {
		return conflict("exec command %s is already running", e.id)
	}
	e.started, e.running = true, true
	return nil
}

// execMemory is how long an exec that has ended can still be inspected.
const execMemory = 5 * time.Minute

// ended records the exit code, and forgets the exec after a while.
func (e *exec) ended(code int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.running, e.exitCode = false, &code
	close(e.done)
	time.AfterFunc(execMemory, func() {
		e.c.node.mu.Lock()
		defer e.c.node.mu.Unlock()
		delete(e.c.node.execs, e.id)
	})
}

// execLimit bounds the start of a process in a container that runs.
const execLimit = time.Minute

// launch starts the process. A failure is recorded with docker's exit codes.
func (e *exec) launch(r *run) error {
	// It goes on when its client hangs up.
	ctx, cancel := context.WithTimeout(e.c.node.ctx, execLimit)
	defer cancel()
	rec := e.c.snapshot()
	request, err := runspec.Exec(rec.spec(), e.id, e.request, e.c.node.settings)
	if wd := e.request.WorkingDir; err == nil && wd != "" && !strings.HasPrefix(wd, "/") {
		err = invalid("OCI runtime exec failed: exec failed: Cwd must be an absolute path")
	}
	if err == nil {
		err = r.vm.Exec(ctx, request)
	}
	if err == nil {
		return nil
	}
	code := 126
	var answered *api.Error
	if errors.Is(err, sandbox.ErrGone) {
		err = conflict("container %s is not running", e.c.id)
	} else if errors.As(err, &answered) {
		if answered.Code == api.CodeCommandNotFound {
			code = 127
		}
		err = invalid("%s", framed("OCI runtime exec failed: exec failed: unable to start container process: ", answered.Message))
	}
	e.ended(code)
	return err
}

func (e *exec) process() api.ProcessRef { return api.ProcessRef{ID: e.c.id, Exec: e.id} }

// serve pumps the streams until the process has ended and its output is written. A client that leaves does not end
// the process: the rest of its output is read for nobody.
func (e *exec) serve(ctx context.Context, r *run, s dockerapi.Streams) error {
	go func() {
		st, err := r.wait(e.c.node.ctx, e.process())
		if err != nil {
			st.Code = 137
		}
		e.ended(st.Code)
	}()
	detached := make(chan struct{})
	if s.Stdin != nil && e.request.AttachStdin {
		go func() {
			if errors.As(e.feed(ctx, r, s.Stdin), new(term.EscapeError)) {
				close(detached)
			}
		}()
	}
	pumped := make(chan error, 1)
	go func() { pumped <- e.pump(r, s) }()
	finish := func() {
		<-e.done
		e.c.emit(events.ActionExecDie, map[string]string{"execID": e.id, "exitCode": strconv.Itoa(e.code())})
		forget, cancel := context.WithTimeout(e.c.node.ctx, time.Minute)
		defer cancel()
		if err := r.vm.Delete(forget, e.process()); err != nil && !errors.Is(err, sandbox.ErrGone) {
			e.c.node.options.Log.Debug("forget exec", "exec", e.id, "err", err)
		}
	}
	select {
	case err := <-pumped:
		finish()
		return err
	case <-detached:
	case <-ctx.Done():
	}
	e.c.node.running.Add(1) // the caller is in running
	go func() {
		defer e.c.node.running.Done()
		<-pumped
		finish()
	}()
	return nil
}

// pump writes the output until it ends. After the client has gone it goes on reading, so that the process does not
// stall.
func (e *exec) pump(r *run, s dockerapi.Streams) error {
	var writeErr error
	err := r.output(e.c.node.ctx, e.process(), 0, func(_ *sandbox.Output, _ byte, _, framed []byte) {
		if writeErr == nil {
			writeErr = writeRecord(s, framed, e.request.Tty)
		}
	})
	if errors.Is(err, sandbox.ErrGone) || e.c.node.ctx.Err() != nil {
		err = nil
	}
	return errors.Join(err, writeErr)
}

// feed copies the client's input to the process; its end is the process's end of input.
func (e *exec) feed(ctx context.Context, r *run, from io.Reader) error {
	if e.request.Tty && len(e.keys) > 0 {
		from = term.NewEscapeProxy(from, e.keys)
	}
	to, err := r.vm.Stdin(ctx, e.process())
	if err != nil {
		return err
	}
	_, err = io.Copy(to, onlyReader{from})
	if err == nil || !errors.As(err, new(term.EscapeError)) {
		to.Close()
	}
	return err
}

// ExecInspect implements dockerapi.Backend.
func (n *Node) ExecInspect(_ context.Context, id string) (container.ExecInspectResponse, error) {
	e, err := n.findExec(id)
	if err != nil {
		return container.ExecInspectResponse{}, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	privileged := e.request.Privileged
	return container.ExecInspectResponse{
		ID: e.id, Running: e.running, ExitCode: e.exitCode, ContainerID: e.c.id,
		OpenStdin: e.request.AttachStdin, OpenStdout: e.request.AttachStdout, OpenStderr: e.request.AttachStderr,
		CanRemove: !e.running, DetachKeys: e.keys,
		ProcessConfig: &container.ExecProcessConfig{
			Tty: e.request.Tty, Entrypoint: e.request.Cmd[0], Arguments: e.request.Cmd[1:],
			Privileged: &privileged, User: e.request.User,
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
