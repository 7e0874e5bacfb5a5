package pool

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"github.com/cradlevm/cradle/api/wire"
	"github.com/cradlevm/cradle/sandbox"
	"github.com/cradlevm/cradle/vm"
)

// parent is a frozen sandbox, warm, that others are copies of (vm.Freezer): what is ready, and what nobody has waited for. Restoring
// one costs hundreds of milliseconds of a processor, and tens of megabytes, for the guest's code to be translated once more; a copy
// shares all of that with its parent. Nothing of a tenant's ever runs in a parent.
type parent struct {
	box      *sandbox.Sandbox
	config   sandbox.Config
	source   vm.Source
	prepared *Preparation // nil for one without; then scratch is the path of its writable disk
	scratch  string
	private  int64 // bytes of the host's memory that it has for itself
	late     int   // how many copies in a row have not answered in time; p.mu guards it
}

// maxLate is how many copies in a row may not answer in time before that is no more believed to be for the machine's load.
const maxLate = 3

// warmings is how often a parent is warmed, in both ways in turns. What is translated then, no copy has to.
const warmings = 8

// forking tells whether what is ready of a size is to be copied rather than restored.
func (p *Pool) forking(c *class) bool { return p.forks && !c.unforked }

// parentless returns what makes a parent of a size, or for one of its wishes; nil when there is nothing to make. p.mu is held.
func (p *Pool) parentless(c *class, now time.Time) func() {
	if !p.forking(c) || c.template == nil || p.providing || !p.mayGrow(c.cost()) {
		return nil
	}
	if c.parent == nil {
		p.providing = true
		return func() { p.work.Go(func() { p.raise(c) }) }
	}
	if c.barren {
		return nil
	}
	for _, w := range c.wishes {
		if w.parent == nil && now.Sub(w.last) <= idleAfter && !w.failing(now) {
			p.providing = true
			return func() { p.work.Go(func() { p.raisePrepared(c, w) }) }
		}
	}
	return nil
}

// provided says that what was being provided is there, or will not be.
func (p *Pool) provided() {
	p.mu.Lock()
	p.providing = false
	p.mu.Unlock()
	p.nudge()
}

