package node

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"golang.org/x/sys/unix"

	"github.com/cradlevm/cradle/api"
	"github.com/cradlevm/cradle/dockerapi"
	"github.com/cradlevm/cradle/sandbox"
)

// defaultStopTimeout is docker's: how long a container may take to end after its stop signal.
const defaultStopTimeout = 10 * time.Second

// killLimit is how long a container may outlive SIGKILL before its VM is taken from under it.
const killLimit = 10 * time.Second

// parseSignal reads "TERM", "SIGTERM", "15", "RTMIN+3"; empty means fallback.
func parseSignal(s string, fallback int) (int, error) {
	if s == "" {
		return fallback, nil
	}
	if n, err := strconv.Atoi(s); err == nil {
		if n < 1 || n > 64 {
			return 0, invalid("invalid signal: %s", s)
		}
		return n, nil
	}
	name := strings.TrimPrefix(strings.ToUpper(s), "SIG")
	const rtmin, rtmax = 34, 64 // as glibc and docker number them
	for prefix, base := range map[string]int{"RTMIN": rtmin, "RTMAX": rtmax} {
		if rest, ok := strings.CutPrefix(name, prefix); ok {
			offset := 0
			if rest != "" {
				var err error
				if offset, err = strconv.Atoi(rest); err != nil {
					return 0, invalid("invalid signal: %s", s)
				}
			}
			if n := base + offset; n >= rtmin && n <= rtmax {
				return n, nil
			}
			return 0, invalid("invalid signal: %s", s)
		}
	}
	if n := unix.SignalNum("SIG" + name); n != 0 {
		return int(n), nil
	}
	return 0, invalid("invalid signal: %s", s)
}

// ContainerStop implements dockerapi.Backend.
func (n *Node) ContainerStop(ctx context.Context, name, signal string, timeout *int) error {
	c, err := n.find(name)
	if err != nil {
		return err
	}
	return c.stop(context.WithoutCancel(ctx), signal, timeout) // goes on when its client hangs up
}

// stop sends the stop signal, waits, and kills. It returns when the container has ended.
func (c *ctr) stop(ctx context.Context, signal string, timeout *int) error {
	rec := c.snapshot()
	if signal == "" {
		signal = rec.Config.StopSignal
	}
	sig, err := parseSignal(signal, int(unix.SIGTERM))
	if err != nil {
		return err
	}
	limit := defaultStopTimeout
	if timeout == nil {
		timeout = rec.Config.StopTimeout
	}
	if timeout != nil {
		limit = time.Duration(*timeout) * time.Second
	}
	c.count(&c.stopping, 1)
	defer c.count(&c.stopping, -1)
	r, err := c.unwanted(ctx)
	if err != nil {
		return err
	}
	if r == nil { // it was between two runs
		c.emit(events.ActionStop, nil)
		return nil
	}
	c.emit(events.ActionKill, map[string]string{"signal": strconv.Itoa(sig)}) // docker's word for any signal
	if err := r.signal(ctx, c.process(), sig); err != nil && !errors.Is(err, sandbox.ErrGone) {
		c.node.options.Log.Warn("send stop signal", "container", c.id, "err", err)
	}
	if limit < 0 { // docker: wait for ever
		select {
		case <-r.ended:
		case <-c.node.ctx.Done():
			return errClosing
		}
	} else if err := c.await(ctx, r.ended, limit); errors.Is(err, errTimeout) {
		err = c.kill(ctx, r)
		if err != nil {
			return err
		}
	} else if err != nil {
		return err
	}
	c.emit(events.ActionStop, nil)
	return nil
}

// count adds to one of the container's counters.
func (c *ctr) count(counter *int, more int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	*counter += more
}

// unwanted notes that the user wants the container to end, so that no restart policy starts it again. A start under
// way comes to its end first; a paused container goes on. Nil without an error is a container that waited for its
// restart and no longer does.
func (c *ctr) unwanted(ctx context.Context) (*run, error) {
	c.op.Lock()
	defer c.op.Unlock()
	c.mu.Lock()
	status, r, stuck := c.rec.Status, c.run, c.stuck
	c.mu.Unlock()
	switch {
	case !active(status):
		return nil, dockerapi.ErrNotModified
	case stuck != nil:
		return nil, stuck
	}
	err := c.change(func(rec *record) {
		rec.StoppedByUser = true
		if rec.Status == container.StateRestarting {
			rec.Status = container.StateExited
			c.wake(false)
			r = nil
		}
	})
	if err != nil { // a disk that is full must not keep it running
		c.node.options.Log.Error("record stop", "container", c.id, "err", err)
	}
	if status == container.StatePaused {
		return r, c.unpause(ctx, r)
	}
	return r, nil
}

