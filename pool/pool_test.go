package pool

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cradlevm/cradle/api"
	"github.com/cradlevm/cradle/guestos"
	"github.com/cradlevm/cradle/sandbox/sandboxtest"
	"github.com/cradlevm/cradle/snapshot"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// patience is for what takes milliseconds.
const patience = 30 * time.Second

var small = Class{CPUs: 1, Memory: 128 << 20}

// private is what a ready one has for itself, as the pool is told.
const private = 30 << 20

// clock stands still but for what a test makes it do.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

// later puts the clock forward.
func (c *clock) later(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// bench is a pool on machines that are goroutines.
type bench struct {
	t      *testing.T
	driver *sandboxtest.Driver
	o      Options
	clock  *clock
	// available is the host's memory as the pool is told.
	available atomic.Int64

	mu   sync.Mutex
	uids map[uint32]bool
}

// noop reads its standard input to the end, as the real one does.
func noop(p *sandboxtest.Process) int {
	io.Copy(io.Discard, p.Stdin)
	return 0
}

func newBench(t *testing.T) *bench {
	b := &bench{t: t, driver: sandboxtest.New(), uids: map[uint32]bool{}, clock: &clock{now: time.Unix(1_000_000_000, 0)}}
	b.available.Store(32 << 30)
	b.driver.Programs["noop"] = noop
	b.o = Options{
		Dir: filepath.Join(t.TempDir(), "templates"), Run: t.TempDir(), Scratch: t.TempDir(), Driver: b.driver,
		Settings: Settings{Min: 2, Max: 2, Memory: 1 << 40}, Usual: small, Now: b.clock.Now,
		Host: Host{
			Memory:  func() (int64, int64, error) { return 64 << 30, b.available.Load(), nil },
			Private: func(int) (int64, error) { return private, nil },
		},
		Guest: guestos.Guest{Kernel: "kernel", Digest: "one"},
		Warm: Warm{
			Request: api.CreateRequest{Spec: &specs.Spec{Process: &specs.Process{}, Linux: &specs.Linux{}}},
			Scratch: func(_ context.Context, path string) error { return os.WriteFile(path, nil, 0o600) },
		},
		TakeUID: b.takeUID, GiveUID: b.giveUID,
		Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	}
	return b
}

func (b *bench) takeUID() uint32 {
	b.mu.Lock()
	defer b.mu.Unlock()
	for uid := uint32(1000); ; uid++ {
		if !b.uids[uid] {
			b.uids[uid] = true
			return uid
		}
	}
}

func (b *bench) giveUID(uid uint32) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.uids[uid] {
		b.t.Errorf("user id %d given back twice", uid)
	}
	delete(b.uids, uid)
}

// open opens the pool. At the test's end it is closed and nothing may be left but what was taken.
func (b *bench) open() *Pool {
	b.t.Helper()
	p, err := Open(context.Background(), b.o)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { b.close(p) })
	return p
}

func (b *bench) close(p *Pool) {
	if err := p.Close(); err != nil {
		b.t.Error(err)
	}
	if n := len(b.driver.Running()); n != 0 {
		b.t.Errorf("%d machines are left", n)
	}
	if entries, _ := os.ReadDir(b.o.Run); len(entries) != 0 {
		b.t.Errorf("left: %v", entries)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.uids) != 0 {
		b.t.Errorf("user ids not given back: %v", b.uids)
	}
}

// start is a start of a container, as the node does it.
func (b *bench) start(p *Pool) *Ready {
	end := p.Begin()
	r := p.Take(context.Background(), small, nil)
	end()
	b.clock.later(grace)
	p.nudge()
	return r
}

// end is the end of a container.
func (b *bench) end(p *Pool, r *Ready) {
	b.t.Helper()
	if err := p.destroy(r); err != nil {
		b.t.Error(err)
	}
}

