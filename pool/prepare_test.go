package pool

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/cradlevm/cradle/api"
	"github.com/cradlevm/cradle/vm"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// preparation is one of an image that has a layer.
func (b *bench) preparation(name string) *Preparation {
	b.t.Helper()
	layer := filepath.Join(b.t.TempDir(), name)
	if err := os.WriteFile(layer, nil, 0o600); err != nil {
		b.t.Fatal(err)
	}
	return &Preparation{
		Key: name, Name: name, Layers: []vm.Disk{{Serial: "layer0", Path: layer, ReadOnly: true}}, Scratch: "scratch",
		MakeScratch: b.o.Warm.Scratch, CopyScratch: copyFile, Request: api.CreateRequest{Spec: &specs.Spec{}},
	}
}

func copyFile(_ context.Context, from, to string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, append(b, "a copy"...), 0o600)
}

// want is start of a container that wants a preparation.
func (b *bench) want(p *Pool, o *Preparation) *Ready {
	b.t.Helper()
	end := p.Begin()
	r := p.Take(context.Background(), small, o)
	end()
	if r == nil {
		b.t.Fatal("nothing to take")
	}
	b.clock.later(grace)
	p.nudge()
	return r
}

// has waits until so many of each preparation are ready; "" is none.
func (b *bench) has(p *Pool, counts map[string]int) {
	b.t.Helper()
	b.await("ready ones that are prepared", func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		c := p.class(small)
		for key, n := range counts {
			if c.count(key) != n {
				return false
			}
		}
		return c.filling == 0
	})
}

func (b *bench) scratchFiles() int {
	b.t.Helper()
	entries, err := os.ReadDir(b.o.Scratch)
	if err != nil {
		b.t.Fatal(err)
	}
	return len(entries)
}

func TestPrepared(t *testing.T) {
	b := newBench(t)
	p := b.filled()
	one, other := b.preparation("one"), b.preparation("other")
	taken := []*Ready{b.want(p, one)}
	if taken[0].Prepared != nil {
		t.Error("prepared before anybody wanted it")
	}
	b.has(p, map[string]int{"one": 1, "": 1})
	// Who wants another one does not get it, nor does who wants none; the plain one stays for them.
	for _, wanted := range []*Preparation{nil, other} {
		r := b.want(p, wanted)
		if r.Prepared != nil || !b.machine(r).Bare() {
			t.Errorf("who wants %v gets one of %v", wanted, r.Prepared)
		}
		taken = append(taken, r)
		b.has(p, map[string]int{"one": 1, "other": 0, "": 1})
	}
	r := b.want(p, one)
	taken = append(taken, r)
	if r.Prepared == nil || r.Prepared.Key != "one" || b.machine(r).Bare() {
		t.Fatalf("took %+v; want the prepared one", r)
	}
	if _, err := os.Stat(r.Scratch); err != nil {
		t.Error(err)
	}
	b.has(p, map[string]int{"one": 1, "": 1})
	if s := p.Status().Classes[0]; s.Taken != 4 || s.TakenPrepared != 1 || len(s.Prepared) != 2 || s.Prepared[0] != (PreparedStatus{Name: "one", Ready: 1}) {
		t.Errorf("status %+v", s)
	}
	for _, r := range taken {
		b.end(p, r)
	}
	b.close(p)
	if n := b.scratchFiles(); n != 0 {
		t.Errorf("%d writable disks are left", n)
	}
}

// Who finds none that is prepared as it wants gets one of the same base, and the next is made as it wants.
func TestPreparedBase(t *testing.T) {
	b := newBench(t)
	p := b.filled()
	one, like, other := b.preparation("one"), b.preparation("like"), b.preparation("other")
	one.Base, like.Base, other.Base = "base", "base", "other's"
	b.end(p, b.want(p, one))
	b.has(p, map[string]int{"one": 1, "": 1})
	for _, test := range []struct {
		wanted *Preparation
		key    string
	}{{other, ""}, {one, "one"}, {like, "one"}} {
		r := b.want(p, test.wanted)
		if r.key() != test.key {
			t.Errorf("who wants %s gets one of %q", test.wanted.Key, r.key())
		}
		b.end(p, r)
		b.has(p, map[string]int{"": 1})
	}
	b.has(p, map[string]int{"like": 1, "": 1})
}

