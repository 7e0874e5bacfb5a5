package node

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/moby/moby/api/types/container"

	"github.com/cradlevm/cradle/node/runspec"
	"github.com/cradlevm/cradle/sandbox"
)

// deskRest is how long the VM made for the files of a stopped container waits for more work: docker's cp alone makes
// two calls.
const deskRest = 3 * time.Second

// desk is a VM in which a container has been created and nothing of it runs: where the files of a stopped container
// are worked on. The host never mounts its disk, which a guest has written. c.op guards it.
type desk struct {
	vm    *sandbox.Sandbox
	rec   record
	timer *time.Timer
}

// withFiles calls do with the VM that has the container's files: its own, woken if paused, or a desk. A container that
// does not run can be neither started nor removed meanwhile.
func (c *ctr) withFiles(ctx context.Context, do func(context.Context, *sandbox.Sandbox) error) error {
	if r, err := c.current(); err == nil {
		if err := c.wakeUp(ctx, r); err != nil {
			return err
		}
		defer c.sleepAgain(r)
		return do(ctx, r.vm)
	}
	c.op.Lock()
	defer c.op.Unlock()
	c.mu.Lock()
	removing, r, running, stuck, hibernated := c.removing, c.run, up(c.rec.Status), c.stuck, c.rec.Hibernated
	c.mu.Unlock()
	switch {
	case hibernated: // another kernel than the saved one must not change its disk
		return conflict("container %s is hibernated: start it to reach its files", c.id)
	case removing:
		return notFound("No such container: %s", c.id)
	case stuck != nil:
		return stuck
	}
	if err := c.node.enter(); err != nil {
		return err
	}
	defer c.node.running.Done()
	if running { // it was started meanwhile, and goes on without the lock
		if err := c.wakeUp(ctx, r); err != nil {
			return err
		}
		defer c.sleepAgain(r)
		return do(ctx, r.vm)
	}
	if r != nil { // the last run's VM is still being taken down
		<-r.torn
	}
	d, err := c.openDesk(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(c.node.ctx, cancel)()
	err = do(ctx, d.vm)
	if errors.Is(err, sandbox.ErrGone) {
		c.closeDesk()
		return err
	}
	d.timer = time.AfterFunc(deskRest, func() {
		c.op.Lock()
		defer c.op.Unlock()
		if c.desk == d && d.timer != nil {
			c.closeDesk()
		}
	})
	return err
}

// openDesk returns the desk there is or boots one. op is held.
func (c *ctr) openDesk(ctx context.Context) (d *desk, err error) {
	if d := c.desk; d != nil {
		if d.timer != nil {
			d.timer.Stop()
			d.timer = nil
		}
		select {
		case <-d.vm.Done():
			c.closeDesk()
		default:
			return d, nil
		}
	}
	n, rec := c.node, c.snapshot()
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	var undo undoStack
	defer func() {
		if err != nil {
			undo.run(n.options.Log.With("container", c.id))
		}
	}()
	request, err := runspec.Create(rec.spec(), n.settings)
	if err != nil {
		return nil, err
	}
	p, err := c.prepare(ctx, rec, request)
	if err != nil {
		return nil, err
	}
	settled, err := c.addMounts(ctx, p)
	if err != nil {
		return nil, err
	}
	defer settled()
	// A daemon that finds this VM recorded takes it for a start that was cut short, and ends it.
	machine, err := c.bringUp(ctx, p, &phases{}, &undo)
	if err != nil {
		return nil, err
	}
	if err := machine.Create(ctx, p.request); err != nil {
		return nil, fmt.Errorf("open the files of container %s: %w", c.id, err)
	}
	c.desk = &desk{vm: machine, rec: c.snapshot()}
	return c.desk, nil
}

// closeDesk flushes the container's disk and ends the desk's VM, if there is one. op is held.
func (c *ctr) closeDesk() {
	d := c.desk
	if d == nil {
		return
	}
	c.desk = nil
	if d.timer != nil {
		d.timer.Stop()
	}
	log := c.node.options.Log.With("container", c.id)
	ctx, cancel := context.WithTimeout(context.Background(), teardownLimit)
	defer cancel()
	if err := d.vm.Delete(ctx, c.process()); err != nil && !errors.Is(err, sandbox.ErrGone) {
		log.Warn("flush container's disk", "err", err)
	}
	if err := d.vm.Stop(ctx); err != nil {
		log.Error("end virtual machine", "err", err)
	}
	if err := c.node.freeMachine(d.rec.Sandbox.VM); err != nil {
		log.Error("give back what a virtual machine had", "err", err)
	}
	if err := c.change(func(r *record) { r.Sandbox, r.Booting = nil, false }); err != nil {
		log.Error("record end of virtual machine", "err", err)
	}
}

// closeDesks ends the desks when the daemon ends. One in use ends by itself: its work has been cut short.
func (n *Node) closeDesks() {
	for _, c := range n.all() {
		c.op.Lock()
		c.closeDesk()
		c.op.Unlock()
	}
}

// stillness is what keeps a paused container's processes from running while its VM has to: for its files. A paused
// container is frozen inside of its VM and the VM stands still, too; work on the files wakes the VM, not the
// container.
type stillness struct {
	mu    sync.Mutex
	users int
}

// pauseRun freezes the container and stops its VM's processors.
func (c *ctr) pauseRun(ctx context.Context, r *run) error {
	if err := r.vm.Freeze(ctx, c.id, true); err != nil {
		return err
	}
	c.still.mu.Lock()
	defer c.still.mu.Unlock()
	if c.still.users > 0 {
		return c.changeIfUp(container.StatePaused) // whoever works on the files stops the VM
	}
	if err := r.vm.Pause(ctx); err != nil {
		return errors.Join(err, r.vm.Freeze(ctx, c.id, false))
	}
	return c.changeIfUp(container.StatePaused)
}

// resumeRun undoes pauseRun.
func (c *ctr) resumeRun(ctx context.Context, r *run) error {
	c.still.mu.Lock()
	defer c.still.mu.Unlock()
	if err := r.vm.Resume(ctx); err != nil {
		return err
	}
	c.mendClock(ctx, r.vm)
	if err := r.vm.Freeze(ctx, c.id, false); err != nil {
		return err
	}
	return c.changeIfUp(container.StateRunning)
}

// mendClock sets the clock of a machine that has stood still. A container with a wrong one is better than none.
func (c *ctr) mendClock(ctx context.Context, machine *sandbox.Sandbox) {
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	if err := machine.SetClock(ctx); err != nil && !errors.Is(err, sandbox.ErrGone) && c.node.ctx.Err() == nil {
		c.node.options.Log.Warn("set the clock of a machine that stood still", "container", c.id, "err", err)
	}
}

// wakeUp makes the VM of a paused container run until sleepAgain.
func (c *ctr) wakeUp(ctx context.Context, r *run) error {
	c.still.mu.Lock()
	defer c.still.mu.Unlock()
	if c.still.users == 0 && c.snapshot().Status == container.StatePaused {
		if err := r.vm.Resume(ctx); err != nil {
			return err
		}
	}
	c.still.users++
	return nil
}

func (c *ctr) sleepAgain(r *run) {
	c.still.mu.Lock()
	defer c.still.mu.Unlock()
	if c.still.users--; c.still.users > 0 || c.snapshot().Status != container.StatePaused {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), teardownLimit)
	defer cancel()
	if err := r.vm.Pause(ctx); err != nil {
		c.node.options.Log.Error("pause virtual machine again", "container", c.id, "err", err)
	}
}