// await is waitFor that the daemon's end ends too.
func (c *ctr) await(ctx context.Context, ch <-chan struct{}, limit time.Duration) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(c.node.ctx, func() { cancel(errClosing) })()
	return waitFor(ctx, ch, limit)
}

// kill ends the container with SIGKILL, of which it tells, and, should even that not do, takes its VM away.
func (c *ctr) kill(ctx context.Context, r *run) error {
	c.emit(events.ActionKill, map[string]string{"signal": strconv.Itoa(int(unix.SIGKILL))})
	if err := r.signal(ctx, c.process(), int(unix.SIGKILL)); err != nil && !errors.Is(err, sandbox.ErrGone) {
		c.node.options.Log.Warn("send SIGKILL", "container", c.id, "err", err)
	}
	err := c.await(ctx, r.ended, killLimit)
	if errors.Is(err, errTimeout) && r.owner == nil {
		c.node.options.Log.Warn("container outlives SIGKILL, ending its virtual machine", "container", c.id)
		if err := r.vm.Kill(); err != nil {
			return err
		}
		err = c.await(ctx, r.ended, killLimit)
	}
	if err != nil {
		return fmt.Errorf("kill container %s: %w", c.id, err)
	}
	return nil
}

// ContainerRestart implements dockerapi.Backend. A container that is removed at its end stays through this one.
func (n *Node) ContainerRestart(ctx context.Context, name, signal string, timeout *int) error {
	c, err := n.find(name)
	if err != nil {
		return err
	}
	ctx = context.WithoutCancel(ctx)
	c.mu.Lock()
	c.keep = active(c.rec.Status)
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		c.keep = false
		c.mu.Unlock()
	}()
	if err := c.stop(ctx, signal, timeout); err != nil && !errors.Is(err, dockerapi.ErrNotModified) {
		return err
	}
	c.op.Lock()
	defer c.op.Unlock()
	err = c.start(ctx, 0)
	if err == nil || errors.Is(err, dockerapi.ErrNotModified) {
		c.emit(events.ActionRestart, nil)
		return nil
	}
	return err
}

// ContainerKill implements dockerapi.Backend.
func (n *Node) ContainerKill(ctx context.Context, name, signal string) error {
	c, err := n.find(name)
	if err != nil {
		return fmt.Errorf("cannot kill container: %s: %w", name, err)
	}
	sig, err := parseSignal(signal, int(unix.SIGKILL))
	if err != nil {
		return err
	}
	rec := c.snapshot()
	notRunning := conflict("cannot kill container: %s: container %s is not running", name, c.id)
	if !active(rec.Status) {
		return notRunning
	}
	ctx = context.WithoutCancel(ctx)
	stopSignal, err := parseSignal(rec.Config.StopSignal, int(unix.SIGTERM))
	if err != nil {
		stopSignal = int(unix.SIGTERM)
	}
	var r *run
	if sig == int(unix.SIGKILL) || sig == stopSignal {
		r, err = c.unwanted(ctx)
	} else {
		r, err = c.current()
	}
	switch {
	case errors.Is(err, dockerapi.ErrNotModified):
		return notRunning
	case err != nil:
		return err
	case r == nil: // it was between two runs
	case sig == int(unix.SIGKILL):
		return c.kill(ctx, r)
	default:
		err = r.signal(ctx, c.process(), sig)
		var answered *api.Error
		if errors.Is(err, sandbox.ErrGone) || (errors.As(err, &answered) && answered.Code == api.CodeFailedPrecondition) {
			return notRunning // it has ended meanwhile
		}
	}
	if err != nil {
		return err
	}
	c.emit(events.ActionKill, map[string]string{"signal": strconv.Itoa(sig)})
	return nil
}

// whileUp calls do with the run of a container that is up, and whether it is paused. Nothing else changes its life
// meanwhile.
func (n *Node) whileUp(name string, do func(c *ctr, r *run, paused bool) error) error {
	c, err := n.find(name)
	if err != nil {
		return err
	}
	c.op.Lock()
	defer c.op.Unlock()
	r, paused, err := c.currentPaused()
	if err != nil {
		return err
	}
	return do(c, r, paused)
}