// What is wanted now makes what was wanted before give way, but not at once.
func TestPreparedGivesWay(t *testing.T) {
	b := newBench(t)
	p := b.filled()
	one, other := b.preparation("one"), b.preparation("other")
	b.end(p, b.want(p, one))
	b.has(p, map[string]int{"one": 1, "": 1})
	b.end(p, b.want(p, other))
	b.has(p, map[string]int{"one": 1, "other": 0, "": 1})
	b.clock.later(keepPrepared)
	p.nudge()
	b.has(p, map[string]int{"one": 0, "other": 1, "": 1})
	if n := b.scratchFiles(); n != 1 {
		t.Errorf("%d writable disks", n)
	}
}

// As many are prepared as were wanted at a time, and one is left for anybody else.
func TestPreparedFollowsDemand(t *testing.T) {
	b := newBench(t)
	b.o.Settings.Max = 4
	p := b.filled()
	one, other := b.preparation("one"), b.preparation("other")
	for range 2 {
		b.end(p, b.want(p, one))
	}
	b.end(p, b.want(p, other))
	b.end(p, b.want(p, other))
	b.clock.later(keepPrepared)
	p.nudge()
	b.has(p, map[string]int{"one": 1, "other": 2, "": 1})
}

// What was made ready before anybody wanted anything gives way, but for one, to as many as are wanted at a time: copies take less than
// one that is not prepared, which so would never be taken.
func TestPlainOnesGiveWay(t *testing.T) {
	t.Run("restored", func(t *testing.T) { testPlainOnesGiveWay(t, newBench(t)) })
	t.Run("copied", func(t *testing.T) { testPlainOnesGiveWay(t, newCopying(t)) })
}

func testPlainOnesGiveWay(t *testing.T, b *bench) {
	b.o.Settings = Settings{Min: 4, Max: 4, Memory: 1 << 40}
	p := b.open()
	b.start(p)
	b.settled(p, 4)
	one := b.preparation("one")
	for range 3 {
		if r := b.want(p, one); r != nil {
			b.end(p, r)
		}
	}
	b.has(p, map[string]int{"one": 3, "": 1})
}

// An image that has been removed is not held by what was prepared for it.
func TestRevise(t *testing.T) {
	b := newBench(t)
	p := b.filled()
	one := b.preparation("one")
	b.end(p, b.want(p, one))
	b.has(p, map[string]int{"one": 1, "": 1})
	p.Revise()
	b.has(p, map[string]int{"one": 1, "": 1})
	if err := os.Remove(one.Layers[0].Path); err != nil {
		t.Fatal(err)
	}
	p.Revise()
	b.has(p, map[string]int{"one": 0, "": 2})
	b.await("the end of its writable disk", func() bool { return b.scratchFiles() == 0 })
}

// What cannot be prepared does not keep others from being made, nor the template.
func TestPrepareFails(t *testing.T) {
	b := newBench(t)
	p := b.filled()
	started := b.driver.Started()
	one := b.preparation("one")
	one.MakeScratch = func(context.Context, string) error { return errors.New("no space") }
	b.end(p, b.want(p, one))
	b.has(p, map[string]int{"one": 0, "": 2})
	if n := b.driver.Started() - started; n != 2 { // the one that failed, and one without
		t.Errorf("%d machines were started", n)
	}
	if s := p.Status().Classes[0]; s.Failures != 0 || !s.Template {
		t.Errorf("status %+v", s)
	}
}
