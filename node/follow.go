package node

import (
	"context"
	"errors"
	"strconv"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"

	"github.com/cradlevm/cradle/api"
	"github.com/cradlevm/cradle/node/logfile"
	"github.com/cradlevm/cradle/sandbox"
)

const (
	// teardownLimit bounds the polite end of a VM: flushing its disk.
	teardownLimit = 30 * time.Second
	// drainLimit bounds the reading of what an ended process has left in its journal, api.OutputRing at most.
	drainLimit = time.Minute
)

// errInternal is the class of a failure that is nobody's input's fault.
var errInternal = errors.New("internal error")

// follow accompanies a run to its end: output, exit, and the taking down of the VM. It returns early, leaving all
// as it is, when the daemon stops.
func (c *ctr) follow(r *run) {
	defer c.node.running.Done()
	ctx := c.node.ctx
	health, stopHealth := context.WithCancel(ctx)
	defer stopHealth()
	c.node.running.Add(1)
	go c.checkHealth(health, r)
	pumping, stopPump := context.WithCancel(ctx)
	defer stopPump()
	pumped := make(chan error, 1)
	end := r.outcome(ctx, c.process())
	go func() {
		err := c.pump(pumping, r, end)
		end.ask() // whatever became of the output
		pumped <- err
	}()

	status, err := end.wait(ctx)
	r.phases.done("run")
	stopHealth()
	if ctx.Err() == nil {
		r.hurry()
		defer time.AfterFunc(drainLimit, stopPump).Stop()
	}
	pumpErr := <-pumped
	if ctx.Err() != nil {
		return
	}
	if pumpErr != nil && !errors.Is(pumpErr, sandbox.ErrGone) {
		c.node.options.Log.Error("read output", "container", c.id, "err", pumpErr)
	}
	r.phases.done("output")
	c.finish(r, status, err)
}

// finish records the end, tells everyone, and takes the VM down.
func (c *ctr) finish(r *run, status api.ExitStatus, err error) {
	if err == nil && c.vanish(r, status) {
		r.phases.log(c.node.options.Log.With("container", c.id), "ended")
		return
	}
	reason := ""
	if err != nil { // the VM went away under the container, or its agent is not to be believed
		status = api.ExitStatus{Code: 137}
		if !errors.Is(err, sandbox.ErrGone) {
			reason = clean(err.Error())
			if err := c.distrust(r); err != nil {
				c.node.options.Log.Error("end virtual machine", "container", c.id, "err", err)
			}
		} else if cause := r.vm.Cause(); cause != nil {
			reason = cause.Error()
		}
	}
	if r.owner != nil && reason == "" && (r.owner.ending() || errors.Is(err, sandbox.ErrGone)) {
		reason = "the container whose virtual machine it shared has ended"
	}
	var rec record
	if err := c.change(func(r *record) {
		r.ExitCode, r.OOMKilled, r.Finished, r.Error = status.Code, status.OOMKilled, time.Now(), reason
		c.setEnded()
		rec = *r
	}); err != nil {
		c.node.options.Log.Error("record exit", "container", c.id, "err", err)
	}
	c.closeLog() // its followers have all there is; who comes now sees that it has ended, and does not follow
	c.mu.Lock()
	c.wake(false)
	c.endAttachments()
	c.mu.Unlock()
	c.emitDie(rec) // before who waited for it goes on: a stop tells of itself after
	close(r.ended)
	r.phases.done("record")
	c.teardown(r, rec)
	r.phases.done("teardown")
	c.afterwards(rec)
	r.phases.done("remove")
	r.phases.log(c.node.options.Log.With("container", c.id), "ended")
}

// distrust ends the VM of a run whose agent is not to be believed. One that is shared is its owner's to end.
func (c *ctr) distrust(r *run) error {
	if r.owner != nil {
		return nil
	}
	return r.vm.Kill()
}

// emitDie tells of an end as the record has it.
func (c *ctr) emitDie(rec record) {
	if rec.OOMKilled {
		c.emit(events.ActionOOM, nil)
	}
	c.emit(events.ActionDie, map[string]string{
		"exitCode":     strconv.Itoa(rec.ExitCode),
		"execDuration": strconv.Itoa(int(max(0, rec.Finished.Sub(rec.Started)).Seconds())),
	})
}

// setEnded gives an ended container its status: with a restart policy that wants another run it is not over. c.mu is
// held.
func (c *ctr) setEnded() {
	c.rec.Status = container.StateExited
	if c.restartDue() {
		c.rec.Status = container.StateRestarting
	}
	if c.health != nil {
		h := *c.health
		h.Status = container.Unhealthy // docker's word for a container that is no longer looked at
		c.health = &h
	}
}

// afterwards does what an ended container, of whose VM nothing is left, has coming: its removal or its next run.
func (c *ctr) afterwards(rec record) {
	c.mu.Lock()
	keep := c.keep
	c.mu.Unlock()
	switch {
	case rec.HostConfig.AutoRemove && !keep && !rec.Hibernated:
		c.removeAtLast()
	case rec.Status == container.StateRestarting && c.node.enter() == nil:
		go c.restartLater(rec)
	}
}

