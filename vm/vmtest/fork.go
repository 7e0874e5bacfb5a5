package vmtest

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cradlevm/cradle/api/wire"
	"github.com/cradlevm/cradle/vm"
	"github.com/cradlevm/cradle/vm/vmtest/guestapi"
)

// frozen is a frozen VM, in whose guest text is kept.
type frozen struct {
	machine *machine
	config  vm.Config
	source  vm.Source
	text    string
}

// testFork freezes a VM and starts others from it.
func (s *suite) testFork(t *testing.T) {
	if d, ok := s.driver.(vm.Forker); !ok || !d.Forks(within(t)) {
		t.Skip("VMs cannot be copied here")
	}
	f := s.freeze(t, s.config(t))
	t.Run("Two", func(t *testing.T) { testTwo(t, func(t *testing.T) *machine { return s.fork(t, f) }, f.text) })
	t.Run("Plug", func(t *testing.T) {
		m := s.fork(t, f)
		client := m.session()
		testPlug(t, m, client)
		testPause(t, m, client)
	})
	t.Run("Attach", func(t *testing.T) { s.testForkAttach(t, f) })
	t.Run("Many", func(t *testing.T) { s.testForkMany(t, f) })
	t.Run("OtherConfig", func(t *testing.T) { s.testForkOtherConfig(t, f) })
	t.Run("NotForkable", func(t *testing.T) { s.testNotForkable(t, f) })
	t.Run("Again", func(t *testing.T) { s.testForkAgain(t, f) })
	t.Run("Killed", s.testForkKilled)
	t.Run("Savable", s.testFreezeSavable)
	t.Run("Processors", s.testForkProcessors)
	t.Run("End", func(t *testing.T) { s.testForkEnd(t, f) })
}

// freeze makes a frozen VM of a config, which has had a disk and a session.
func (s *suite) freeze(t *testing.T, c vm.Config) frozen {
	f := frozen{config: c, text: strings.Repeat("kept since before the copy ", 30000)}
	f.config.Forkable = true
	if os.Geteuid() == 0 {
		f.config.UID, f.config.GID = 1_900_123_400, 1_900_123_400
	}
	v, err := s.driver.Start(within(t), f.config)
	if err != nil {
		t.Fatal(err)
	}
	m := watched(t, v, f.config)
	freezer := v.(vm.Freezer)
	client := m.session()
	disk := newDisk(t, "BEFORE", 64<<10)
	plug(t, m, disk)
	call(t, client, guestapi.MethodAwait, guestapi.Await{Serial: disk.Serial, Present: true}, nil)
	if err := v.(vm.DiskPlugger).Unplug(within(t), disk.Serial); err != nil {
		t.Fatal(err)
	}
	call(t, client, guestapi.MethodAwait, guestapi.Await{Serial: disk.Serial}, nil)
	call(t, client, guestapi.MethodKeep, guestapi.Print{Text: f.text}, nil)
	client.Close()
	began := time.Now()
	f.source, err = freezer.Freeze(within(t))
	if err != nil {
		t.Fatal(err)
	}
	f.machine = m
	t.Cleanup(func() {
		if err := f.source.Close(); err != nil {
			t.Error(err)
		}
	})
	t.Logf("frozen in %v", time.Since(began).Round(time.Millisecond))
	return f
}

// fork starts a VM from the frozen one, in a directory of its own.
func (s *suite) fork(t *testing.T, f frozen) *machine {
	t.Helper()
	c := forked(t, f)
	v, err := f.source.Restore(within(t), c)
	if err != nil {
		t.Fatal(err)
	}
	return watched(t, v, c)
}

func forked(t *testing.T, f frozen) vm.Config { return another(t, f.config) }

// testForkAttach takes over a copy whose daemon has crashed. The frozen VM ends with the daemon.
func (s *suite) testForkAttach(t *testing.T, f frozen) {
	parent := f.config
	parent.Dir = t.TempDir()
	s.testTakenOver(t, order{Config: forked(t, f), Parent: &parent})
	if _, err := s.driver.Attach(within(t), parent); !errors.Is(err, vm.ErrExited) {
		t.Errorf("the frozen VM, after its daemon was killed: %v, want ErrExited", err)
	}
	checkLeft(t, parent.Dir)
}