// ContainerPause implements dockerapi.Backend: the VM's processors stop.
func (n *Node) ContainerPause(ctx context.Context, name string) error {
	return n.whileUp(name, func(c *ctr, r *run, paused bool) error {
		if paused {
			return conflict("container %s is already paused", c.id)
		}
		release, err := c.exclusive(r, "paused")
		if err != nil {
			return err
		}
		defer release()
		if err := c.pauseRun(ctx, r); err != nil {
			return fmt.Errorf("pause container %s: %w", c.id, err)
		}
		c.emit(events.ActionPause, nil)
		return nil
	})
}

// ContainerUnpause implements dockerapi.Backend.
func (n *Node) ContainerUnpause(ctx context.Context, name string) error {
	return n.whileUp(name, func(c *ctr, r *run, paused bool) error {
		if !paused {
			return conflict("container %s is not paused", c.id)
		}
		return c.unpause(ctx, r)
	})
}

func (c *ctr) unpause(ctx context.Context, r *run) error {
	if err := c.resumeRun(ctx, r); err != nil {
		return fmt.Errorf("unpause container %s: %w", c.id, err)
	}
	c.emit(events.ActionUnPause, nil)
	return nil
}

// changeIfUp sets the status of a container unless it has ended meanwhile.
func (c *ctr) changeIfUp(s container.ContainerState) error {
	return c.change(func(r *record) {
		if up(r.Status) {
			r.Status = s
		}
	})
}

// ContainerRemove implements dockerapi.Backend. Anonymous volumes live on the container's disk and go with it. A
// removal goes on when its client hangs up.
func (n *Node) ContainerRemove(ctx context.Context, name string, force, _ bool) error {
	c, err := n.find(name)
	if err != nil {
		return err
	}
	if !force && c.isActive() {
		return c.removeRunning()
	}
	c.mu.Lock()
	removing, abort := c.removing, c.abort
	c.mu.Unlock()
	if removing && !force {
		return conflict("removal of container %s is already in progress", c.id)
	}
	if force && abort != nil {
		abort(conflict("container %s is being removed", c.id))
	}
	c.op.Lock()
	defer c.op.Unlock()
	return c.removeLocked(context.WithoutCancel(ctx), force)
}

// removeLocked ends the container's VM, if it has one, and removes the container. op is held.
func (c *ctr) removeLocked(ctx context.Context, force bool) (err error) {
	c.mu.Lock()
	if c.removed { // by who held op before
		c.mu.Unlock()
		return nil
	}
	if active(c.rec.Status) && !force {
		c.mu.Unlock()
		return c.removeRunning()
	}
	if c.stuck != nil {
		c.mu.Unlock()
		return c.stuck
	}
	c.removing = true
	r, alive := c.run, up(c.rec.Status)
	c.mu.Unlock()
	defer func() {
		if err != nil { // it can be tried again
			c.mu.Lock()
			c.removing = false
			c.mu.Unlock()
		}
	}()
	if r != nil {
		if alive {
			// The container goes for good: its VM needs no polite end. Docker's word for that is SIGKILL.
			c.emit(events.ActionKill, map[string]string{"signal": strconv.Itoa(int(unix.SIGKILL))})
			if err := c.killRun(ctx, r); err != nil {
				return err
			}
		}
		if err := c.await(ctx, r.torn, teardownLimit+drainLimit); err != nil {
			return fmt.Errorf("remove container %s: end its virtual machine: %w", c.id, err)
		}
	}
	return c.remove()
}

// killRun ends the run the hard way: by its VM, or in the VM that it shares, or that has volumes to flush.
func (c *ctr) killRun(ctx context.Context, r *run) error {
	if r.owner == nil {
		if rec := c.snapshot(); len(rec.namedVolumes()) > 0 && c.killAndFlush(ctx, r, rec) {
			return nil
		}
		c.evict(r)
		return r.vm.Kill()
	}
	if err := r.signal(ctx, c.process(), int(unix.SIGKILL)); err != nil && !errors.Is(err, sandbox.ErrGone) {
		c.node.options.Log.Warn("send SIGKILL", "container", c.id, "err", err)
	}
	return nil
}