// teardown ends the run's VM and removes its runtime files. The writable disk of a container that stays, and
// volumes, are flushed first.
func (c *ctr) teardown(r *run, rec record) {
	log := c.node.options.Log.With("container", c.id)
	c.drainExecs()
	c.forgetUnstartedExecs()
	ctx, cancel := context.WithTimeout(context.Background(), teardownLimit)
	defer cancel()
	c.mu.Lock()
	goes := (rec.HostConfig.AutoRemove && !c.keep || c.removing) && len(rec.namedVolumes()) == 0
	c.mu.Unlock()
	switch {
	case r.owner != nil:
		if err := c.vacate(r.vm, rec.Within); err != nil {
			log.Error("take container out of the virtual machine that it shares", "err", err)
		}
	case goes:
		c.evict(r)
		if err := r.vm.Kill(); err != nil {
			log.Error("end virtual machine", "err", err)
		}
	default:
		c.evict(r)
		if err := r.flush(ctx, c.process()); err != nil && !errors.Is(err, sandbox.ErrGone) {
			log.Warn("flush container's disk", "err", err)
		}
		if err := r.vm.Stop(ctx); err != nil {
			log.Error("end virtual machine", "err", err)
		}
	}
	c.clear(rec)
	if r.owner != nil {
		r.owner.leave(c)
	}
	close(r.torn)
}

// clear forgets a VM that has gone.
func (c *ctr) clear(rec record) {
	c.freeMachine(rec)
	if err := c.change(func(rec *record) {
		rec.Sandbox, rec.Within, rec.Booting, rec.Links = nil, nil, false, unlinked(rec.Links)
		c.run, c.within, c.stuck = nil, nil, nil
	}); err != nil {
		c.node.options.Log.Error("record end of virtual machine", "container", c.id, "err", err)
	}
}

// freeMachine gives back what a VM that has gone had on the host.
func (c *ctr) freeMachine(rec record) {
	if rec.Sandbox == nil {
		return
	}
	err := c.node.freeMachine(rec.Sandbox.VM)
	if n := c.node.networks; n != nil && n.Streams() { // the record may not know of all endpoints that were made
		err = errors.Join(err, n.DetachAll(context.Background(), c.id))
	}
	if err != nil {
		c.node.options.Log.Error("give back what a virtual machine had", "container", c.id, "err", err)
	}
}

// pump carries the container's output to its log and to whoever is attached, until it ends.
func (c *ctr) pump(ctx context.Context, r *run, end *outcome) error {
	log, err := c.openLog()
	if err != nil {
		return err
	}
	var offset uint64
	if log != nil {
		offset = log.Offset()
	}
	lost := 0
	out, err := r.output(ctx, c.process(), r.out, offset, end, func(o *sandbox.Output, stream byte, payload, framed []byte) {
		if log != nil {
			lost = c.append(log, o, stream, payload, lost)
		}
		c.deliver(r, framed)
		r.phases.output()
	})
	if out != nil {
		out.Close()
	}
	return err
}

// append writes to the log. One that cannot be written must not stop the container: docker's clients still see the
// output, and the daemon's own log says so once. lost counts the records that were not written.
func (c *ctr) append(log *logfile.Log, o *sandbox.Output, stream byte, payload []byte, lost int) int {
	err := log.Append(stream, payload, time.Now(), o.Offset())
	switch {
	case err != nil && lost == 0:
		c.node.options.Log.Error("write log", "container", c.id, "err", err)
	case err == nil && lost > 0:
		c.node.options.Log.Warn("the log can be written again", "container", c.id, "records lost", lost)
		return 0
	}
	if err != nil {
		return lost + 1
	}
	return 0
}

// restartDue decides whether the restart policy wants another run. c.mu is held.
func (c *ctr) restartDue() bool {
	if c.rec.StoppedByUser || c.removing || c.rec.Removing || c.rec.Hibernated {
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

// Docker's delay before a restart: 100 ms, doubled with each restart up to a minute. A run that lasted ten seconds
// begins the series anew.
const (
	firstBackoff = 100 * time.Millisecond
	maxBackoff   = time.Minute
	longRun      = 10 * time.Second
)

// nextBackoff is the delay before the restart that follows a run.
func nextBackoff(last, lasted time.Duration) time.Duration {
	if last == 0 || lasted >= longRun {
		return firstBackoff
	}
	return min(2*last, maxBackoff)
}

// restartLater starts the container again after docker's delay, unless it is stopped, removed or started meanwhile.
// The caller has entered the node.
func (c *ctr) restartLater(rec record) {
	defer c.node.running.Done()
	c.mu.Lock()
	c.backoff = nextBackoff(c.backoff, rec.Finished.Sub(rec.Started))
	delay := c.backoff
	c.mu.Unlock()
	for due := false; !due; delay = min(2*delay, maxBackoff) { // whose VM it shares may be on its way
		if waitFor(c.node.ctx, c.gone, delay) != errTimeout {
			return
		}
		due = c.hostIsUp() || !c.isActive()
	}
	c.op.Lock()
	defer c.op.Unlock()
	c.mu.Lock()
	due := !c.removing && c.rec.Status == container.StateRestarting && c.rec.Finished.Equal(rec.Finished)
	c.mu.Unlock()
	if !due {
		return
	}
	if err := c.start(c.node.ctx, rec.RestartCount+1); err != nil && c.node.ctx.Err() == nil {
		c.node.options.Log.Error("restart container", "container", c.id, "err", err)
	}
}