// testForkMany makes copies at the same time, each of which must answer and have nothing of the others.
func (s *suite) testForkMany(t *testing.T, f frozen) {
	const many = 8
	var all sync.WaitGroup
	for range many {
		all.Add(1)
		go t.Run("", func(t *testing.T) {
			defer all.Done()
			m := s.fork(t, f)
			client := m.session()
			mine := t.Name()
			call(t, client, guestapi.MethodKeep, guestapi.Print{Text: mine}, nil)
			var was guestapi.Print
			call(t, client, guestapi.MethodKeep, guestapi.Print{}, &was)
			if was.Text != mine {
				t.Errorf("the guest's memory holds %.40q, want %q", was.Text, mine)
			}
			if err := m.Shutdown(within(t)); err != nil {
				t.Error(err)
			}
			m.end()
		})
	}
	all.Wait()
}

func (s *suite) testForkOtherConfig(t *testing.T, f frozen) {
	for name, change := range map[string]func(*vm.Config){
		"more memory":  func(c *vm.Config) { c.Memory += 64 << 20 },
		"another CPU":  func(c *vm.Config) { c.CPUs++ },
		"a disk":       func(c *vm.Config) { c.Disks = []vm.Disk{newDisk(t, "D", 64<<10)} },
		"an interface": func(c *vm.Config) { c.NICs = make([]vm.NIC, 1) },
		"no ID":        func(c *vm.Config) { c.ID = "" },
		"Savable":      func(c *vm.Config) { c.Savable = true },
	} {
		c := forked(t, f)
		change(&c)
		mustFail(t, name, f.source, c, vm.ErrInvalid)
	}
}