// machine is the machine behind a sandbox.
func (b *bench) machine(r *Ready) *sandboxtest.Machine { return b.driver.Machine(r.Config.VM.ID) }

func (b *bench) await(what string, done func() bool) {
	b.t.Helper()
	for began := time.Now(); !done(); time.Sleep(time.Millisecond) {
		if time.Since(began) > patience {
			b.t.Fatal("in vain waited for:", what)
		}
	}
}

func ready(p *Pool, n int) func() bool {
	return func() bool {
		for _, s := range p.Status().Classes {
			if s.Class == small {
				return s.Ready == n
			}
		}
		return n == 0
	}
}

// filled opens a pool and waits until it has what it wants.
func (b *bench) filled() *Pool {
	b.t.Helper()
	p := b.open()
	if r := b.start(p); r != nil {
		b.t.Fatal("took something from nothing")
	}
	b.await("two ready", ready(p, 2))
	return p
}

func TestTake(t *testing.T) {
	b := newBench(t)
	p := b.filled()
	var taken []*Ready
	for range 3 {
		r := b.start(p)
		if r == nil {
			t.Fatal("nothing to take")
		}
		taken = append(taken, r)
	}
	if !taken[0].Warm || !taken[1].Warm {
		t.Error("what was ready is not warm")
	}
	for i, r := range taken {
		m := b.machine(r)
		if !m.Bare() {
			t.Errorf("sandbox %d comes with disks or containers", i)
		}
		mine := m.Identity()
		if len(mine.Seed) != 64 || !bytes.Equal(mine.Token, r.Config.Token[:]) || mine.MachineID == "" || mine.UnixNanos == 0 {
			t.Errorf("sandbox %d has the identity %+v", i, mine)
		}
		for _, other := range taken[:i] {
			its := b.machine(other).Identity()
			if bytes.Equal(mine.Seed, its.Seed) || bytes.Equal(mine.Token, its.Token) || mine.MachineID == its.MachineID || r.Config.VM.UID == other.Config.VM.UID {
				t.Error("two sandboxes share a part of their identity")
			}
		}
	}
	b.await("two ready again", ready(p, 2))
	for _, r := range taken {
		b.end(p, r)
	}
}

func TestTemplateStays(t *testing.T) {
	b := newBench(t)
	b.close(b.filled())
	booted := b.driver.Started()
	b.o.Settings = Settings{} // nothing is made ready beside it
	p := b.open()
	r := b.start(p)
	if r == nil || r.Warm {
		t.Fatalf("took %+v; want one restored on the spot", r)
	}
	if n := b.driver.Started() - booted; n != 1 {
		t.Errorf("%d machines started for it", n)
	}
	b.end(p, r)
}

// A template that nobody has loaded for a week goes; one that is loaded stays for another.
func TestUnusedTemplate(t *testing.T) {
	b := newBench(t)
	b.close(b.filled())
	all, err := filepath.Glob(filepath.Join(b.o.Dir, "*", snapshot.ManifestName))
	if err != nil || len(all) != 1 {
		t.Fatalf("templates: %v, %v", all, err)
	}
	age := func(by time.Duration) {
		then := time.Now().Add(-by)
		if err := os.Chtimes(all[0], then, then); err != nil {
			t.Fatal(err)
		}
	}
	b.o.Settings = Settings{}
	age(keepUnused - time.Hour)
	p := b.open()
	b.end(p, b.start(p))
	b.close(p)
	if fi, err := os.Stat(all[0]); err != nil || time.Since(fi.ModTime()) > time.Hour {
		t.Errorf("its use was not noted: %v", err)
	}
	age(-1000 * time.Hour) // the clock was wrong then
	b.close(b.open())
	if fi, err := os.Stat(all[0]); err != nil || time.Until(fi.ModTime()) > 0 {
		t.Errorf("it is kept until a time that the clock was wrong about: %v", err)
	}
	age(keepUnused + time.Hour)
	b.close(b.open())
	if _, err := os.Stat(filepath.Dir(all[0])); !os.IsNotExist(err) {
		t.Errorf("it is still there: %v", err)
	}
}

