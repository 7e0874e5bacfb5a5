package pool

import (
	"context"
	"errors"
	"io/fs"
	"slices"
	"time"

	"github.com/cradlevm/cradle/sandbox"
)

// run does what there is to do, one thing at a time, until the pool closes.
func (p *Pool) run() {
	idle := time.NewTicker(idleAfter / 10)
	defer idle.Stop()
	for {
		for {
			do := p.next(time.Now())
			if do == nil {
				break
			}
			do()
		}
		select {
		case <-p.ctx.Done():
			return
		case <-p.wake:
		case <-idle.C:
		}
	}
}

// next decides what to do next; nil when there is nothing, or it is not the time.
func (p *Pool) next(now time.Time) func() {
	if p.ctx.Err() != nil {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.classes {
		if now.Sub(c.wanted) > idleAfter && (len(c.ready) > 0 || c.template != nil) {
			return func() { p.drain(c) }
		}
	}
	if p.starting > 0 || now.Sub(p.started) < grace {
		return nil // the end of the start, or of the grace, nudges
	}
	var total int64
	for _, c := range p.classes {
		total += int64(len(c.ready)) * c.Memory
	}
	for _, c := range p.classes {
		switch {
		case c.wanted.IsZero() || now.Sub(c.wanted) > idleAfter || c.failures >= maxFailures:
		case c.template == nil:
			return func() { p.provide(c) }
		case len(c.ready) < p.o.Size && total+c.Memory <= p.o.Memory:
			return func() { p.fill(c) }
		}
	}
	return nil
}

// provide loads the template of a size, or makes it.
func (p *Pool) provide(c *class) {
	c.loading.Lock()
	defer c.loading.Unlock()
	_, err := p.loadLocked(p.ctx, c)
	if errors.Is(err, fs.ErrNotExist) {
		began := time.Now()
		if err = p.build(c); err == nil {
			p.o.Log.Info("template made", "cpus", c.CPUs, "memory", c.Memory, "took", time.Since(began).Round(time.Millisecond))
		}
	}
	if err != nil {
		p.failed(c, "make template", err)
	}
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
		return p.o.Warm.run(ctx, box, p.layer, config.VM.Dir)
	})
	if err = errors.Join(err, p.forget(config)); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	c.template = t
	return nil
}

// fill makes one more ready sandbox of a size.
func (p *Pool) fill(c *class) {
	p.mu.Lock()
	t := c.template
	p.mu.Unlock()
	if t == nil {
		return
	}
	r, err := p.restore(p.ctx, t)
	if err == nil {
		if err = p.o.Warm.run(p.ctx, r.Sandbox, p.layer, r.Config.VM.Dir); err != nil {
			err = errors.Join(err, p.destroy(r))
		}
	}
	if err != nil {
		p.discard(c, t, err)
		return
	}
	r.Warm = true
	p.mu.Lock()
	defer p.mu.Unlock()
	c.failures = 0
	c.ready = append(c.ready, r)
	p.work.Go(func() { p.watch(c, r) })
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
	}
	p.mu.Unlock()
	if i < 0 {
		return // taken, or drained
	}
	p.o.Log.Warn("a ready virtual machine has ended", "err", r.Sandbox.Cause())
	if err := p.forget(r.Config); err != nil {
		p.o.Log.Error("remove runtime directory", "err", err)
	}
	p.nudge()
}

// drain ends what is ready of a size that nobody wants any more, and lets go of its template.
func (p *Pool) drain(c *class) {
	p.mu.Lock()
	all, t := c.ready, c.template
	c.ready, c.template = nil, nil
	p.mu.Unlock()
	if t != nil {
		t.saved.Close()
	}
	for _, r := range all {
		if err := p.destroy(r); err != nil {
			p.o.Log.Error("end ready virtual machine", "err", err)
		}
	}
}
