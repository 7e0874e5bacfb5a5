package node

import (
	"context"
	"errors"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/term"

	"github.com/cradlevm/cradle/api"
	"github.com/cradlevm/cradle/dockerapi"
	"github.com/cradlevm/cradle/node/runspec"
	"github.com/cradlevm/cradle/sandbox"
)

// ExecStart implements dockerapi.Backend.
func (n *Node) ExecStart(ctx context.Context, id string, r container.ExecStartRequest, ready func() (dockerapi.Streams, error)) error {
	e, err := n.findExec(id)
	if err != nil {
		return err
	}
	return e.start(ctx, r, ready)
}

func (e *exec) start(ctx context.Context, o container.ExecStartRequest, ready func() (dockerapi.Streams, error)) error {
	n := e.c.node
	r, err := e.c.current()
	if err != nil {
		return err
	}
	if err := n.enter(); err != nil {
		return err
	}
	serving := false
	defer func() {
		if !serving {
			n.running.Done()
		}
	}()
	if err := e.claim(o.ConsoleSize); err != nil {
		return err
	}
	// The node's end is the call's, whoever holds the connection.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(n.ctx, cancel)()
	if !o.Detach {
		e.takeOut()
	}
	e.note(execRecord{Begun: true})
	out, err := e.launch(r)
	if err != nil {
		return err
	}
	e.c.emit(events.Action("exec_start: "+strings.Join(e.request().Cmd, " ")), map[string]string{"execID": e.id})
	if o.Detach {
		serving = true
		go func() {
			defer n.running.Done()
			if err := e.serve(n.ctx, r, out, nowhere()); err != nil {
				n.options.Log.Warn("detached exec", "exec", e.id, "err", err)
			}
		}()
		return nil
	}
	streams, err := ready()
	if err != nil { // the client went away: the process goes on without it
		streams = nowhere()
	}
	return e.serve(ctx, r, out, streams)
}

// nowhere are the streams of a process that nobody listens to.
func nowhere() dockerapi.Streams { return dockerapi.Streams{Stdout: io.Discard, Stderr: io.Discard} }

// execLimit bounds the start of a process in a container that runs.
const execLimit = time.Minute