func TestStartsComeFirst(t *testing.T) {
	b := newBench(t)
	p := b.open()
	end := p.Begin()
	if p.Take(context.Background(), small, nil) != nil {
		t.Fatal("took something from nothing")
	}
	b.clock.later(time.Minute)
	if p.next(p.now()) != nil {
		t.Error("there is something to do during a start")
	}
	end()
	end() // of no effect
	b.clock.later(grace / 2)
	if p.next(p.now()) != nil {
		t.Error("there is something to do right after a start")
	}
	b.clock.later(grace / 2)
	p.nudge()
	b.await("two ready", ready(p, 2))
}

func TestIdle(t *testing.T) {
	b := newBench(t)
	p := b.filled()
	b.clock.later(idleAfter + time.Second)
	p.nudge()
	b.await("the end of what nobody wants", func() bool { return ready(p, 0)() && len(b.driver.Running()) == 0 })
	if p.Status().Classes[0].Template {
		t.Error("the template is still in memory")
	}
}

func TestBudget(t *testing.T) {
	b := newBench(t)
	b.o.Settings = Settings{Min: 4, Max: 8, Memory: 4 * private}
	p := b.open()
	b.start(p)
	// Three, and the template, which has a size on the disk.
	b.settled(p, 3)
	if err := p.Set(Settings{Min: 1, Max: 8, Memory: 2 * private}); err != nil {
		t.Fatal(err)
	}
	b.settled(p, 1)
}

// A host that is short of memory gets it back, and nothing new is made until there is plenty.
func TestShortMemory(t *testing.T) {
	b := newBench(t)
	p := b.filled()
	b.available.Store(floor(64<<30) - 1)
	p.nudge()
	b.settled(p, 0)
	b.available.Store(floor(64<<30) + 1)
	p.nudge()
	b.settled(p, 0)
	b.available.Store(32 << 30)
	p.nudge()
	b.settled(p, 2)
}

// As many are ready as were wanted in the busiest seconds, within minimum and maximum, and they go when those are
// forgotten.
func TestDemand(t *testing.T) {
	b := newBench(t)
	b.o.Settings = Settings{Min: 1, Max: 5, Memory: 1 << 40}
	p := b.open()
	b.start(p)
	b.settled(p, 1)
	burst := func(n int) {
		t.Helper()
		b.clock.later(demandSlot) // so that they fall into one slot
		b.clock.mu.Lock()
		b.clock.now = b.clock.now.Truncate(demandSlot)
		b.clock.mu.Unlock()
		end := p.Begin()
		for range n {
			r := p.Take(context.Background(), small, nil)
			if r == nil {
				t.Fatal("nothing to take")
			}
			b.end(p, r)
		}
		end()
		b.clock.later(grace)
		p.nudge()
	}
	burst(3)
	b.settled(p, 3)
	burst(9)
	b.settled(p, 5)
	b.clock.later(demandSlot*demandSlots + time.Second)
	p.nudge()
	b.settled(p, 1)
}

// While a start is in progress one is made at a time, and only of a size that has run out.
func TestFillDuringStarts(t *testing.T) {
	b := newBench(t)
	p := b.filled()
	end := p.Begin()
	first := p.Take(context.Background(), small, nil)
	b.quiet(p)
	if n := b.driver.Started(); n != 3 { // the template's and two ready ones
		t.Errorf("%d machines were started although there is one ready", n)
	}
	second := p.Take(context.Background(), small, nil)
	b.await("one ready", ready(p, 1))
	b.quiet(p)
	if n := b.driver.Started(); n != 4 {
		t.Errorf("%d machines were started", n)
	}
	end()
	b.clock.later(grace)
	p.nudge()
	b.settled(p, 2)
	b.end(p, first)
	b.end(p, second)
}

