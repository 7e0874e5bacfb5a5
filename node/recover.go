package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/moby/moby/api/types/container"

	"github.com/cradlevm/cradle/api"
	"github.com/cradlevm/cradle/image"
	"github.com/cradlevm/cradle/sandbox"
	"github.com/cradlevm/cradle/vm"
)

// attachLimit bounds taking a running VM over; the monitor answers at once or never.
const attachLimit = 30 * time.Second

// recover takes up what an earlier daemon left. A container whose VM still runs goes on; of one whose VM has gone
// the rest is removed; a start that was cut short is undone, an end or a removal that was is finished.
func (n *Node) recover(ctx context.Context) error {
	records, err := n.store.all()
	if err != nil {
		return err
	}
	for _, rec := range records {
		rec.Removing = rec.Removing || rec.Cloning
		c := newCtr(n, rec)
		c.removing = rec.Removing
		n.containers[rec.ID] = c
		n.names[rec.Name] = rec.ID
		if rec.Sandbox != nil {
			n.uids[rec.Sandbox.VM.UID]++
		}
		n.recoverLent(rec)
		c.loadExecs()
	}
	if err := n.scratch.Clean(); err != nil {
		return fmt.Errorf("sweep: %w", err)
	}
	if err := n.sweep(); err != nil {
		return err
	}
	if err := n.holdSnapshots(); err != nil {
		return err
	}
	n.forgetWarmOfGone() // an image may have gone with its last container
	n.openNetworks(ctx)
	if err := n.reconcileNetworks(ctx); err != nil { // before the pool, whose interfaces no record names
		n.options.Log.Error("reconcile networks", "err", err)
	}
	n.openPool(ctx) // after the sweep, which would take its directories; before the first container starts
	var sharers []*ctr
	for _, c := range n.all() {
		if c.snapshot().Within != nil {
			sharers = append(sharers, c)
		}
		if err := n.recoverContainer(ctx, c); err != nil {
			return err
		}
	}
	for _, c := range sharers {
		n.recoverSharer(c, c.snapshot())
	}
	if err := n.options.Images.Settle(); err != nil {
		n.options.Log.Error("remove images that were removed by force", "err", err)
	}
	return nil
}

// recoverContainer fails only when ctx ends: all is left as it was then.
func (n *Node) recoverContainer(ctx context.Context, c *ctr) error {
	rec := c.snapshot()
	if rec.Dir == "" && !rec.Removing {
		// An image that has gone is the next start's trouble.
		if err := n.options.Images.Borrow(rec.ImageID, rec.ID); err != nil && !errors.Is(err, image.ErrNotFound) {
			return fmt.Errorf("hold image of container %s: %w", rec.ID, err)
		}
	}
	c.recoverState(rec)
	if rec.Within != nil {
		return nil
	}
	if rec.Sandbox == nil {
		n.settle(c, false)
		return nil
	}
	machine, err := n.attach(ctx, rec)
	if err == nil || errors.Is(err, vm.ErrExited) {
		n.takeUp(c, rec, machine)
		return nil
	}
	if ctx.Err() != nil {
		return err
	}
	n.options.Log.Error("find virtual machine", "container", c.id, "err", err)
	c.stuck = fmt.Errorf("the virtual machine of container %s cannot be reached: %w", c.id, err)
	n.running.Add(1)
	go n.reach(c, rec)
	return nil
}

// A VM that cannot be reached is tried again after a while, which doubles up to a minute.
const (
	firstReach = time.Second
	maxReach   = time.Minute
)

// reach goes on looking for the VM of a container that is stuck, until it is found or has gone.
func (n *Node) reach(c *ctr, rec record) {
	defer n.running.Done()
	for pause := firstReach; sleep(n.ctx, pause); pause = min(2*pause, maxReach) {
		machine, err := n.attach(n.ctx, rec)
		if err == nil || errors.Is(err, vm.ErrExited) {
			n.takeUp(c, rec, machine)
			for _, s := range n.sharersOf(c.id) {
				n.recoverSharer(s, s.snapshot())
			}
			return
		}
		n.options.Log.Debug("find virtual machine", "container", c.id, "err", err)
	}
}

// takeUp goes on with a container whose VM has been found again, or is nil and has gone.
func (n *Node) takeUp(c *ctr, rec record, machine *sandbox.Sandbox) {
	if machine != nil && !rec.Booting && !rec.Removing && !rec.Hibernated {
		n.resume(c, machine)
		return
	}
	if machine != nil {
		n.options.Log.Info("end virtual machine of a start or removal that was cut short", "container", c.id)
		if err := machine.Kill(); err != nil {
			n.options.Log.Error("end virtual machine", "container", c.id, "err", err)
		}
	}
	c.clear(rec)
	n.settle(c, rec.Booting)
}

