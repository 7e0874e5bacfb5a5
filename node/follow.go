package node

import (
	"context"
	"errors"
	"io"
	"os"
	"strconv"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"

	"github.com/cradlevm/cradle/api"
	"github.com/cradlevm/cradle/dockerapi"
	"github.com/cradlevm/cradle/node/logfile"
	"github.com/cradlevm/cradle/sandbox"
)

// acknowledgeEvery is how many bytes of output may be safe here before the agent is told to forget them. It is well below
// api.OutputRing, so that the writer never waits for an acknowledgement that is due.
const acknowledgeEvery = api.OutputRing / 8

// teardownLimit bounds the polite end of a VM: flushing its disk.
const teardownLimit = 30 * time.Second

// errInternal is the class of a failure that is nobody's input's fault.
var errInternal = errors.New("internal error")

// follow accompanies a run to its end: output, exit, and the taking down of the VM. It returns early, leaving all
// as it is, when the daemon stops.
func (c *ctr) follow(r *run) {
	defer c.node.running.Done()
	ctx := c.node.ctx
	health, stopHealth := context.WithCancel(ctx)
	go c.checkHealth(health, r)
	pumped := make(chan error, 1)
	go func() { pumped <- c.pump(ctx, r) }()
	status, err := r.vm.Wait(ctx, c.process())
	for err != nil && !errors.Is(err, sandbox.ErrGone) && ctx.Err() == nil {
		// The session broke and the VM lives: the next call opens another.
		if !retryPause(ctx) {
			break
		}
		status, err = r.vm.Wait(ctx, c.process())
	}
	stopHealth()
	pumpErr := <-pumped
	if ctx.Err() != nil {
		return
	}
	if pumpErr != nil && !errors.Is(pumpErr, sandbox.ErrGone) {
		c.node.options.Log.Error("read output", "container", c.id, "err", pumpErr)
	}
	c.finish(r, status, err)
}

