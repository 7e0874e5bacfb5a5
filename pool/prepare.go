package pool

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"time"

	"github.com/cradlevm/cradle/api"
	"github.com/cradlevm/cradle/vm"
)

const (
	// maxWishes is how many preparations of a size are remembered, and so may be ready, at a time.
	maxWishes = 8
	// keepPrepared is how long after it was last wanted a prepared one does not make way for another that was wanted since: two
	// images that are run in turns do not push each other out.
	keepPrepared = 30 * time.Second
	scratchEnd   = ".ext4"
)

// Preparation is what a sandbox is made ready with for a container of which all is known but who it is and what it runs: its
// disks are plugged, its root file system is mounted and furnished. Nothing of its image runs.
type Preparation struct {
	// Key names all of the rest but Name. Base names what cannot be changed afterwards: who wants another preparation of the same
	// Base can do with this one, more slowly. Nothing else is compared.
	Key  string
	Base string // "": of no use to others
	Name string // for people
	// Layers are disks of files that do not change. They are not held: a file may be removed at any time (Revise).
	Layers []vm.Disk
	// Scratch is the serial of the writable disk, MakeScratch makes one at a path.
	Scratch     string
	MakeScratch func(ctx context.Context, path string) error
	// CopyScratch makes one that has what another has.
	CopyScratch func(ctx context.Context, from, to string) error
	// Request is the first half of api.CreateRequest.Split. Its id is the sandbox's (Config.VM.ID).
	Request api.CreateRequest
}

// wish is a preparation that was wanted.
type wish struct {
	Preparation
	demand  demand
	last    time.Time // when it was wanted last
	failed  time.Time // when a sandbox could not be prepared so; zero: not since it is remembered
	filling int       // being made
	parent  *parent   // nil: there is none
}

// failing tells whether a sandbox could not be prepared so a short time ago.
func (w *wish) failing(now time.Time) bool {
	return !w.failed.IsZero() && now.Sub(w.failed) < failurePause
}

// parentFor is the parent for who wants a preparation, nil when there is none. p.mu is held.
func (c *class) parentFor(wanted *Preparation) *parent {
	var second *parent
	for _, w := range c.wishes {
		switch {
		case w.parent == nil:
		case w.Key == wanted.Key:
			return w.parent
		case w.Base == wanted.Base && wanted.Base != "" && second == nil:
			second = w.parent
		}
	}
	return second
}

// wish counts that a preparation is wanted now. p.mu is held.
func (p *Pool) wish(c *class, o *Preparation, now time.Time) {
	i := slices.IndexFunc(c.wishes, func(w *wish) bool { return w.Key == o.Key })
	w := &wish{}
	if i >= 0 {
		w = c.wishes[i]
		c.wishes = slices.Delete(c.wishes, i, i+1)
	}
	w.Preparation, w.last = *o, now
	w.demand.add(now)
	c.wishes = slices.Insert(c.wishes, 0, w)
	for len(c.wishes) > maxWishes {
		last := c.wishes[len(c.wishes)-1]
		p.retire(last.parent)
		last.parent = nil
		c.wishes = c.wishes[:len(c.wishes)-1]
	}
}

// shares tells how many of each preparation, by key, are to be among so many that are ready, those that were wanted last
// first; the key of those without any is "". One of them there is always, but where there is to be only one at all. p.mu is
// held.
func (c *class) shares(want int, now time.Time) map[string]int {
	left := want
	if want > 1 {
		left--
	}
	shares := map[string]int{"": want}
	for i, w := range c.wishes {
		if i > 0 && now.Sub(w.last) > idleAfter || w.failing(now) {
			continue
		}
		n := min(max(w.demand.peak(now), 1), left)
		shares[w.Key] = n
		shares[""] -= n
		left -= n
	}
	return shares
}

// lacking is the preparation that the next sandbox is to be made with, nil for none: also while prepared ones that have not
// given way yet are all that there are to be. p.mu is held.
func (c *class) lacking(want int, now time.Time) *wish {
	shares := c.shares(want, now)
	prepared := len(c.ready) - c.count("")
	for _, w := range c.wishes {
		prepared += w.filling
	}
	if want > 1 && prepared >= want-1 {
		return nil
	}
	for _, w := range c.wishes {
		if c.count(w.Key)+w.filling < shares[w.Key] {
			return w
		}
	}
	return nil
}