// The usual size is there without having been asked for, and stays.
func TestKeep(t *testing.T) {
	b := newBench(t)
	b.o.Keep = true
	p := b.open()
	b.clock.later(grace)
	b.settled(p, 2)
	b.clock.later(2 * idleAfter)
	p.nudge()
	b.settled(p, 2)
}

func TestDrainAndRefill(t *testing.T) {
	b := newBench(t)
	p := b.filled()
	p.Drain()
	b.settled(p, 0)
	if n := len(b.driver.Running()); n != 0 {
		t.Errorf("%d machines run after draining", n)
	}
	p.Refill()
	b.settled(p, 2)
	for _, bad := range []Settings{{Min: -1}, {Min: 2, Max: 1}, {Max: MaxReady + 1}, {Memory: -1}} {
		if p.Set(bad) == nil {
			t.Errorf("%+v was taken", bad)
		}
	}
}

// Failures end the attempts, but not for ever.
func TestTriedAgain(t *testing.T) {
	b := newBench(t)
	b.driver.FailRestore(errors.New("no"))
	p := b.open()
	b.start(p)
	b.await("the end of attempts", func() bool { return p.Status().Classes[0].Failures >= maxFailures })
	b.quiet(p)
	b.driver.FailRestore(nil)
	b.clock.later(failurePause)
	p.nudge()
	b.settled(p, 2)
}

// quiet waits until the pool has nothing to do.
func (b *bench) quiet(p *Pool) {
	b.t.Helper()
	b.await("quiet", func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		busy := p.providing || len(p.wake) > 0
		for _, c := range p.classes {
			busy = busy || c.filling > 0
		}
		return !busy
	})
}

// settled waits until so many are ready and the pool has nothing to do.
func (b *bench) settled(p *Pool, n int) {
	b.t.Helper()
	b.await("so many ready: "+strconv.Itoa(n), ready(p, n))
	b.quiet(p)
	if !ready(p, n)() {
		b.t.Errorf("the pool has %+v; want %d ready", p.Status(), n)
	}
}

func TestReadyOneDies(t *testing.T) {
	b := newBench(t)
	p := b.filled()
	b.driver.Running()[0].Die(errors.New("killed"))
	b.await("the dead one forgotten", func() bool {
		entries, err := os.ReadDir(b.o.Run)
		return err == nil && len(entries) == 2 && ready(p, 2)() && len(b.driver.Running()) == 2
	})
}

// templateFile is the saved machine of the one template there is.
func (b *bench) templateFile() string {
	b.t.Helper()
	all, err := filepath.Glob(filepath.Join(b.o.Dir, "*", "saved"))
	if err != nil || len(all) != 1 {
		b.t.Fatalf("templates: %v, %v", all, err)
	}
	return all[0]
}

func TestDamagedTemplate(t *testing.T) {
	b := newBench(t)
	b.close(b.filled())
	if err := os.WriteFile(b.templateFile(), []byte("a changed machine"), 0o600); err != nil {
		t.Fatal(err)
	}
	p := b.open()
	if r := b.start(p); r != nil {
		b.end(p, r)
		t.Fatal("took a sandbox of a damaged template")
	}
	b.await("another template", ready(p, 2))
	if text, err := os.ReadFile(b.templateFile()); err != nil || string(text) != "a saved machine" {
		t.Errorf("the template is %q, %v", text, err)
	}
}

func TestOthersTemplates(t *testing.T) {
	for name, change := range map[string]func(*bench){
		"another guest":        func(b *bench) { b.o.Guest.Digest = "two" },
		"another monitor":      func(b *bench) { b.driver.Upgrade("two") },
		"another installation": func(b *bench) { os.Remove(filepath.Join(b.o.Dir, keyName)) },
		"unfinished": func(b *bench) {
			dir := filepath.Dir(b.templateFile())
			os.Rename(dir, filepath.Join(filepath.Dir(dir), ".new-1"))
			os.Remove(filepath.Join(filepath.Dir(dir), ".new-1", snapshot.ManifestName))
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			b.close(b.filled())
			change(b)
			p := b.open()
			if all, _ := filepath.Glob(filepath.Join(b.o.Dir, "*", "*")); len(all) != 0 {
				t.Errorf("left of it: %v", all)
			}
			if r := b.start(p); r != nil {
				b.end(p, r)
				t.Error("took a sandbox of it")
			}
		})
	}
}