// testNotForkable freezes a copy, which is confined as any VM: where that can be done, its copies are the same user's.
func (s *suite) testNotForkable(t *testing.T, f frozen) {
	m := s.fork(t, f)
	call(t, m.session(), guestapi.MethodKeep, guestapi.Print{Text: "second"}, nil)
	// It may have been saved before, and stand still since.
	if err := m.VM.(vm.Pauser).Pause(within(t)); err != nil {
		t.Fatal(err)
	}
	saved, _, err := m.VM.(vm.Checkpointer).Checkpoint(within(t), nil, func(context.Context) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	defer saved.Close()
	source, err := m.VM.(vm.Freezer).Freeze(within(t))
	if errors.Is(err, errors.ErrUnsupported) && os.Geteuid() != 0 {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	c := forked(t, f)
	v, err := source.Restore(within(t), c)
	if err != nil {
		t.Fatal(err)
	}
	again := watched(t, v, c)
	var was guestapi.Print
	call(t, again.session(), guestapi.MethodKeep, guestapi.Print{}, &was)
	if was.Text != "second" {
		t.Errorf("the guest's memory holds %.40q", was.Text)
	}
	c = forked(t, f)
	c.Forkable = true
	mustFail(t, "Forkable", source, c, vm.ErrInvalid)
	if os.Geteuid() == 0 {
		c = forked(t, f)
		c.UID++
		mustFail(t, "another user", source, c, vm.ErrInvalid)
	}
}

// testForkAgain freezes a copy, with disks: a second generation sees what the first one has written, and its disks are its own.
func (s *suite) testForkAgain(t *testing.T, f frozen) {
	c := forked(t, f)
	c.Forkable = true
	v, err := f.source.Restore(within(t), c)
	if err != nil {
		t.Fatal(err)
	}
	m := watched(t, v, c)
	client := m.session()
	layer, scratch := newDisk(t, "LAYER", 64<<10), newDisk(t, "SCRATCH", 64<<10)
	layer.ReadOnly = true
	for _, d := range []vm.Disk{layer, scratch} {
		plug(t, m, d)
		call(t, client, guestapi.MethodAwait, guestapi.Await{Serial: d.Serial, Present: true}, nil)
	}
	write := func(client *wire.Client, text string) {
		call(t, client, guestapi.MethodWrite, guestapi.Extent{Serial: scratch.Serial, Offset: 4096, Length: int64(len(text)), Data: []byte(text)}, nil)
	}
	read := func(client *wire.Client, serial string) string {
		var e guestapi.Extent
		call(t, client, guestapi.MethodRead, guestapi.Extent{Serial: serial, Offset: 4096, Length: 6}, &e)
		return string(e.Data)
	}
	write(client, "parent")
	layered := read(client, layer.Serial)
	client.Close()
	source, err := v.(vm.Freezer).Freeze(within(t))
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	whole, err := os.ReadFile(scratch.Path)
	if err != nil {
		t.Fatal(err)
	}
	mustFail(t, "no disks", source, forked(t, f), vm.ErrInvalid)
	var copies []*machine
	var disks []vm.Disk
	for _, name := range []string{"first ", "second"} {
		c := forked(t, f)
		own := scratch
		own.Path = filepath.Join(t.TempDir(), "scratch")
		if err := os.WriteFile(own.Path, whole, 0o600); err != nil {
			t.Fatal(err)
		}
		c.Disks = []vm.Disk{own, layer}
		v, err := source.Restore(within(t), c)
		if err != nil {
			t.Fatal(err)
		}
		m := watched(t, v, c)
		if got := read(m.session(), scratch.Serial); got != "parent" {
			t.Errorf("the %s copy reads %q from its disk, want what was there", name, got)
		}
		write(m.session(), name)
		copies, disks = append(copies, m), append(disks, own)
	}
	for i, name := range []string{"first ", "second"} {
		client := copies[i].session()
		if got := read(client, scratch.Serial); got != name {
			t.Errorf("the %s copy reads %q from its disk", name, got)
		}
		if got := read(client, layer.Serial); got != layered {
			t.Errorf("the %s copy reads %q from what they share, want %q", name, got, layered)
		}
		b, err := os.ReadFile(disks[i].Path)
		if err != nil || string(b[4096:4102]) != name {
			t.Errorf("the %s copy's disk has %q (%v)", name, b[4096:4102], err)
		}
		if err := copies[i].VM.(vm.DiskPlugger).Unplug(within(t), scratch.Serial); err != nil {
			t.Error(err)
		}
		call(t, client, guestapi.MethodAwait, guestapi.Await{Serial: scratch.Serial}, nil)
		if holds(copies[i].PID(), disks[i].Path) || holds(copies[i].PID(), scratch.Path) {
			t.Errorf("the %s copy still holds an image that was unplugged", name)
		}
	}
	if b, err := os.ReadFile(scratch.Path); err != nil || !bytes.Equal(b, whole) {
		t.Errorf("the frozen VM's disk has changed (%v)", err)
	}
	// The first generation is gone, the second goes on.
	if err := source.Close(); err != nil {
		t.Error(err)
	}
	ping(t, copies[0].session())
}

// testFreezeSavable tries to freeze a VM whose memory copies would share: it goes on.
func (s *suite) testFreezeSavable(t *testing.T) {
	if _, ok := s.driver.(vm.Restorer); !ok {
		t.Skip("no VM is Savable")
	}
	c := s.config(t)
	c.Savable = true
	m := s.start(t, c)
	client := m.session()
	source, err := m.VM.(vm.Freezer).Freeze(within(t))
	if !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("freeze a VM that is Savable: %v, want ErrUnsupported", err)
	}
	if err == nil {
		source.Close()
		return
	}
	ping(t, client)
}

// testForkKilled kills the frozen VM's process.
func (s *suite) testForkKilled(t *testing.T) {
	f := s.freeze(t, s.config(t))
	m := s.fork(t, f)
	syscall.Kill(f.machine.PID(), syscall.SIGKILL)
	if err := f.machine.end(); !errors.Is(err, vm.ErrExited) {
		t.Errorf("a frozen VM whose process was killed: %v, want ErrExited", err)
	}
	ping(t, m.session())
	mustFail(t, "a copy of a VM that was killed", f.source, forked(t, f), vm.ErrExited)
}

// testForkEnd ends the frozen VM: its copies go on, and no more are made.
func (s *suite) testForkEnd(t *testing.T, f frozen) {
	m := s.fork(t, f)
	if err := f.source.Close(); err != nil {
		t.Fatal(err)
	}
	f.machine.end()
	ping(t, m.session())
	mustFail(t, "a copy of a VM that has ended", f.source, forked(t, f), vm.ErrExited)
}