// killAndFlush ends a run by its first process, so that what was written to its volumes comes to their disks. False when that takes
// too long.
func (c *ctr) killAndFlush(ctx context.Context, r *run, rec record) bool {
	ctx, cancel := context.WithTimeout(ctx, teardownLimit)
	defer cancel()
	if rec.Status == container.StatePaused {
		if err := c.resumeRun(ctx, r); err != nil {
			return false
		}
	}
	if err := r.signal(ctx, c.process(), int(unix.SIGKILL)); err != nil {
		return errors.Is(err, sandbox.ErrGone)
	}
	return c.await(ctx, r.torn, teardownLimit) == nil
}

func (c *ctr) removeRunning() error {
	rec := c.snapshot()
	state := "running"
	if rec.Status == container.StatePaused {
		state = "paused"
	}
	return conflict("cannot remove container %q: container is %s: stop the container before removing or force remove", "/"+rec.Name, state)
}

// remove deletes a container that has no VM. Idempotent; op is held. The record says first that it goes, and goes
// last: what a crash leaves is removed by the next daemon.
func (c *ctr) remove() error {
	n := c.node
	c.mu.Lock()
	if c.removed {
		c.mu.Unlock()
		return nil
	}
	c.removing = true
	auto := c.rec.HostConfig.AutoRemove && !c.rec.Hibernated
	c.mu.Unlock()
	if !auto { // the next daemon removes an ended container of that kind anyhow
		if err := c.change(func(r *record) { r.Removing = true }); err != nil {
			n.options.Log.Warn("record removal", "container", c.id, "err", err) // a full disk must not keep it
		}
	}
	c.closeDesk()
	c.closeLog()
	if err := c.removeFiles(); err != nil {
		return err
	}
	if err := c.unrecord(); err != nil {
		return err
	}
	c.goodbye()
	return nil
}

// unrecord gives back the image and deletes the record: from now on the container does not exist.
func (c *ctr) unrecord() error {
	if err := c.node.options.Images.Release(c.id); err != nil {
		return fmt.Errorf("remove container %s: %w", c.id, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.node.store.delete(c.id); err != nil {
		return fmt.Errorf("remove container %s: %w", c.id, err)
	}
	c.removed = true
	return nil
}

// goodbye takes a container without a record from the registry and tells everyone.
func (c *ctr) goodbye() {
	n := c.node
	c.forgetExecs()
	name := c.snapshot().Name
	n.mu.Lock()
	delete(n.containers, c.id)
	delete(n.names, name)
	n.mu.Unlock()
	c.emit(events.ActionDestroy, nil)
	c.mu.Lock()
	c.wake(true)
	c.endAttachments()
	c.mu.Unlock()
	close(c.gone)
}

// namePattern is docker's for names of containers, except that one letter is enough.
var namePattern = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]*$`) })

// ContainerRename implements dockerapi.Backend.
func (n *Node) ContainerRename(_ context.Context, name, to string) error {
	c, err := n.find(name)
	if err != nil {
		return err
	}
	c.op.Lock()
	defer c.op.Unlock()
	c.mu.Lock()
	old, removing := c.rec.Name, c.removing
	c.mu.Unlock()
	if removing {
		return notFound("No such container: %s", name)
	}
	to = strings.TrimPrefix(to, "/")
	if to == old {
		return invalid("Renaming a container with the same name as its current name")
	}
	if err := n.reserve(to, c.id); err != nil {
		return err
	}
	err = c.change(func(r *record) { r.Name = to })
	n.mu.Lock()
	if err != nil {
		delete(n.names, to)
	} else {
		delete(n.names, old)
	}
	n.mu.Unlock()
	if err != nil {
		c.mu.Lock()
		c.rec.Name = old
		c.mu.Unlock()
		return err
	}
	if n.networks != nil {
		if err := n.networks.Rename(c.id, to); err != nil {
			n.options.Log.Error("rename container on its networks", "container", c.id, "err", err)
		}
	}
	c.emit(events.ActionRename, map[string]string{"oldName": "/" + old})
	return nil
}

// ContainerResize implements dockerapi.Backend.
func (n *Node) ContainerResize(ctx context.Context, name string, height, width uint) error {
	c, err := n.find(name)
	if err != nil {
		return err
	}
	r, err := c.current()
	if err != nil {
		return err
	}
	w, h, err := terminalSize(width, height)
	if err != nil {
		return err
	}
	return r.vm.Resize(ctx, c.process(), w, h)
}

// terminalSize checks a size that a client sent.
func terminalSize(width, height uint) (uint16, uint16, error) {
	if width > 0xffff || height > 0xffff {
		return 0, 0, invalid("terminal size %dx%d is out of range", width, height)
	}
	return uint16(width), uint16(height), nil
}
