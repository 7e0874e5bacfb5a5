package node

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"golang.org/x/sys/unix"

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
	r, err := c.current()
	if err != nil {
		return dockerapi.ErrNotModified
	}
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
	if err := c.change(func(r *record) { r.StoppedByUser = true }); err != nil {
		return err
	}
	if rec.Status == container.StatePaused {
		if err := c.unpause(ctx, r); err != nil {
			return err
		}
	}
	if err := r.vm.Signal(ctx, c.process(), sig, false); err != nil && !errors.Is(err, sandbox.ErrGone) {
		c.node.options.Log.Warn("send stop signal", "container", c.id, "err", err)
	}
	if limit < 0 { // docker: wait for ever
		select {
		case <-r.ended:
		case <-ctx.Done():
			return ctx.Err()
		}
	} else if err := waitFor(ctx, r.ended, limit); errors.Is(err, errTimeout) {
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

// kill ends the container with SIGKILL and, should even that not do, takes its VM away.
func (c *ctr) kill(ctx context.Context, r *run) error {
	if err := r.vm.Signal(ctx, c.process(), int(unix.SIGKILL), false); err != nil && !errors.Is(err, sandbox.ErrGone) {
		c.node.options.Log.Warn("send SIGKILL", "container", c.id, "err", err)
	}
	err := waitFor(ctx, r.ended, killLimit)
	if errors.Is(err, errTimeout) {
		c.node.options.Log.Warn("container outlives SIGKILL, ending its virtual machine", "container", c.id)
		if err := r.vm.Kill(); err != nil {
			return err
		}
		err = waitFor(ctx, r.ended, killLimit)
	}
	if err != nil {
		return fmt.Errorf("kill container %s: %w", c.id, err)
	}
	return nil
}

// ContainerRestart implements dockerapi.Backend.
func (n *Node) ContainerRestart(ctx context.Context, name, signal string, timeout *int) error {
	c, err := n.find(name)
	if err != nil {
		return err
	}
	if c.snapshot().HostConfig.AutoRemove && c.isUp() {
		return unsupported("restart of a container that is removed when it ends (--rm) is not supported")
	}
	ctx = context.WithoutCancel(ctx)
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
		return err
	}
	sig, err := parseSignal(signal, int(unix.SIGKILL))
	if err != nil {
		return err
	}
	r, err := c.current()
	if err != nil {
		return conflict("cannot kill container: %s: container %s is not running", name, c.id)
	}
	if c.snapshot().Status == container.StatePaused && sig == int(unix.SIGKILL) {
		if err := c.unpause(ctx, r); err != nil {
			return err
		}
	}
	if sig == int(unix.SIGKILL) || sig == int(unix.SIGTERM) {
		if err := c.change(func(r *record) { r.StoppedByUser = true }); err != nil {
			return err
		}
	}
	if sig == int(unix.SIGKILL) {
		err = c.kill(ctx, r)
	} else if err = r.vm.Signal(ctx, c.process(), sig, false); errors.Is(err, sandbox.ErrGone) {
		err = nil
	}
	if err != nil {
		return err
	}
	c.emit(events.ActionKill, map[string]string{"signal": strconv.Itoa(sig)})
	return nil
}

// ContainerPause implements dockerapi.Backend: the VM's processors stop.
func (n *Node) ContainerPause(ctx context.Context, name string) error {
	c, err := n.find(name)
	if err != nil {
		return err
	}
	r, err := c.current()
	if err != nil {
		return err
	}
	if c.snapshot().Status == container.StatePaused {
		return conflict("container %s is already paused", c.id)
	}
	if err := r.vm.Pause(ctx); err != nil {
		return fmt.Errorf("pause container %s: %w", c.id, err)
	}
	if err := c.changeIfUp(container.StatePaused); err != nil {
		return err
	}
	c.emit(events.ActionPause, nil)
	return nil
}

// ContainerUnpause implements dockerapi.Backend.
func (n *Node) ContainerUnpause(ctx context.Context, name string) error {
	c, err := n.find(name)
	if err != nil {
		return err
	}
	r, err := c.current()
	if err != nil {
		return err
	}
	if c.snapshot().Status != container.StatePaused {
		return conflict("container %s is not paused", c.id)
	}
	return c.unpause(ctx, r)
}

func (c *ctr) unpause(ctx context.Context, r *run) error {
	if err := r.vm.Resume(ctx); err != nil {
		return fmt.Errorf("unpause container %s: %w", c.id, err)
	}
	if err := c.changeIfUp(container.StateRunning); err != nil {
		return err
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

// ContainerRemove implements dockerapi.Backend. Anonymous volumes live on the container's disk and go with it.
func (n *Node) ContainerRemove(ctx context.Context, name string, force, _ bool) error {
	c, err := n.find(name)
	if err != nil {
		return err
	}
	if !force && c.isUp() {
		return c.removeRunning()
	}
	c.mu.Lock()
	if c.removing {
		c.mu.Unlock()
		if !force {
			return conflict("removal of container %s is already in progress", c.id)
		}
		return waitFor(ctx, c.gone, time.Minute)
	}
	c.mu.Unlock()
	c.op.Lock()
	defer c.op.Unlock()
	c.mu.Lock()
	r := c.run
	if up(c.rec.Status) && !force {
		c.mu.Unlock()
		return c.removeRunning()
	}
	c.removing = true
	c.mu.Unlock()
	ctx = context.WithoutCancel(ctx)
	if r != nil {
		if c.isUp() {
			// The container goes for good: its VM needs no polite end.
			if err := r.vm.Kill(); err != nil {
				return err
			}
		}
		if err := waitFor(ctx, r.torn, teardownLimit+killLimit); err != nil {
			return fmt.Errorf("remove container %s: end its virtual machine: %w", c.id, err)
		}
	}
	return c.remove()
}

func (c *ctr) removeRunning() error {
	rec := c.snapshot()
	state := "running"
	if rec.Status == container.StatePaused {
		state = "paused"
	}
	return conflict("cannot remove container %q: container is %s: stop the container before removing or force remove", "/"+rec.Name, state)
}

// remove deletes a container that has no VM. Idempotent; op is held. The record goes last: what is left after a
// crash is a container that can be removed again.
func (c *ctr) remove() error {
	c.mu.Lock()
	c.removing = true
	c.mu.Unlock()
	select {
	case <-c.gone:
		return nil
	default:
	}
	c.closeLog()
	if err := c.removeFiles(); err != nil {
		return err
	}
	n := c.node
	if err := n.options.Images.Release(c.id); err != nil {
		return fmt.Errorf("remove container %s: %w", c.id, err)
	}
	if err := n.store.delete(c.id); err != nil {
		return fmt.Errorf("remove container %s: %w", c.id, err)
	}
	c.emit(events.ActionDestroy, nil)
	n.forgetExecs(c)
	n.mu.Lock()
	delete(n.containers, c.id)
	delete(n.names, c.snapshot().Name)
	n.mu.Unlock()
	c.mu.Lock()
	c.wake(true)
	c.endAttachments()
	c.mu.Unlock()
	close(c.gone)
	return nil
}

// namePattern is docker's for names of containers, except that one letter is enough.
var namePattern = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]*$`)

// ContainerRename implements dockerapi.Backend.
func (n *Node) ContainerRename(_ context.Context, name, to string) error {
	c, err := n.find(name)
	if err != nil {
		return err
	}
	c.op.Lock()
	defer c.op.Unlock()
	old := c.snapshot().Name
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