// attach takes the VM of a record over and makes it run or pause as the record says: what a crash cut short between
// the two was never promised to anyone.
func (n *Node) attach(ctx context.Context, rec record) (*sandbox.Sandbox, error) {
	ctx, cancel := context.WithTimeout(ctx, attachLimit)
	defer cancel()
	// The directory comes before the VM and goes after it, and neither is the same moment as the record's.
	if _, err := os.Stat(rec.Sandbox.VM.Dir); errors.Is(err, os.ErrNotExist) {
		return nil, vm.ErrExited
	}
	machine, err := sandbox.Attach(ctx, n.options.Driver, *rec.Sandbox)
	if err != nil {
		return nil, err
	}
	if rec.Hibernated { // it is about to be ended, and its disk is not to change
		return machine, nil
	}
	turn := machine.Resume
	if rec.Status == container.StatePaused {
		turn = machine.Pause
	}
	var answered *api.Error
	if err := turn(ctx); err != nil && !errors.As(err, &answered) {
		n.options.Log.Error("pause or resume virtual machine", "container", rec.ID, "err", err)
	}
	return machine, nil
}

// resume goes on with a run that an earlier daemon began: accompanies it or, when the container has ended, finishes
// its end.
func (n *Node) resume(c *ctr, machine *sandbox.Sandbox) {
	r := newRun(machine, nil)
	c.mu.Lock()
	c.run, c.stuck = r, nil
	r.owner = c.within
	rec := c.rec
	if up(rec.Status) {
		c.beginHealth()
	}
	c.mu.Unlock()
	n.running.Add(1)
	c.adoptExecs(r)
	if rec.Status == container.StateRunning { // a commit, or its being saved, may have been cut short, and left it standing still
		n.running.Add(1)
		go func() {
			defer n.running.Done()
			c.mendClock(n.ctx, machine)
			c.thaw(machine)
		}()
	}
	if up(rec.Status) {
		n.options.Log.Info("found running container again", "container", c.id)
		c.replug(machine, rec)
		n.running.Add(1)
		go func() {
			defer n.running.Done()
			c.mendNetworks()
		}()
		go c.follow(r)
		return
	}
	r.hurry()
	close(r.ended)
	go func() {
		defer n.running.Done()
		c.teardown(r, rec)
		c.afterwards(rec)
	}()
}

// replug connects a VM that has been found again to its networks, where these are in the daemon. Without them the container
// goes on: it may have work that needs none.
func (c *ctr) replug(machine *sandbox.Sandbox, rec record) {
	ctx, cancel := context.WithTimeout(c.node.ctx, attachLimit)
	defer cancel()
	if err := c.plug(ctx, machine, rec.Links); err != nil {
		c.node.options.Log.Error("container has lost its networks", "container", c.id, "err", err)
	}
}

// settle does what a container without a VM has coming when the daemon starts. cut says that a start was cut short. A
// container that is removed at its end and was never started stays: daemons come and go more often than docker's.
func (n *Node) settle(c *ctr, cut bool) {
	c.loseExecs()
	if up(c.snapshot().Status) {
		err := c.change(func(r *record) {
			r.ExitCode, r.Finished = 137, n.started
			if !r.Hibernated {
				r.Error = "its virtual machine ended while no daemon was running"
			}
			c.setEnded()
		})
		if err != nil {
			n.options.Log.Error("record lost container", "container", c.id, "err", err)
		}
	}
	rec := c.snapshot()
	switch {
	case rec.Removing, rec.HostConfig.AutoRemove && !rec.Hibernated && (rec.Status == container.StateExited || cut):
		c.op.Lock()
		defer c.op.Unlock()
		if err := c.remove(); err != nil {
			n.options.Log.Error("remove container", "container", c.id, "err", err)
		}
	case rec.Status == container.StateRestarting:
		n.running.Add(1)
		go c.restartLater(rec)
	}
}

// sweep removes directories that no record names, and ends the VMs in them: what a crash left between making a thing and
// recording it, and what the pool had ready.
func (n *Node) sweep() error {
	owned := map[string]bool{}
	for _, c := range n.all() {
		owned[c.id] = true
		if rec := c.snapshot(); rec.Sandbox != nil {
			owned[filepath.Base(rec.Sandbox.VM.Dir)] = true
		}
	}
	machines := filepath.Join(n.options.Run, "s")
	for _, parent := range []string{filepath.Join(n.options.Root, "containers"), machines, n.readyDir()} {
		entries, err := os.ReadDir(parent)
		if err != nil {
			return fmt.Errorf("sweep: %w", err)
		}
		for _, e := range entries {
			if owned[e.Name()] {
				continue
			}
			n.options.Log.Info("remove what no container owns", "path", filepath.Join(parent, e.Name()))
			if parent == machines { // the pool's, whose VMs no record names
				if err := n.options.Driver.End(filepath.Join(parent, e.Name())); err != nil {
					n.options.Log.Error("end virtual machine", "dir", e.Name(), "err", err)
					continue
				}
			}
			if err := os.RemoveAll(filepath.Join(parent, e.Name())); err != nil {
				return fmt.Errorf("sweep: %w", err)
			}
		}
	}
	return nil
}