// A monitor that is upgraded while the daemon runs finds nothing of its predecessor's, nothing that is ready is its predecessor's, and
// what it makes is known as its own.
func TestUpgradedMonitor(t *testing.T) {
	t.Run("restored", func(t *testing.T) { testUpgradedMonitor(t, newBench(t)) })
	t.Run("copied", func(t *testing.T) { testUpgradedMonitor(t, newCopying(t)) })
}

func testUpgradedMonitor(t *testing.T, b *bench) {
	p := b.open()
	b.start(p)
	b.settled(p, 2)
	old := map[*sandboxtest.Machine]bool{}
	for _, m := range b.driver.Running() {
		old[m] = true
	}
	p.renew() // of no effect
	b.settled(p, 2)
	for _, m := range b.driver.Running() {
		if !old[m] {
			t.Error("made anew for nothing")
		}
	}
	b.driver.Upgrade("two")
	p.renew()
	p.nudge()
	b.settled(p, 2)
	b.await("the end of all that the old monitor runs", func() bool {
		return !slices.ContainsFunc(b.driver.Running(), func(m *sandboxtest.Machine) bool { return old[m] })
	})
	b.close(p)
	again := b.open()
	if r := b.start(again); r == nil {
		t.Error("the new monitor's template is not taken for its own")
	} else {
		b.end(again, r)
	}
	if all, _ := filepath.Glob(filepath.Join(b.o.Dir, "*", "manifest")); len(all) != 1 {
		t.Errorf("templates: %v", all)
	}
}

// TestSwapped: a template under another one's name is not used.
func TestSwapped(t *testing.T) {
	b := newBench(t)
	p := b.filled()
	other := Class{CPUs: 2, Memory: 256 << 20}
	current, err := p.store.current(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(p.store.path(current, other), os.DirFS(p.store.path(current, small))); err != nil {
		t.Fatal(err)
	}
	if _, err := p.store.load(context.Background(), other); err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("loading it: %v", err)
	}
}

func TestRestoreFails(t *testing.T) {
	b := newBench(t)
	p := b.filled()
	b.driver.FailRestore(errors.New("no"))
	for range 2 {
		b.end(p, b.start(p))
	}
	// Each failure throws the template away and makes another, until it is given up.
	b.await("the end of attempts", func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.classes[small].failures >= maxFailures
	})
	if r := b.start(p); r != nil {
		b.end(p, r)
		t.Error("took a sandbox that cannot be restored")
	}
	if p.next(p.now()) != nil {
		t.Error("it is still being tried")
	}
}

func TestWarmingFails(t *testing.T) {
	b := newBench(t)
	delete(b.driver.Programs, "noop")
	p := b.open()
	if b.start(p) != nil {
		t.Fatal("took something from nothing")
	}
	b.await("the end of attempts", func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.classes[small].failures >= maxFailures
	})
}

func TestManyTake(t *testing.T) {
	b := newBench(t)
	p := b.filled()
	var all sync.WaitGroup
	var mu sync.Mutex
	seen := map[string]bool{}
	for range 50 {
		all.Go(func() {
			r := b.start(p)
			if r == nil {
				t.Error("nothing to take")
				return
			}
			mu.Lock()
			if seen[r.Config.VM.ID] {
				t.Error("one sandbox taken twice")
			}
			seen[r.Config.VM.ID] = true
			mu.Unlock()
			b.end(p, r)
		})
	}
	all.Wait()
}