// raise makes the parent of a size.
func (p *Pool) raise(c *class) {
	defer p.provided()
	p.mu.Lock()
	t, epoch := c.template, c.epoch
	p.mu.Unlock()
	if t == nil {
		return
	}
	r, err := p.spawn(p.ctx, t.Class, origin{source: t.saved, token: t.Token, forkable: true})
	if err != nil {
		p.discard(c, t, err)
		return
	}
	for i := range warmings {
		if err = p.o.Warm.run(p.ctx, r.Sandbox, p.layer, r.Config.VM.Dir, i%2 == 1); err != nil {
			p.discard(c, t, errors.Join(err, p.destroy(r)))
			return
		}
	}
	parent, err := p.freeze(r)
	if err != nil {
		if p.ctx.Err() == nil {
			p.o.Log.Warn("virtual machines are restored, which takes longer than copying them", "reason", err)
			p.mu.Lock()
			c.unforked = true
			p.mu.Unlock()
		}
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if c.epoch != epoch || c.template != t {
		p.retire(parent)
		return
	}
	c.parent = parent
	p.work.Go(func() { p.watchParent(c, parent) })
}

// raisePrepared makes the parent for a wish.
func (p *Pool) raisePrepared(c *class, w *wish) {
	defer p.provided()
	p.mu.Lock()
	from, o := c.parent, w.Preparation
	p.mu.Unlock()
	if from == nil {
		return
	}
	r, err := p.spawn(p.ctx, c.Class, origin{source: from.source, token: from.config.Token, forkable: true})
	if errors.Is(err, errors.ErrUnsupported) {
		p.o.Log.Warn("virtual machines are prepared for images one by one, which takes longer than copying one that is", "reason", err)
		p.mu.Lock()
		c.barren = true
		p.mu.Unlock()
		return
	}
	if err != nil {
		p.lost(c, from, err)
		return
	}
	if err := p.prepare(r, &o); err != nil {
		p.unprepared(w, err)
		p.end(r)
		return
	}
	parent, err := p.freeze(r)
	if err != nil {
		p.unprepared(w, err)
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if !slices.Contains(c.wishes, w) || w.stale() {
		p.retire(parent)
		return
	}
	w.parent = parent
	p.work.Go(func() { p.watchParent(c, parent) })
}

// freeze makes a parent of r. On error r has been ended.
func (p *Pool) freeze(r *Ready) (*parent, error) {
	ctx, cancel := context.WithTimeout(p.ctx, warmLimit)
	defer cancel()
	source, err := r.Sandbox.Source(ctx)
	if err != nil {
		return nil, errors.Join(err, p.destroy(r))
	}
	made := &parent{box: r.Sandbox, config: r.Config, source: source, prepared: r.Prepared, scratch: r.Scratch}
	if made.private, err = p.o.Host.Private(r.Sandbox.PID()); err != nil {
		made.private = believedCost
	}
	return made, nil
}

// watchParent notices a parent's end.
func (p *Pool) watchParent(c *class, parent *parent) {
	select {
	case <-p.ctx.Done():
	case <-parent.box.Done():
		p.lost(c, parent, parent.box.Cause())
	}
}

// lost forgets a parent that is of no use: it has ended, or its copies do. Others are made.
func (p *Pool) lost(c *class, gone *parent, why error) {
	p.mu.Lock()
	if errors.Is(why, context.DeadlineExceeded) {
		if gone.late++; gone.late < maxLate {
			p.mu.Unlock()
			p.o.Log.Warn("copy virtual machine", "err", why)
			return
		}
	}
	found := c.parent == gone
	if found {
		c.parent = nil
	}
	for _, w := range c.wishes {
		if w.parent == gone {
			w.parent, found = nil, true
		}
	}
	if found {
		p.retire(gone)
	}
	p.mu.Unlock()
	if found {
		p.failed(c, "copy", why)
		p.nudge()
	}
}

// retire ends a parent that nobody has any more, in its own time. Nil is fine.
func (p *Pool) retire(parent *parent) {
	if parent == nil {
		return
	}
	end := func() {
		err := errors.Join(parent.source.Close(), p.clear(&Ready{Config: parent.config, Scratch: parent.scratch}))
		if err != nil {
			p.o.Log.Error("end frozen virtual machine", "err", err)
		}
	}
	if p.ctx.Err() != nil { // closing: nobody would wait for it
		end()
		return
	}
	p.work.Go(end)
}

// parents are those of a size, its wishes' included. p.mu is held.
func (c *class) parents() []*parent {
	var all []*parent
	if c.parent != nil {
		all = append(all, c.parent)
	}
	for _, w := range c.wishes {
		if w.parent != nil {
			all = append(all, w.parent)
		}
	}
	return all
}

// copy makes a sandbox from a parent.
func (p *Pool) copy(ctx context.Context, c *class, from *parent) (*Ready, error) {
	o := origin{source: from.source, token: from.config.Token}
	if from.prepared != nil {
		o.disks = func(ctx context.Context, id string) (disks []vm.Disk, scratch string, err error) {
			scratch = p.scratchPath(id)
			if err := from.prepared.CopyScratch(ctx, from.scratch, scratch); err != nil {
				return nil, "", fmt.Errorf("copy writable disk: %w", err)
			}
			return append(slices.Clone(from.prepared.Layers), vm.Disk{Serial: from.prepared.Scratch, Path: scratch}), scratch, nil
		}
	}
	r, err := p.spawn(ctx, c.Class, o)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	from.late = 0
	p.mu.Unlock()
	if from.prepared != nil {
		r.Prepared, r.PreparedAs = from.prepared, from.config.VM.ID
	}
	return r, nil
}

// scratchPath is where the writable disk of a prepared sandbox is.
func (p *Pool) scratchPath(id string) string { return filepath.Join(p.o.Scratch, id+scratchEnd) }

// origin is what a sandbox is made from.
type origin struct {
	source   vm.Source
	token    wire.Token
	code     int64 // vm.Config.CodeCache
	forkable bool  // it is to be a parent
	// disks makes those that the source has, and tells which file is to go with the sandbox; nil when it has none.
	disks func(ctx context.Context, id string) (disks []vm.Disk, scratch string, err error)
}

// spawn makes a sandbox of a size.
func (p *Pool) spawn(ctx context.Context, size Class, from origin) (_ *Ready, err error) {
	select {
	case p.restoring <- struct{}{}:
		defer func() { <-p.restoring }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	ctx, cancel := context.WithTimeout(ctx, takeLimit)
	defer cancel()
	c, err := p.config(size)
	if err != nil {
		return nil, hostError{err}
	}
	r := &Ready{Config: c}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.clear(r))
		}
	}()
	made := c
	made.VM.CodeCache, made.VM.Forkable = from.code, from.forkable
	if from.disks != nil {
		if made.VM.Disks, r.Scratch, err = from.disks(ctx, c.VM.ID); err != nil {
			return nil, hostError{err}
		}
	}
	if r.Sandbox, err = sandbox.Restore(ctx, from.source, made, from.token); err != nil {
		return nil, err
	}
	r.Config.VM.CodeCache = from.code
	return r, nil
}

// dropParents retires the parents of some wishes. p.mu is held.
func (p *Pool) dropParents(c *class, drop func(*wish) bool) {
	for _, w := range c.wishes {
		if w.parent != nil && drop(w) {
			p.retire(w.parent)
			w.parent = nil
		}
	}
}
