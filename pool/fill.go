package pool

import (
	"context"
	"errors"
	"io/fs"
	"runtime"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cradlevm/cradle/sandbox"
)

// run does what there is to do until the pool closes.
func (p *Pool) run() {
	look := time.NewTicker(lookAgain)
	defer look.Stop()
	for {
		for do := p.next(p.now()); do != nil; do = p.next(p.now()) {
			do()
		}
		select {
		case <-p.ctx.Done():
			return
		case <-p.wake:
		case <-look.C:
			p.renew()
		}
	}
}

// renew lets go of what was made with a monitor that has been upgraded since: its copies would run the old one for as long as the
// daemon does.
func (p *Pool) renew() {
	current, err := p.store.current(p.ctx)
	if err != nil {
		return // there is none just now
	}
	p.mu.Lock()
	var old []*class
	for _, c := range p.classes {
		if c.template != nil && c.template.Base != current {
			old = append(old, c)
		}
	}
	p.mu.Unlock()
	for _, c := range old {
		p.o.Log.Info("the virtual machine monitor has been upgraded; what was ready is made anew", "cpus", c.CPUs, "memory", c.Memory)
		p.drain(c)
	}
}

// next decides what to do next; nil when there is nothing, or it is not the time. What it returns must be called: it is
// counted as being done. Making things goes on by itself after the call; ending them is done when it returns.
func (p *Pool) next(now time.Time) func() {
	if p.ctx.Err() != nil {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	order := p.byDemand()
	// A start in progress, and what it has just started, come first. Only where the next start would find nothing is
	// one made beside it.
	quiet := p.starting == 0 && now.Sub(p.started) >= grace
	if do := p.giveBack(order, now, quiet); do != nil {
		return do
	}
	limit := 1
	if quiet {
		limit = runtime.NumCPU()
	}
	filling := 0
	for _, c := range order {
		filling += c.filling
	}
	for _, c := range order {
		want := p.target(c, now)
		if want == 0 && (c.wanted.IsZero() || now.Sub(c.wanted) > idleAfter) || p.givenUp(c, now) {
			continue
		}
		have := len(c.ready) + c.filling
		switch {
		case c.template == nil:
			if quiet && !p.providing && p.mayGrow(c.templateCost()) {
				p.providing = true
				return func() { p.work.Go(func() { p.provide(c) }) }
			}
		case p.forking(c) && c.parent == nil:
			// which comes first, below
		case have < want && filling < limit && (quiet || have == 0) && p.mayGrow(c.cost()):
			w := c.lacking(want, now)
			if w != nil && p.forking(c) && !c.barren && w.parent == nil {
				break // whose parent comes first, below
			}
			c.filling++
			epoch := c.epoch
			if w != nil {
				w.filling++
			}
			return func() { p.work.Go(func() { p.fill(c, epoch, w) }) }
		}
		if quiet {
			if do := p.parentless(c, now); do != nil {
				return do
			}
		}
	}
	return nil
}

// byDemand returns the classes, that first which was wanted last. p.mu is held.
func (p *Pool) byDemand() []*class {
	all := make([]*class, 0, len(p.classes))
	for _, c := range p.classes {
		all = append(all, c)
	}
	slices.SortFunc(all, func(a, b *class) int {
		if order := b.wanted.Compare(a.wanted); order != 0 {
			return order
		}
		return int(a.Memory>>20) - int(b.Memory>>20)
	})
	return all
}

// target is how many of a size are to be ready. p.mu is held.
func (p *Pool) target(c *class, now time.Time) int {
	switch {
	case c.wanted.IsZero():
		return 0
	case now.Sub(c.wanted) <= idleAfter:
		return min(max(c.demand.peak(now), p.settings.Min), p.settings.Max)
	case p.o.Keep && c.Class == p.o.Usual:
		return p.settings.Min
	}
	return 0
}

// giveBack decides what to end: what nobody has wanted for a while, what is more than is wanted, and, where memory is
// short, what was wanted the longest ago. p.mu is held.
func (p *Pool) giveBack(order []*class, now time.Time, quiet bool) func() {
	short := p.short()
	for _, c := range slices.Backward(order) {
		want := p.target(c, now)
		idle := c.wanted.IsZero() || now.Sub(c.wanted) > idleAfter
		overtaken := p.overtaken(c, want, now, quiet)
		switch {
		case want == 0 && idle && (len(c.ready) > 0 || c.template != nil) && c.filling == 0:
			return func() { p.drain(c) }
		case len(c.ready) > 0 && (short || len(c.ready) > want):
			i := c.surplus(want, now)
			if i < 0 {
				i = len(c.ready) - 1
			}
			return p.ending(c, i)
		case overtaken >= 0:
			return p.ending(c, overtaken)
		case short && c.template != nil && c.filling == 0 && c != order[0]:
			return func() { p.drain(c) }
		case short:
			p.dropParents(c, func(*wish) bool { return true })
		default:
			p.dropParents(c, func(w *wish) bool { return now.Sub(w.last) > idleAfter })
		}
	}
	return nil
}

// ending takes one that is ready away, and returns what ends it. p.mu is held.
func (p *Pool) ending(c *class, i int) func() {
	r := c.ready[i]
	c.ready = slices.Delete(c.ready, i, i+1)
	return func() { p.end(r) }
}

// givenUp tells whether a size has failed too often, and not long enough ago to be tried again. p.mu is held.
func (p *Pool) givenUp(c *class, now time.Time) bool {
	return c.failures >= maxFailures && now.Sub(c.failed) < failurePause
}

// used is the host's memory that the pool has. p.mu is held.
func (p *Pool) used() int64 {
	var sum int64
	for _, c := range p.classes {
		sum += int64(len(c.ready)+c.filling) * c.cost()
		if c.template != nil {
			sum += c.template.size
		}
		for _, parent := range c.parents() {
			sum += parent.private
		}
	}
	return sum
}

// budget is the memory that the pool may have. p.mu is held.
func (p *Pool) budget() int64 {
	if p.settings.Memory > 0 {
		return p.settings.Memory
	}
	total, _, err := p.o.Host.Memory()
	if err != nil {
		return fallbackMemory
	}
	return total / 8
}

// floor is how much of a host's memory stays available, whatever the budget says.
func floor(total int64) int64 { return max(total/10, leastAvailable) }

// mayGrow tells whether the pool may have so many bytes more. p.mu is held.
func (p *Pool) mayGrow(bytes int64) bool {
	if p.used()+bytes > p.budget() {
		return false
	}
	total, available, err := p.o.Host.Memory()
	// Well above the floor, or what is made now would be ended at once.
	return err != nil || available-bytes > floor(total)*5/4
}

// short tells whether the pool has too much. p.mu is held.
func (p *Pool) short() bool {
	if p.used() > p.budget() {
		return true
	}
	total, available, err := p.o.Host.Memory()
	return err == nil && available < floor(total)
}

// cost is what one more ready sandbox takes, or is believed to before one was measured. p.mu is held.
func (c *class) cost() int64 {
	if c.private > 0 {
		return c.private
	}
	return min(believedCost, c.Memory)
}

// templateCost is cost of the template. p.mu is held.
func (c *class) templateCost() int64 {
	if c.shared > 0 {
		return c.shared
	}
	return min(believedTemplate, c.Memory)
}

// provide loads the template of a size, or makes it.
func (p *Pool) provide(c *class) {
	defer p.provided()
	c.loading.Lock()
	defer c.loading.Unlock()
	_, err := p.loadLocked(p.ctx, c)
	if errors.Is(err, fs.ErrNotExist) {
		began := time.Now()
		if err = niced(func() error { return p.build(c) }); err == nil {
			p.o.Log.Info("template made", "cpus", c.CPUs, "memory", c.Memory, "took", time.Since(began).Round(time.Millisecond))
		}
	}
	if err != nil {
		p.failed(c, "make template", err)
	}
}

// niced calls f so that it, and the processes that it starts, give way to all others.
func niced(f func() error) error {
	result := make(chan error)
	go func() {
		// The thread is never unlocked, so it ends with this goroutine: nobody else gets its priority.
		runtime.LockOSThread()
		_ = unix.Setpriority(unix.PRIO_PROCESS, 0, 10) // of this thread; without it all is only less polite
		result <- f()
	}()
	return <-result
}

// build makes a template. c.loading is held.
func (p *Pool) build(c *class) error {
	config, err := p.config(c.Class)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(p.ctx, sandbox.BootTimeout+warmLimit)
	defer cancel()
	t, err := p.store.build(ctx, c.Class, config, func(box *sandbox.Sandbox) error {
		return p.o.Warm.run(ctx, box, p.layer, config.VM.Dir, false)
	})
	if err = errors.Join(err, p.forget(config)); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	c.template, c.shared = t, t.size
	return nil
}

// fill makes one more ready sandbox of a size, prepared as w says unless it is nil, as it was decided when the class was at
// epoch.
func (p *Pool) fill(c *class, epoch int, w *wish) {
	defer p.nudge()
	r := p.make(c, w)
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case r == nil:
	case epoch == c.epoch && (w == nil || slices.Contains(c.wishes, w)):
		c.private = r.private
		c.ready = append(c.ready, r)
		p.work.Go(func() { p.watch(c, r) })
	default: // drained meanwhile, or not wanted any more
		p.mu.Unlock()
		p.end(r)
		p.mu.Lock()
	}
	c.filling--
	if w != nil {
		w.filling--
	}
}

