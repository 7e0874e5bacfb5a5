package pool

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"github.com/cradlevm/cradle/api"
	"github.com/cradlevm/cradle/api/wire"
	"github.com/cradlevm/cradle/sandbox/sandboxtest"
)

// Whatever is wrong with a template's files, no sandbox is made of them, and another takes their place.
func TestBadTemplateFiles(t *testing.T) {
	flip := func(name string, at int) func(t *testing.T, dir string) {
		return func(t *testing.T, dir string) {
			b, err := os.ReadFile(filepath.Join(dir, name))
			if err != nil {
				t.Fatal(err)
			}
			b[(at+len(b))%len(b)] ^= 4
			if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	truncate := func(name string, size int64) func(t *testing.T, dir string) {
		return func(t *testing.T, dir string) {
			if err := os.Truncate(filepath.Join(dir, name), size); err != nil {
				t.Fatal(err)
			}
		}
	}
	for what, spoil := range map[string]func(t *testing.T, dir string){
		"no state":             truncate("saved", 0),
		"state cut short":      truncate("saved", 3),
		"a bit of the state":   flip("saved", 5),
		"state gone":           func(t *testing.T, dir string) { os.Remove(filepath.Join(dir, "saved")) },
		"no manifest":          truncate("manifest", 0),
		"manifest cut short":   truncate("manifest", 80),
		"a bit of the MAC":     flip("manifest", 3),
		"a bit of the content": flip("manifest", -4),
	} {
		t.Run(what, func(t *testing.T) {
			b := newBench(t)
			b.close(b.filled())
			spoil(t, filepath.Dir(b.templateFile()))
			p := b.open()
			if r := b.start(p); r != nil {
				b.end(p, r)
				t.Fatal("took a sandbox of it")
			}
			b.settled(p, 2)
			r := b.start(p)
			if r == nil {
				t.Fatal("nothing to take after it was made again")
			}
			b.end(p, r)
		})
	}
}

// The image that sandboxes are warmed with is each daemon's own: one that a crash of the host has left empty would cost the pool for
// good. What else lies about goes.
func TestLayerIsMadeAnew(t *testing.T) {
	b := newBench(t)
	p := b.filled()
	path := p.layer
	b.close(p)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	stray := filepath.Join(b.o.Dir, "noop-0.erofs")
	for _, name := range []string{path, stray} {
		if err := os.WriteFile(name, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	b.open()
	if now, err := os.ReadFile(path); err != nil || !bytes.Equal(now, whole) {
		t.Errorf("the image has %d bytes, not %d: %v", len(now), len(whole), err)
	}
	if _, err := os.Lstat(stray); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a layer of an earlier version is left: %v", err)
	}
}

// A disk that fills up while a template is written leaves nothing on it, and starts boot.
func TestFullDisk(t *testing.T) {
	b := newBench(t)
	b.driver.FailSnapshot(syscall.ENOSPC)
	p := b.open()
	if b.start(p) != nil {
		t.Fatal("took something from nothing")
	}
	b.await("the end of attempts", func() bool { return p.Status().Classes[0].Failures >= maxFailures })
	b.quiet(p)
	if all, _ := filepath.Glob(filepath.Join(b.o.Dir, "*", "*")); len(all) != 0 {
		t.Errorf("left: %v", all)
	}
	if r := b.start(p); r != nil {
		t.Fatal("took something from nothing")
	}
	b.driver.FailSnapshot(nil)
	b.clock.later(failurePause)
	p.nudge()
	b.settled(p, 2)
}

// A host's disk that is full while a ready one is made is not the template's fault.
func TestFullDiskKeepsTheTemplate(t *testing.T) {
	b := newBench(t)
	var mu sync.Mutex
	full := false
	scratch := b.o.Warm.Scratch
	b.o.Warm.Scratch = func(ctx context.Context, path string) error {
		mu.Lock()
		defer mu.Unlock()
		if full {
			return syscall.ENOSPC
		}
		return scratch(ctx, path)
	}
	p := b.filled()
	before, err := os.Stat(b.templateFile())
	if err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	full = true
	mu.Unlock()
	p.Drain()
	p.Refill()
	b.await("the end of attempts", func() bool { return p.Status().Classes[0].Failures >= maxFailures })
	b.quiet(p)
	after, err := os.Stat(b.templateFile())
	if err != nil || !os.SameFile(before, after) {
		t.Errorf("the template is another one: %v", err)
	}
	mu.Lock()
	full = false
	mu.Unlock()
	p.Refill()
	b.settled(p, 2)
}

// A monitor that is killed in the middle of its restore costs its start nothing but time, and leaves nothing.
func TestKilledInRestore(t *testing.T) {
	t.Run("restored", func(t *testing.T) { testKilledInRestore(t, newBench(t)) })
	t.Run("copied", func(t *testing.T) { testKilledInRestore(t, newCopying(t)) })
}

func testKilledInRestore(t *testing.T, b *bench) {
	b.o.Settings = Settings{}
	p := b.open()
	b.start(p)
	b.await("the template", func() bool { return p.Status().Classes[0].Template })
	b.driver.Fault(func(m *sandboxtest.Machine, call *wire.Call) bool {
		if call.Method == api.MethodConfigure {
			m.Die(errors.New("killed"))
			return true
		}
		return false
	})
	if r := b.start(p); r != nil {
		b.end(p, r)
		t.Error("took a sandbox that has died")
	}
	b.driver.Fault(nil)
	b.quiet(p)
	b.await("the template again", func() bool { return p.Status().Classes[0].Template })
	r := b.start(p)
	if r == nil {
		t.Fatal("nothing to take")
	}
	b.end(p, r)
}

// 200 starts at once against four that are ready: each has one of its own, or is told to boot.
func TestTwoHundredAtOnce(t *testing.T) {
	t.Run("restored", func(t *testing.T) { testTwoHundredAtOnce(t, newBench(t)) })
	t.Run("copied", func(t *testing.T) { testTwoHundredAtOnce(t, newCopying(t)) })
}

func testTwoHundredAtOnce(t *testing.T, b *bench) {
	b.o.Settings = Settings{Min: 4, Max: 4, Memory: 1 << 40}
	p := b.open()
	b.start(p)
	b.settled(p, 4)
	var mu sync.Mutex
	ids, tokens, machines, uids := map[string]bool{}, map[string]bool{}, map[string]bool{}, map[uint32]bool{}
	var taken []*Ready
	var all sync.WaitGroup
	for range 200 {
		all.Go(func() {
			defer p.Begin()()
			r := p.Take(context.Background(), small, nil)
			if r == nil {
				return // it boots
			}
			mine := b.machine(r).Identity()
			mu.Lock()
			defer mu.Unlock()
			taken = append(taken, r)
			if ids[r.Config.VM.ID] || tokens[string(mine.Token)] || machines[mine.MachineID] || uids[r.Config.VM.UID] {
				t.Error("two sandboxes share a part of their identity")
			}
			ids[r.Config.VM.ID], tokens[string(mine.Token)], machines[mine.MachineID], uids[r.Config.VM.UID] = true, true, true, true
		})
	}
	all.Wait()
	if len(taken) < 4 {
		t.Errorf("%d of 200 got a sandbox", len(taken))
	}
	for _, r := range taken {
		b.end(p, r)
	}
}