// count is how many with a preparation's key are ready. p.mu is held.
func (c *class) count(key string) int {
	n := 0
	for _, r := range c.ready {
		if r.key() == key {
			n++
		}
	}
	return n
}

// surplus finds one that is ready and of which there are more than is wanted; -1 when there is none. p.mu is held.
func (c *class) surplus(want int, now time.Time) int {
	shares := c.shares(want, now)
	for i, r := range slices.Backward(c.ready) {
		if c.count(r.key()) > shares[r.key()] {
			return i
		}
	}
	return -1
}

// overtaken finds one whose place a wish should have; -1 when there is none. One that is prepared does not give way as long as it was
// wanted a short time ago, one that is not until another can be made at once: while quiet, and from a parent if that is how. p.mu is held.
func (p *Pool) overtaken(c *class, want int, now time.Time, quiet bool) int {
	if len(c.ready)+c.filling < want {
		return -1
	}
	i := c.surplus(want, now)
	if i < 0 {
		return -1
	}
	if c.ready[i].Prepared == nil {
		w := c.lacking(want, now)
		if w == nil || !quiet || p.forking(c) && w.parent == nil || !p.mayGrow(c.cost()) {
			return -1
		}
		return i
	}
	j := slices.IndexFunc(c.wishes, func(w *wish) bool { return w.Key == c.ready[i].key() })
	if j >= 0 && now.Sub(c.wishes[j].last) < keepPrepared {
		return -1
	}
	return i
}

// does tells whether who wants a preparation can do with r.
func (r *Ready) does(wanted *Preparation) bool {
	return r.Prepared != nil && r.Prepared.Base == wanted.Base && wanted.Base != ""
}

// key is that of its preparation, "" without one.
func (r *Ready) key() string {
	if r.Prepared == nil {
		return ""
	}
	return r.Prepared.Key
}

// prepare makes r ready as o says.
func (p *Pool) prepare(r *Ready, o *Preparation) error {
	ctx, cancel := context.WithTimeout(p.ctx, warmLimit)
	defer cancel()
	r.Prepared, r.PreparedAs, r.Scratch = o, r.Config.VM.ID, p.scratchPath(r.Config.VM.ID)
	if err := o.MakeScratch(ctx, r.Scratch); err != nil {
		return err
	}
	if err := r.Sandbox.Plug(ctx, append(slices.Clone(o.Layers), vm.Disk{Serial: o.Scratch, Path: r.Scratch})...); err != nil {
		return err
	}
	request := o.Request
	request.ID = r.Config.VM.ID
	if err := r.Sandbox.Prepare(ctx, request); err != nil {
		return fmt.Errorf("prepare %s: %w", o.Name, err)
	}
	return nil
}

// unprepared notes that a sandbox could not be prepared as w says. Others are made without it.
func (p *Pool) unprepared(w *wish, err error) {
	if p.ctx.Err() != nil {
		return
	}
	p.mu.Lock()
	w.failed = p.now()
	p.mu.Unlock()
	if !errors.Is(err, fs.ErrNotExist) { // its image has been removed
		p.o.Log.Warn("no virtual machine is prepared for an image", "image", w.Name, "err", err)
	}
}

// Revise ends what was prepared with files that are not there any more, and forgets that it was wanted. It is to be called
// when images have been removed: until then the files' space is not free.
func (p *Pool) Revise() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.classes {
		p.dropParents(c, func(w *wish) bool { return w.stale() })
		c.wishes = slices.DeleteFunc(c.wishes, func(w *wish) bool { return w.stale() })
		c.ready = slices.DeleteFunc(c.ready, func(r *Ready) bool {
			if r.Prepared == nil || !r.Prepared.stale() {
				return false
			}
			p.work.Go(func() { p.end(r) })
			return true
		})
	}
	p.nudge()
}

// stale tells whether one of the files has gone.
func (o *Preparation) stale() bool {
	return slices.ContainsFunc(o.Layers, func(d vm.Disk) bool {
		_, err := os.Stat(d.Path)
		return errors.Is(err, fs.ErrNotExist)
	})
}