// make is fill up to where the sandbox is ready; nil when nothing came of it.
func (p *Pool) make(c *class, w *wish) *Ready {
	var r *Ready
	if p.forking(c) {
		r = p.another(c, w)
	} else {
		var t *template
		var err error
		if r, t, err = p.ready(c); err != nil {
			p.discard(c, t, err)
		}
	}
	if r == nil || w == nil || r.Prepared != nil {
		return r
	}
	p.mu.Lock()
	o := w.Preparation
	p.mu.Unlock()
	if err := p.prepare(r, &o); err != nil {
		p.unprepared(w, err)
		p.end(r)
		return nil
	}
	return r
}

// another makes a copy of a parent: w's, or that of the size where wishes have none. nil when nothing came of it.
func (p *Pool) another(c *class, w *wish) *Ready {
	p.mu.Lock()
	from := c.parent
	if w != nil && !c.barren {
		from = w.parent
	}
	p.mu.Unlock()
	if from == nil {
		return nil
	}
	r, err := p.copy(p.ctx, c, from)
	switch {
	case errors.As(err, new(hostError)):
		p.failed(c, "copy", err)
		return nil
	case err != nil:
		p.lost(c, from, err)
		return nil
	}
	r.Warm = true
	p.measure(c, r)
	return r
}