// retryPause lets a moment pass before a broken session is opened again, so that a broken guest costs no CPU.
func retryPause(ctx context.Context) bool {
	t := time.NewTimer(100 * time.Millisecond)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// finish records the end, tells everyone, and takes the VM down.
func (c *ctr) finish(r *run, status api.ExitStatus, err error) {
	reason := ""
	if err != nil { // the VM went away under the container
		status = api.ExitStatus{Code: 137}
		if cause := r.vm.Cause(); cause != nil {
			reason = cause.Error()
		}
	}
	c.closeLog() // its followers have all there is
	if err := c.change(func(rec *record) {
		rec.Status, rec.ExitCode, rec.OOMKilled = container.StateExited, status.Code, status.OOMKilled
		rec.Finished, rec.Error = time.Now(), reason
	}); err != nil {
		c.node.options.Log.Error("record exit", "container", c.id, "err", err)
	}
	c.mu.Lock()
	c.wake(false)
	c.endAttachments()
	rec, again := c.rec, c.restartDue()
	c.mu.Unlock()
	close(r.ended)
	if status.OOMKilled {
		c.emit(events.ActionOOM, nil)
	}
	c.emit(events.ActionDie, map[string]string{
		"exitCode":     strconv.Itoa(status.Code),
		"execDuration": strconv.Itoa(int(rec.Finished.Sub(rec.Started).Seconds())),
	})
	c.teardown(r, rec)
	switch {
	case rec.HostConfig.AutoRemove:
		c.op.Lock()
		defer c.op.Unlock()
		if err := c.remove(); err != nil {
			c.node.options.Log.Error("remove container after its exit", "container", c.id, "err", err)
		}
	case again:
		c.node.running.Add(1)
		go c.restartLater(rec)
	}
}

// teardown ends the run's VM and removes its runtime files. The writable disk of a container that stays is
// flushed first.
func (c *ctr) teardown(r *run, rec record) {
	log := c.node.options.Log.With("container", c.id)
	ctx, cancel := context.WithTimeout(context.Background(), teardownLimit)
	defer cancel()
	if rec.HostConfig.AutoRemove {
		if err := r.vm.Kill(); err != nil {
			log.Error("end virtual machine", "err", err)
		}
	} else {
		if err := r.vm.Delete(ctx, c.process()); err != nil && !errors.Is(err, sandbox.ErrGone) {
			log.Warn("flush container's disk", "err", err)
		}
		if err := r.vm.Stop(ctx); err != nil {
			log.Error("end virtual machine", "err", err)
		}
	}
	c.clear(r, rec)
}

// clear forgets a VM that has gone.
func (c *ctr) clear(r *run, rec record) {
	log := c.node.options.Log.With("container", c.id)
	if rec.Sandbox != nil {
		if err := os.RemoveAll(rec.Sandbox.VM.Dir); err != nil {
			log.Error("remove runtime directory", "err", err)
		}
		c.node.giveUID(rec.Sandbox.VM.UID)
	}
	if err := c.change(func(rec *record) { rec.Sandbox = nil; c.run = nil }); err != nil {
		log.Error("record end of virtual machine", "err", err)
	}
	close(r.torn)
}

// pump carries the container's output to its log and to whoever is attached, until it ends.
func (c *ctr) pump(ctx context.Context, r *run) error {
	log, err := c.openLog()
	if err != nil {
		return err
	}
	var offset uint64
	if log != nil {
		offset = log.Offset()
	}
	for {
		out, err := r.vm.Output(ctx, c.process(), offset)
		if err == nil {
			stop := context.AfterFunc(ctx, func() { out.Close() })
			err = c.pumpSession(out, log)
			offset = out.Offset()
			stop()
			out.Close()
			if errors.Is(err, io.EOF) {
				return nil
			}
		}
		select {
		case <-r.vm.Done():
			return sandbox.ErrGone
		default:
		}
		var answered *api.Error
		if errors.As(err, &answered) || !retryPause(ctx) {
			return err
		}
	}
}

// pumpSession carries records until the stream ends: io.EOF when the output has.
func (c *ctr) pumpSession(out *sandbox.Output, log *logfile.Log) error {
	acknowledged := out.Offset()
	for {
		stream, payload, framed, err := out.Next()
		if err != nil {
			return err
		}
		if log != nil {
			if err := log.Append(stream, payload, time.Now(), out.Offset()); err != nil {
				// A log that cannot be written must not stop the container: docker's clients still see the output.
				c.node.options.Log.Error("write log", "container", c.id, "err", err)
			}
		}
		c.deliver(framed)
		if out.Offset()-acknowledged >= acknowledgeEvery {
			if err := out.Acknowledge(); err != nil {
				return err
			}
			acknowledged = out.Offset()
		}
	}
}

// restartDue decides whether the restart policy wants another run. c.mu is held.
func (c *ctr) restartDue() bool {
	if c.rec.StoppedByUser || c.removing {
		return false
	}
	switch p := c.rec.HostConfig.RestartPolicy; p.Name {
	case container.RestartPolicyAlways, container.RestartPolicyUnlessStopped:
		return true
	case container.RestartPolicyOnFailure:
		return c.rec.ExitCode != 0 && (p.MaximumRetryCount == 0 || c.rec.RestartCount < p.MaximumRetryCount)
	default:
		return false
	}
}

// restartLater starts the container again after docker's delay: 100 ms, doubled with each restart up to a minute.
// A run that lasted ten seconds begins the series anew.
func (c *ctr) restartLater(rec record) {
	defer c.node.running.Done()
	delay := 100 * time.Millisecond
	if rec.Finished.Sub(rec.Started) < 10*time.Second {
		delay = min(delay<<min(rec.RestartCount, 10), time.Minute)
	}
	select {
	case <-time.After(delay):
	case <-c.gone:
		return
	case <-c.node.ctx.Done():
		return
	}
	c.op.Lock()
	defer c.op.Unlock()
	c.mu.Lock()
	due := c.restartDue() && c.rec.Status == container.StateExited && c.rec.Finished.Equal(rec.Finished)
	c.mu.Unlock()
	if !due {
		return
	}
	if err := c.start(c.node.ctx, rec.RestartCount+1); err != nil && !errors.Is(err, dockerapi.ErrNotModified) {
		c.node.options.Log.Error("restart container", "container", c.id, "err", err)
	}
}
