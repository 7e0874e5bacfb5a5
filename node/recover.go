package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/moby/moby/api/types/container"

	"github.com/cradlevm/cradle/sandbox"
	"github.com/cradlevm/cradle/vm"
)

// recover takes up what an earlier daemon left. A container whose VM still runs goes on; of one whose VM has gone
// the rest is removed; a start that was cut short is undone.
func (n *Node) recover(ctx context.Context) error {
	records, err := n.store.all()
	if err != nil {
		return err
	}
	for _, rec := range records {
		c := newCtr(n, rec)
		n.containers[rec.ID] = c
		n.names[rec.Name] = rec.ID
		if rec.Sandbox != nil {
			n.uids[rec.Sandbox.VM.UID] = struct{}{}
		}
	}
	for _, c := range n.all() {
		n.recoverContainer(ctx, c)
	}
	return n.sweep()
}

func (n *Node) recoverContainer(ctx context.Context, c *ctr) {
	rec := c.snapshot()
	log := n.options.Log.With("container", c.id)
	if rec.Sandbox == nil {
		if up(rec.Status) {
			n.lost(c, rec)
		}
		return
	}
	machine, err := sandbox.Attach(ctx, n.options.Driver, *rec.Sandbox)
	r := &run{vm: machine, ended: make(chan struct{}), torn: make(chan struct{})}
	switch {
	case err == nil && up(rec.Status):
		c.mu.Lock()
		c.run = r
		c.mu.Unlock()
		n.running.Add(1)
		go c.follow(r)
		log.Info("found running container again")
		return
	case err == nil: // its start or its end was cut short
		log.Info("end virtual machine of a container that does not run")
		if err := machine.Kill(); err != nil {
			log.Error("end virtual machine", "err", err)
		}
	case !errors.Is(err, vm.ErrExited):
		log.Error("find virtual machine", "err", err)
	}
	c.clear(r, rec)
	if up(rec.Status) {
		n.lost(c, rec)
	} else if rec.HostConfig.AutoRemove && rec.Status == container.StateExited {
		n.removeLost(c)
	}
}

// lost records the end of a container whose VM went while no daemon was there.
func (n *Node) lost(c *ctr, rec record) {
	err := c.change(func(r *record) {
		r.Status, r.ExitCode, r.Finished = container.StateExited, 137, n.started
		r.Error = "its virtual machine ended while no daemon was running"
	})
	if err != nil {
		n.options.Log.Error("record lost container", "container", c.id, "err", err)
	}
	c.mu.Lock()
	again := c.restartDue()
	rec = c.rec
	c.mu.Unlock()
	switch {
	case rec.HostConfig.AutoRemove:
		n.removeLost(c)
	case again:
		n.running.Add(1)
		go c.restartLater(rec)
	}
}

func (n *Node) removeLost(c *ctr) {
	c.op.Lock()
	defer c.op.Unlock()
	if err := c.remove(); err != nil {
		n.options.Log.Error("remove container", "container", c.id, "err", err)
	}
}

// sweep removes directories that no container owns: what a crash left between making a thing and recording it.
func (n *Node) sweep() error {
	owned := map[string]bool{}
	for _, c := range n.all() {
		owned[c.id] = true
		if rec := c.snapshot(); rec.Sandbox != nil {
			owned[filepath.Base(rec.Sandbox.VM.Dir)] = true
		}
	}
	for _, parent := range []string{filepath.Join(n.options.Root, "containers"), filepath.Join(n.options.Run, "s")} {
		entries, err := os.ReadDir(parent)
		if err != nil {
			return fmt.Errorf("sweep: %w", err)
		}
		for _, e := range entries {
			if owned[e.Name()] {
				continue
			}
			n.options.Log.Info("remove what no container owns", "path", filepath.Join(parent, e.Name()))
			if err := os.RemoveAll(filepath.Join(parent, e.Name())); err != nil {
				return fmt.Errorf("sweep: %w", err)
			}
		}
	}
	return nil
}