// measure notes what a sandbox takes of the host's memory.
func (p *Pool) measure(c *class, r *Ready) {
	var err error
	if r.private, err = p.o.Host.Private(r.Sandbox.PID()); err != nil {
		r.private = min(believedCost, c.Memory)
	}
}

// ready makes a warm sandbox from the template t of a size; nil when that has gone.
func (p *Pool) ready(c *class) (r *Ready, t *template, err error) {
	p.mu.Lock()
	t = c.template
	p.mu.Unlock()
	if t == nil {
		return nil, nil, nil
	}
	if r, err = p.spawn(p.ctx, t.Class, origin{source: t.saved, token: t.Token}); err != nil {
		return nil, t, err
	}
	if err := p.o.Warm.run(p.ctx, r.Sandbox, p.layer, r.Config.VM.Dir, false); err != nil {
		return nil, t, errors.Join(err, p.destroy(r))
	}
	r.Warm = true
	p.measure(c, r)
	return r, t, nil
}

// watch notices the end of a sandbox that is ready.
func (p *Pool) watch(c *class, r *Ready) {
	select {
	case <-p.ctx.Done():
		return
	case <-r.Sandbox.Done():
	}
	p.mu.Lock()
	i := slices.Index(c.ready, r)
	if i >= 0 {
		c.ready = slices.Delete(c.ready, i, i+1)
		c.failures++
		c.failed = p.now()
	}
	p.mu.Unlock()
	if i < 0 {
		return // taken, or drained
	}
	p.o.Log.Warn("a ready virtual machine has ended", "err", r.Sandbox.Cause())
	if err := p.clear(r); err != nil {
		p.o.Log.Error("remove runtime directory", "err", err)
	}
	p.nudge()
}

// drain ends what is ready of a size, and lets go of its template.
func (p *Pool) drain(c *class) {
	p.mu.Lock()
	all, t := c.ready, c.template
	for _, parent := range c.parents() {
		p.retire(parent)
	}
	c.ready, c.template, c.parent, c.wishes = nil, nil, nil, nil
	c.epoch++
	p.mu.Unlock()
	if t != nil {
		t.saved.Close()
	}
	for _, r := range all {
		p.end(r)
	}
}

// end is destroy for one whose failure has nobody to go to.
func (p *Pool) end(r *Ready) {
	if err := p.destroy(r); err != nil {
		p.o.Log.Error("end ready virtual machine", "err", err)
	}
}
