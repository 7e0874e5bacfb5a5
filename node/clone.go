package node

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"sync"
	"time"

	"github.com/moby/moby/api/types/container"

	"github.com/cradlevm/cradle/volume"
)

// originLabel on a container names, by its id, the one that it was cloned from.
const originLabel = "dev.cradle.cloned-from"

// maxClones bounds one call: each is a VM.
const maxClones = 256

// CloneOptions say what is made of a container.
type CloneOptions struct {
	Count int    // 1 to maxClones
	Name  string // of the clone; of several, -1, -2, … are added. Empty: names of the daemon's choosing
}

// CloneReport tells what was made.
type CloneReport struct {
	IDs        []string
	PauseNanos int64 // for how long the source's processes stood still
}

// ContainerClone forks a running container: others that go on from where it is, with copies of its memory and its disk
// and with identities of their own. All come to run or none is left. It goes on when its client hangs up.
func (n *Node) ContainerClone(ctx context.Context, name string, o CloneOptions) (report CloneReport, err error) {
	c, err := n.find(name)
	if err != nil {
		return report, err
	}
	if o.Count < 1 || o.Count > maxClones {
		return report, invalid("%d clones: between 1 and %d can be made at once", o.Count, maxClones)
	}
	if _, _, err := c.savable(); err != nil { // before anything is made
		return report, err
	}
	if err := n.enter(); err != nil {
		return report, err
	}
	defer n.running.Done()
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancel(nil)
	defer context.AfterFunc(n.ctx, func() { cancel(errClosing) })()
	clones, err := n.addClones(c.snapshot(), o)
	defer func() {
		for _, clone := range clones {
			if err != nil {
				clone.undone()
			}
			clone.op.Unlock()
		}
	}()
	if err != nil {
		return report, err
	}
	first := filepath.Join(clones[0].dir(), scratchName)
	from, pause, err := c.fork(ctx, first)
	if err != nil {
		return report, err
	}
	defer from.saved.Close()
	if err := n.goOnAll(ctx, clones, from, first); err != nil {
		return report, err
	}
	if err := n.keep(clones); err != nil {
		return report, err
	}
	for _, clone := range clones {
		report.IDs = append(report.IDs, clone.id)
	}
	report.PauseNanos = int64(pause)
	return report, nil
}

// addClones registers containers that are configured as the source is. Their op is held, also of those returned with an
// error.
func (n *Node) addClones(source record, o CloneOptions) (clones []*ctr, err error) {
	for i := range o.Count {
		name := o.Name
		if name != "" && o.Count > 1 {
			name = fmt.Sprintf("%s-%d", o.Name, i+1)
		}
		clone, err := n.addSaved(source, name, map[string]string{originLabel: source.ID})
		if err != nil {
			return clones, err
		}
		clones = append(clones, clone)
	}
	return clones, nil
}

// keep says that clones of one source, all of which run, are there: until then, a daemon that finds one removes it.
func (n *Node) keep(clones []*ctr) error {
	var ids []string
	for _, c := range clones {
		c.mu.Lock()
		c.rec.Cloning = false // first: whatever else is saved of it from now on does not say otherwise again
		c.mu.Unlock()
		ids = append(ids, c.id)
	}
	return n.store.endCloning(clones[0].snapshot(), ids)
}

// addSaved registers a container that is to go on from a saved one, configured as source is, with these labels more. Its
// op is held. Until keep, a daemon that finds it removes it.
func (n *Node) addSaved(source record, name string, labels map[string]string) (*ctr, error) {
	rec := record{
		ID: newID(), Created: time.Now(), ImageID: source.ImageID, Config: source.Config, HostConfig: source.HostConfig,
		Platform: source.Platform, Dir: source.Dir, Status: container.StateCreated, Cloning: true, Links: ownLinks(source.Links),
		Policy: source.Policy,
	}
	rec.HostConfig.PortBindings = anyHostPort(source.HostConfig.PortBindings)
	rec.Config.Hostname = rec.ID[:12] // an identity of its own, whatever name the source was given
	rec.Config.Labels = maps.Clone(source.Config.Labels)
	if rec.Config.Labels == nil {
		rec.Config.Labels = map[string]string{}
	}
	maps.Copy(rec.Config.Labels, labels)
	if err := n.add(name, rec); err != nil {
		return nil, err
	}
	c, err := n.find(rec.ID)
	if err != nil {
		return nil, err // it was removed at once
	}
	c.op.Lock()
	return c, nil
}