// launch starts the process and returns its output. A failure is recorded with docker's exit codes. The caller is in
// running.
func (e *exec) launch(r *run) (*sandbox.Output, error) {
	// It goes on when its client hangs up.
	ctx, cancel := context.WithTimeout(e.c.node.ctx, execLimit)
	defer cancel()
	rec, request := e.c.snapshot(), e.request()
	asked, err := runspec.Exec(rec.spec(), e.id, request)
	if wd := request.WorkingDir; err == nil && wd != "" && !strings.HasPrefix(wd, "/") {
		err = invalid("OCI runtime exec failed: exec failed: Cwd must be an absolute path")
	}
	if err == nil {
		var out *sandbox.Output
		var pid int
		if out, pid, err = r.vm.Exec(ctx, asked); err == nil {
			e.mu.Lock()
			e.rec.PID = pid
			e.mu.Unlock()
			return out, nil
		}
	}
	if e.c.node.ctx.Err() != nil { // the next daemon finds out what came of it
		return nil, errClosing
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
	close(e.drained)
	if answered != nil || asked.Exec == "" { // it never ran; of what was not answered nobody knows
		r = nil
	}
	e.c.node.running.Add(1)
	go func() {
		defer e.c.node.running.Done()
		e.settle(r, nil)
	}()
	return nil, err
}

// serve pumps the streams until the process has ended and its output is written. A client that leaves does not end
// the process: the rest of its output is read for nobody. out is that of the start, nil where it has to be asked for.
// The caller is in running.
func (e *exec) serve(ctx context.Context, r *run, out *sandbox.Output, s dockerapi.Streams) error {
	n := e.c.node
	n.running.Add(1)
	end := r.outcome(n.ctx, e.process())
	go e.await(end)
	detached := make(chan struct{})
	if s.Stdin != nil && e.request().AttachStdin {
		go func() {
			if errors.As(e.feed(ctx, r, s.Stdin), new(term.EscapeError)) {
				close(detached)
			}
		}()
	}
	pumped := make(chan error, 1)
	n.running.Add(1)
	go func() {
		defer n.running.Done()
		out, err := e.pump(r, out, end, s)
		select {
		case <-e.done:
			e.c.emit(events.ActionExecDie, map[string]string{"execID": e.id, "exitCode": strconv.Itoa(e.code())})
			close(e.drained)
		case <-n.ctx.Done():
		}
		pumped <- err
		if n.ctx.Err() == nil {
			e.settle(r, out)
		}
	}()
	select {
	case err := <-pumped:
		return err
	case <-detached:
	case <-ctx.Done():
	}
	return nil
}

// await notes how the process ends. When the daemon ends first, the next one does.
func (e *exec) await(end *outcome) {
	n := e.c.node
	defer n.running.Done()
	e.mu.Lock()
	pid := e.rec.PID
	e.mu.Unlock()
	e.note(execRecord{PID: pid})
	st, err := end.wait(n.ctx)
	if n.ctx.Err() != nil {
		return
	}
	if err != nil {
		st.Code = 137
	}
	e.ended(st.Code)
}

// settle does, when the client has been served, what an exec that has ended has coming: its end is kept, the agent
// forgets it, and in time so does the node. r is nil when there is no agent any more; out has brought the end, if not nil.
func (e *exec) settle(r *run, out *sandbox.Output) {
	defer e.putAway()
	e.mu.Lock()
	rec := e.rec
	e.mu.Unlock()
	if !rec.Probe {
		e.note(execRecord{Ended: rec.Ended, Code: rec.Code})
	}
	if told := out != nil && out.Forget(); !told && r != nil {
		e.release(r)
	}
	e.expire()
}

// release has the agent forget the process, if it knows it.
func (e *exec) release(r *run) {
	ctx, cancel := context.WithTimeout(e.c.node.ctx, execLimit)
	defer cancel()
	if err := r.vm.Delete(ctx, e.process()); err != nil && !errors.Is(err, sandbox.ErrGone) {
		e.c.node.options.Log.Debug("forget exec", "exec", e.id, "err", err)
	}
}

// execRest is how long the end of a container waits for what its execs have left to say.
const execRest = 2 * time.Second

// drainExecs waits until the execs of a container that has ended have their exit codes and their clients their output: the
// VM is not needed after that. A client that does not read is not waited for.
func (c *ctr) drainExecs() {
	over := time.NewTimer(execRest)
	defer over.Stop()
	for _, e := range c.listExecs() {
		if !e.isRunning() && !e.hasEnded() {
			continue
		}
		select {
		case <-e.drained:
		case <-over.C:
			return
		case <-c.node.ctx.Done():
			return
		}
	}
}

// pump writes the output until it ends. After the client has gone it goes on reading, so that the process does not
// stall. It returns what run.output does.
func (e *exec) pump(r *run, out *sandbox.Output, end *outcome, s dockerapi.Streams) (*sandbox.Output, error) {
	defer end.ask() // whatever became of the output
	var writeErr error
	tty := e.request().Tty
	out, err := r.output(e.c.node.ctx, e.process(), out, 0, end, func(_ *sandbox.Output, _ byte, _, framed []byte) {
		if writeErr == nil {
			writeErr = writeRecord(s, framed, tty)
		}
	})
	if errors.Is(err, sandbox.ErrGone) || e.c.node.ctx.Err() != nil {
		err = nil
	}
	return out, errors.Join(err, writeErr)
}

// feed copies the client's input to the process; its end is the process's end of input.
func (e *exec) feed(ctx context.Context, r *run, from io.Reader) error {
	if e.request().Tty && len(e.keys) > 0 {
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
