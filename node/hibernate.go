package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/moby/moby/api/types/events"

	"github.com/cradlevm/cradle/sandbox"
	"github.com/cradlevm/cradle/snapshot"
	"github.com/cradlevm/cradle/volume"
)

// A hibernated container lies in its directory: its disk where it always is, and beside it
//
//	state/    the machine's memory and devices, and the manifest
//
// The record says whether that is so: it is written when state is complete, before the VM is ended; and again when the
// container runs once more, before state is removed. The restored VM runs on a copy of the disk, the one that was saved
// being put aside in state until then, so that a restore that fails, or is cut short, can be tried again.

func (c *ctr) stateDir() string { return filepath.Join(c.dir(), "state") }

// ContainerSaveState hibernates a running container: its processes, with the machine they run in, are put on disk, and
// the VM ends. To docker's clients the container has exited then, with 137. It goes on when its client hangs up.
func (n *Node) ContainerSaveState(ctx context.Context, name string) error {
	c, err := n.find(name)
	if err != nil {
		return err
	}
	if err := n.enter(); err != nil {
		return err
	}
	defer n.running.Done()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), startLimit)
	defer cancel()
	defer context.AfterFunc(n.ctx, cancel)()
	c.op.Lock()
	defer c.op.Unlock()
	r, rec, err := c.savable()
	if err != nil {
		return err
	}
	if rec.Dir != "" {
		return unsupported("hibernating a container that runs from a summoned directory is not supported")
	}
	release, err := c.exclusive(r, "hibernated")
	if err != nil {
		return err
	}
	defer release()
	c.still.mu.Lock()
	err = c.hibernate(ctx, r, rec)
	c.still.mu.Unlock()
	if err != nil {
		return fmt.Errorf("save state of container %s: %w", c.id, err)
	}
	c.emit(events.ActionCheckpoint, nil)
	if err := r.vm.Kill(); err != nil {
		return err
	}
	if err := c.await(ctx, r.torn, teardownLimit+drainLimit); err != nil {
		return fmt.Errorf("end virtual machine of container %s: %w", c.id, err)
	}
	return nil
}

// hibernate stops the VM's processors and saves it; on error the container goes on. c.still.mu is held.
func (c *ctr) hibernate(ctx context.Context, r *run, rec record) (err error) {
	n := c.node
	draft, err := snapshot.NewDraft(c.dir())
	if err != nil {
		return err
	}
	defer draft.Discard()
	defer func() {
		if err == nil {
			return
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callLimit)
		defer cancel()
		if e := r.vm.Resume(ctx); e != nil && !errors.Is(e, sandbox.ErrGone) {
			err = errors.Join(err, e)
		}
		c.mendClock(ctx, r.vm)
		err = errors.Join(err, c.goOn(ctx, r))
	}()
	if err := r.vm.Freeze(ctx, c.id, true); err != nil {
		return ending(c, err)
	}
	// From now on the disk stays as it is in what is saved.
	if err := r.vm.Pause(ctx); err != nil {
		return ending(c, err)
	}
	saved, _, err := r.vm.Checkpoint(ctx, nil, func(context.Context) error { return nil })
	if err != nil {
		return ending(c, err)
	}
	defer saved.Close()
	from := &savedRun{saved: saved, config: *rec.Sandbox, guest: c.id}
	m, err := n.write(ctx, from, draft, filepath.Join(c.dir(), scratchName))
	if err != nil {
		return err
	}
	if err := draft.Publish(n.key, m, c.stateDir()); err != nil {
		return err
	}
	err = c.change(func(r *record) { r.Hibernated = true })
	if err != nil { // what memory says must be what the next daemon finds
		err = errors.Join(err, c.change(func(r *record) { r.Hibernated = false }))
		c.dropState()
	}
	return err
}

// wakeHibernated restores the VM of a hibernated container, which then goes on. What undoes it is pushed.
func (c *ctr) wakeHibernated(ctx context.Context, rec record, steps *phases, undo *undoStack) (*sandbox.Sandbox, error) {
	machine, err := c.wakeState(ctx, steps, undo)
	if err != nil {
		return nil, fmt.Errorf("restore state of container %s: %w", rec.ID, err)
	}
	return machine, nil
}

func (c *ctr) wakeState(ctx context.Context, steps *phases, undo *undoStack) (*sandbox.Sandbox, error) {
	n, dir := c.node, c.stateDir()
	disk, aside := filepath.Join(c.dir(), scratchName), filepath.Join(dir, scratchName)
	from, err := n.loadState(ctx, dir, disk)
	if err != nil {
		return nil, fmt.Errorf("%w (`cradle restore-state --discard` gives its processes up, and keeps its disk)", err)
	}
	defer from.saved.Close()
	steps.done("load")
	if err := os.Rename(disk, aside); err != nil {
		return nil, err
	}
	undo.push("disk", func() error { return os.Rename(aside, disk) })
	if err := volume.Copy(ctx, aside, disk); err != nil {
		return nil, err
	}
	lasting := make(chan error, 1) // the copy must outlive a power failure before the state goes, which has the disk as it was
	go func() { lasting <- volume.Sync(disk) }()
	machine, err := c.revive(ctx, from, revival{same: true}, steps, undo)
	return machine, errors.Join(err, <-lasting)
}

// loadState reads the state of a hibernated container.
func (n *Node) loadState(ctx context.Context, dir, disk string) (*savedRun, error) {
	var m savedManifest
	if err := n.key.Verify(dir, &m); err != nil {
		return nil, conflict("its saved state is damaged: %v", err)
	}
	return n.load(ctx, m, dir, disk)
}

// dropState removes the saved state of a container that is not hibernated any more.
func (c *ctr) dropState() {
	if err := os.RemoveAll(c.stateDir()); err != nil {
		c.node.options.Log.Error("remove saved state", "container", c.id, "err", err)
	}
}

// recoverState finishes what an earlier daemon was doing with the container's state when it ended.
func (c *ctr) recoverState(rec record) {
	log := c.node.options.Log.With("container", c.id)
	if err := snapshot.Sweep(c.dir()); err != nil {
		log.Error("sweep", "err", err)
	}
	if !rec.Hibernated {
		c.dropState()
		return
	}
	disk, aside := filepath.Join(c.dir(), scratchName), filepath.Join(c.stateDir(), scratchName)
	if err := os.Rename(aside, disk); err != nil && !errors.Is(err, os.ErrNotExist) { // a restore was cut short
		log.Error("put the disk back", "err", err)
	}
}

// ContainerDiscardState makes a hibernated container one that has exited: its processes are lost, its disk is as after
// a crash. One that is removed at its end is removed.
func (n *Node) ContainerDiscardState(_ context.Context, name string) error {
	c, err := n.find(name)
	if err != nil {
		return err
	}
	c.op.Lock()
	defer c.op.Unlock()
	if !c.snapshot().Hibernated {
		return conflict("container %s is not hibernated", c.id)
	}
	if err := c.change(func(r *record) { r.Hibernated = false }); err != nil {
		return err
	}
	c.dropState()
	if c.snapshot().HostConfig.AutoRemove { // what it was kept for has gone
		return c.remove()
	}
	return nil
}

// ContainerRestoreState starts a hibernated container, and no other.
func (n *Node) ContainerRestoreState(ctx context.Context, name string) error {
	c, err := n.find(name)
	if err != nil {
		return err
	}
	c.op.Lock()
	defer c.op.Unlock()
	if !c.snapshot().Hibernated {
		return conflict("container %s is not hibernated", c.id)
	}
	return c.start(context.WithoutCancel(ctx), 0)
}
