package pool

import (
	"bytes"
	"context"
	"errors"
	"os"
	"testing"

	"github.com/cradlevm/cradle/sandbox/sandboxtest"
)

// newCopying is a bench whose machines can be copied.
func newCopying(t *testing.T) *bench {
	b := newBench(t)
	b.driver.Copy(nil)
	return b
}

// frozen waits until there are so many machines that others are copies of, and returns them.
func (b *bench) frozen(n int) (all []*sandboxtest.Machine) {
	b.t.Helper()
	b.await("frozen machines", func() bool {
		all = b.driver.Frozen()
		return len(all) == n
	})
	return all
}

// What is ready is copied, and so is what is wanted beyond; each has an identity of its own, and nothing of the parent's.
func TestCopies(t *testing.T) {
	b := newCopying(t)
	p := b.filled()
	parent := b.frozen(1)[0]
	var taken []*Ready
	for range 4 {
		end := p.Begin() // nothing is made beside it
		defer end()
		r := p.Take(context.Background(), small, nil)
		if r == nil {
			t.Fatal("nothing to take")
		}
		taken = append(taken, r)
	}
	if !taken[0].Warm || !taken[1].Warm {
		t.Error("what was ready is not warm")
	}
	seen := map[string]bool{}
	its := parent.Identity()
	for _, r := range taken {
		m := b.machine(r)
		mine := m.Identity()
		if !m.Bare() || m.Config.Forkable {
			t.Errorf("a copy has disks or containers, or can be copied itself: %+v", m.Config)
		}
		if len(mine.Seed) != 64 || bytes.Equal(mine.Seed, its.Seed) || bytes.Equal(mine.Token, its.Token) || mine.MachineID == its.MachineID ||
			seen[string(mine.Seed)] || seen[mine.MachineID] || r.Config.VM.UID == parent.Config.UID || r.Config.VM.Dir == parent.Config.Dir {
			t.Errorf("a copy shares a part of its identity: %+v", mine)
		}
		seen[string(mine.Seed)], seen[mine.MachineID] = true, true
		b.end(p, r)
	}
	if s := p.Status().Classes[0]; s.Taken+s.Restored != 4 || s.Missed != 1 {
		t.Errorf("status %+v", s)
	}
	b.frozen(1)
}

// Without any that are ready, copies of prepared ones are made on the spot, each with a writable disk of its own.
func TestPreparedCopies(t *testing.T) {
	b := newCopying(t)
	b.o.Settings = Settings{Memory: 1 << 40}
	p := b.open()
	one := b.preparation("one")
	end := p.Begin()
	if p.Take(context.Background(), small, one) != nil {
		t.Fatal("took something from nothing")
	}
	end()
	b.clock.later(grace)
	p.nudge()
	b.frozen(2)
	b.await("the prepared parent", func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		w := p.class(small).wishes
		return len(w) == 1 && w[0].parent != nil
	})
	first, second := b.want(p, one), b.want(p, one)
	if first.Scratch == second.Scratch || first.PreparedAs != second.PreparedAs || first.PreparedAs == first.Config.VM.ID {
		t.Errorf("took %+v and %+v", first, second)
	}
	for _, r := range []*Ready{first, second} {
		if r.key() != "one" || len(b.machine(r).Disks()) != 2 || len(r.Config.VM.Disks) != 0 {
			t.Errorf("took %+v; want one that is prepared", r)
		}
		if content, err := os.ReadFile(r.Scratch); err != nil || string(content) != "a copy" {
			t.Errorf("its writable disk has %q, %v", content, err)
		}
	}
	// Who wants nothing of it gets nothing of it.
	if r := b.want(p, nil); r.Prepared != nil || !b.machine(r).Bare() {
		t.Errorf("took %+v; want a plain one", r)
	} else {
		b.end(p, r)
	}
	b.end(p, first)
	b.end(p, second)
	// With its image goes the parent.
	if err := os.Remove(one.Layers[0].Path); err != nil {
		t.Fatal(err)
	}
	p.Revise()
	b.frozen(1)
	b.await("its disk to go", func() bool { return b.scratchFiles() == 0 })
}

// A parent that ends is made again; meanwhile the template is there.
func TestParentEnds(t *testing.T) {
	b := newCopying(t)
	b.o.Settings = Settings{Memory: 1 << 40}
	p := b.open()
	b.start(p)
	parent := b.frozen(1)[0]
	b.await("the parent", func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.class(small).parent != nil
	})
	end := p.Begin() // no other is made yet
	parent.Die(errors.New("out of memory"))
	r := p.Take(context.Background(), small, nil)
	if r == nil {
		t.Fatal("nothing to take, though there is a template")
	}
	b.end(p, r)
	end()
	b.clock.later(grace)
	p.nudge()
	if again := b.frozen(1)[0]; again == parent {
		t.Error("the parent that has ended is still there")
	}
}

// Where nothing can be frozen all is as where nothing can be copied.
func TestUnfreezable(t *testing.T) {
	b := newBench(t)
	b.driver.Copy(errors.New("ptrace is not permitted"))
	p := b.filled()
	r := b.start(p)
	if r == nil || !r.Warm || b.machine(r).Config.Forkable {
		t.Fatalf("took %+v", r)
	}
	b.end(p, r)
}

// Where a copy cannot be a parent, what is prepared is so by itself, and the parent of all stays.
func TestBarrenParent(t *testing.T) {
	b := newCopying(t)
	b.driver.Sterile()
	p := b.filled()
	parent := b.frozen(1)[0]
	b.end(p, b.want(p, b.preparation("one")))
	b.has(p, map[string]int{"one": 1, "": 1})
	p.nudge()
	b.await("the attempt to make a prepared parent", func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.class(small).barren && !p.providing
	})
	if again := b.frozen(1)[0]; again != parent {
		t.Error("the parent was made anew")
	}
	if r := b.want(p, b.preparation("one")); r.key() != "one" {
		t.Errorf("took %+v; want one that is prepared", r)
	} else {
		b.end(p, r)
	}
}

// Prepared parents go when nobody has wanted them for a while, and when memory is short.
func TestPreparedParentsGo(t *testing.T) {
	for name, cause := range map[string]func(*bench, *Pool){
		"unwanted": func(b *bench, p *Pool) {
			b.clock.later(idleAfter / 2)
			b.end(p, b.want(p, nil))
			b.clock.later(idleAfter/2 + 1)
		},
		"short": func(b *bench, p *Pool) { b.available.Store(1) },
	} {
		t.Run(name, func(t *testing.T) {
			b := newCopying(t)
			p := b.filled()
			b.end(p, b.want(p, b.preparation("one")))
			b.has(p, map[string]int{"one": 1, "": 1})
			b.frozen(2)
			cause(b, p)
			p.nudge()
			b.frozen(1)
		})
	}
}