// fork saves the container, which goes on, and copies its disk to scratch.
func (c *ctr) fork(ctx context.Context, scratch string) (*savedRun, time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	c.op.Lock()
	defer c.op.Unlock()
	r, rec, err := c.savable()
	if err != nil {
		return nil, 0, err
	}
	return c.checkpoint(ctx, r, rec, func(ctx context.Context) error {
		return volume.Copy(ctx, filepath.Join(c.dir(), scratchName), scratch)
	})
}

// goOnAll starts all clones at once; the first one has its disk. Of several the state is restored but once, and copied, where that can be.
func (n *Node) goOnAll(ctx context.Context, clones []*ctr, from *savedRun, disk string) error {
	lacking := clones[1:]
	if len(clones) > 1 && n.raises(ctx) {
		limited, cancel := context.WithTimeout(ctx, startLimit)
		raised, held, err := n.raise(limited, clones[0].snapshot(), from, disk, false)
		cancel()
		if err != nil {
			n.options.Log.Debug("clones are restored", "reason", err)
		} else {
			defer func() {
				if err := errors.Join(raised.close(), held.Close()); err != nil {
					n.options.Log.Error("end frozen virtual machine", "err", err)
				}
			}()
			// What the guest had not written yet it may have meanwhile: its copies take it for written.
			from, disk, lacking = raised, fmt.Sprintf("/proc/self/fd/%d", held.Fd()), clones
		}
	}
	for _, clone := range lacking {
		if err := clone.copyScratch(ctx, disk); err != nil {
			return err
		}
	}
	starting, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	errs := make([]error, len(clones))
	var all sync.WaitGroup
	for i, clone := range clones {
		all.Go(func() {
			if errs[i] = clone.goOnFrom(starting, from, revival{}); errs[i] != nil {
				stop(errs[i]) // none of them is to be left, so the rest need not come to run
			}
		})
	}
	all.Wait()
	switch {
	case errors.Join(errs...) == nil:
		return nil
	case len(clones) == 1:
		return errs[0]
	}
	return fmt.Errorf("none of the %d clones is left, because one did not come to run: %w", len(clones), context.Cause(starting))
}

// goOnFrom starts a container that has its copy of the disk from what was saved, in its turn where that is restored. op is held.
func (c *ctr) goOnFrom(ctx context.Context, from *savedRun, how revival) (err error) {
	if c.node.pool != nil {
		defer c.node.pool.Begin()()
	}
	steps := newPhases()
	if from.frozen == nil { // a copy computes little: with those it would only take longer
		leave, err := c.node.gate.enter(ctx)
		if err != nil {
			return err
		}
		defer leave()
	}
	steps.done("queue")
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	var undo undoStack
	defer func() {
		if err != nil {
			undo.run(c.node.options.Log.With("container", c.id))
		}
	}()
	machine, err := c.revive(ctx, from, how, steps, &undo)
	if err != nil {
		return err
	}
	return c.started(machine, nil, 0, steps, &undo)
}

// undone removes a clone: of several that were to come to run, one has not. op is held.
func (c *ctr) undone() {
	log := c.node.options.Log.With("container", c.id)
	c.mu.Lock()
	r := c.run
	c.removing = true
	c.mu.Unlock()
	if r != nil {
		if err := r.vm.Kill(); err != nil {
			log.Error("end virtual machine", "err", err)
		}
		if err := c.await(context.Background(), r.torn, teardownLimit+drainLimit); err != nil {
			log.Error("end virtual machine", "err", err)
			return
		}
	}
	if err := c.remove(); err != nil {
		log.Error("remove clone", "err", err)
	}
}
