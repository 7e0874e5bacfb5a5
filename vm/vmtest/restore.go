package vmtest

import (
	"crypto/sha256"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cradlevm/cradle/vm"
	"github.com/cradlevm/cradle/vm/vmtest/guestapi"
)

// template is a saved VM, in whose guest text is kept.
type template struct {
	dir    string
	config vm.Config
	saved  vm.Saved
	text   string
}

// testRestore saves a VM and starts others from it.
func (s *suite) testRestore(t *testing.T) {
	r, ok := s.driver.(vm.Restorer)
	if !ok {
		t.Skip("the driver has no Restorer")
	}
	tm := s.save(t, r)
	before := digests(t, tm.dir)
	t.Run("Two", func(t *testing.T) { testTwo(t, func(t *testing.T) *machine { return s.restore(t, tm) }, tm.text) })
	t.Run("Plug", func(t *testing.T) { s.testRestoredPlug(t, tm) })
	t.Run("Attach", func(t *testing.T) { s.testRestoredAttach(t, tm) })
	t.Run("Network", func(t *testing.T) { s.testRestoredNetwork(t, tm) })
	t.Run("OtherConfig", func(t *testing.T) { testOtherConfig(t, s, tm) })
	t.Run("Damaged", func(t *testing.T) { s.testDamaged(t, r, tm) })
	t.Run("NotSavable", func(t *testing.T) { s.testNotSavable(t) })
	for name, sum := range digests(t, tm.dir) {
		if sum != before[name] {
			t.Errorf("%s has changed since it was saved", name)
		}
	}
}

// save makes the template: its VM has had a disk and a session.
func (s *suite) save(t *testing.T, r vm.Restorer) template {
	tm := template{dir: t.TempDir(), config: s.config(t), text: strings.Repeat("kept since before the snapshot ", 30000)}
	tm.config.Savable = true
	tm.config.NICs = make([]vm.NIC, 2) // connected to nothing
	m := s.start(t, tm.config)
	client := m.session()
	disk := newDisk(t, "BEFORE", 64<<10)
	plug(t, m, disk)
	call(t, client, guestapi.MethodAwait, guestapi.Await{Serial: disk.Serial, Present: true}, nil)
	saver := m.VM.(vm.Snapshotter)
	if err := saver.Snapshot(within(t), tm.dir); !errors.Is(err, vm.ErrInvalid) {
		t.Errorf("saving a VM with a disk: %v, want ErrInvalid", err)
	}
	if err := m.VM.(vm.DiskPlugger).Unplug(within(t), disk.Serial); err != nil {
		t.Fatal(err)
	}
	call(t, client, guestapi.MethodAwait, guestapi.Await{Serial: disk.Serial}, nil)
	call(t, client, guestapi.MethodKeep, guestapi.Print{Text: tm.text}, nil)
	client.Close()
	began := time.Now()
	if err := saver.Snapshot(within(t), tm.dir); err != nil {
		t.Fatal(err)
	}
	saved := time.Now()
	if err := m.Kill(); err != nil {
		t.Fatal(err)
	}
	m.end()
	began2 := time.Now()
	var err error
	if tm.saved, err = r.Load(within(t), tm.dir); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tm.saved.Close() })
	t.Logf("save %v, load %v", saved.Sub(began).Round(time.Millisecond), time.Since(began2).Round(time.Millisecond))
	return tm
}

func plug(t *testing.T, m *machine, d vm.Disk) {
	t.Helper()
	p, ok := m.VM.(vm.DiskPlugger)
	if !ok {
		t.Skip("the driver has no DiskPlugger")
	}
	if err := p.Plug(within(t), d); err != nil {
		t.Fatal(err)
	}
}

// digests hashes the files of a directory.
func digests(t *testing.T, dir string) map[string][32]byte {
	t.Helper()
	sums := map[string][32]byte{}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		f, err := os.Open(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		h := sha256.New()
		if _, err := io.Copy(h, f); err != nil {
			t.Fatal(err)
		}
		f.Close()
		sums[e.Name()] = [32]byte(h.Sum(nil))
	}
	return sums
}

// restore starts a VM from the template, in a directory of its own.
func (s *suite) restore(t *testing.T, tm template) *machine {
	t.Helper()
	c := s.restored(t, tm)
	v, err := tm.saved.Restore(within(t), c)
	if err != nil {
		t.Fatal(err)
	}
	return watched(t, v, c)
}

func (s *suite) restored(t *testing.T, tm template) vm.Config { return another(t, tm.config) }

// another is c for a VM that goes on from one of it: in a directory of its own, as a user with no right to anything.
func another(t *testing.T, c vm.Config) vm.Config {
	c.Dir, c.Savable, c.Forkable, c.Initrd, c.Cmdline = t.TempDir(), false, false, "", nil
	c.NICs = slices.Clone(c.NICs)
	if os.Geteuid() == 0 {
		c.UID, c.GID = 1_900_123_456, 1_900_123_456
	}
	return c
}

// testTwo checks that what two VMs that begin starts write is their own, and that both see the text that was kept before.
func testTwo(t *testing.T, begin func(*testing.T) *machine, text string) {
	var both sync.WaitGroup
	for _, mine := range []string{"one", "other"} {
		both.Add(1)
		go t.Run(mine, func(t *testing.T) {
			defer both.Done()
			began := time.Now()
			m := begin(t)
			begun := time.Since(began)
			client := m.session()
			ping(t, client)
			t.Logf("begun in %v, answered after %v", begun.Round(time.Millisecond), time.Since(began).Round(time.Millisecond))
			var was guestapi.Print
			call(t, client, guestapi.MethodKeep, guestapi.Print{Text: mine}, &was)
			if was.Text != text {
				t.Errorf("the guest's memory holds %.40q… of %d bytes, not what was kept", was.Text, len(was.Text))
			}
			call(t, client, guestapi.MethodKeep, guestapi.Print{Text: mine}, &was)
			if was.Text != mine {
				t.Errorf("the guest's memory holds %.40q, want %q", was.Text, mine)
			}
			askEnd(t, client, guestapi.MethodPowerOff)
			if err := m.end(); err != nil {
				t.Errorf("after a power-off: %v", err)
			}
		})
	}
	both.Wait()
}

func (s *suite) testRestoredPlug(t *testing.T, tm template) {
	m := s.restore(t, tm)
	client := m.session()
	testPlug(t, m, client)
	testPause(t, m, client)
}

// testRestoredAttach takes over a restored VM whose daemon has crashed.
func (s *suite) testRestoredAttach(t *testing.T, tm template) {
	s.testTakenOver(t, order{Config: s.restored(t, tm), Saved: tm.dir})
}

func testOtherConfig(t *testing.T, s *suite, tm template) {
	for name, change := range map[string]func(*vm.Config){
		"more memory":   func(c *vm.Config) { c.Memory += 64 << 20 },
		"another CPU":   func(c *vm.Config) { c.CPUs++ },
		"a disk":        func(c *vm.Config) { c.Disks = []vm.Disk{newDisk(t, "D", 64<<10)} },
		"one interface": func(c *vm.Config) { c.NICs = c.NICs[:1] },
		"no ID":         func(c *vm.Config) { c.ID = "" },
	} {
		c := s.restored(t, tm)
		change(&c)
		mustFail(t, name, tm.saved, c, vm.ErrInvalid)
	}
}

// mustFail checks that a restore fails for a reason, and leaves nothing.
func mustFail(t *testing.T, name string, saved vm.Source, c vm.Config, want error) {
	t.Helper()
	began := time.Now()
	v, err := saved.Restore(within(t), c)
	if err == nil {
		v.Kill()
		t.Errorf("%s: restored", name)
		return
	}
	t.Logf("%s: %v (after %v)", name, err, time.Since(began).Round(time.Millisecond))
	if !errors.Is(err, want) {
		t.Errorf("%s: want %v", name, want)
	}
	if entries, _ := os.ReadDir(c.Dir); len(entries) != 0 {
		t.Errorf("%s: left behind: %v", name, entries)
	}
}

// testDamaged loads and restores what is not whole: an error of either's, and nothing left.
func (s *suite) testDamaged(t *testing.T, r vm.Restorer, tm template) {
	for file := range digests(t, tm.dir) {
		whole, err := os.ReadFile(filepath.Join(tm.dir, file))
		if err != nil {
			t.Fatal(err)
		}
		flipped := append([]byte(nil), whole...)
		flipped[len(flipped)/3] ^= 0x10
		for name, content := range map[string][]byte{
			"empty": nil, "cut": whole[:len(whole)/2], "noise": contents("noise", len(whole)), "flipped": flipped,
		} {
			name = file + " " + name
			dir := t.TempDir()
			for other := range digests(t, tm.dir) {
				if err := os.Link(filepath.Join(tm.dir, other), filepath.Join(dir, other)); err != nil {
					t.Fatal(err)
				}
			}
			os.Remove(filepath.Join(dir, file))
			if err := os.WriteFile(filepath.Join(dir, file), content, 0o600); err != nil {
				t.Fatal(err)
			}
			saved, err := r.Load(within(t), dir)
			if err != nil {
				t.Logf("%s: %v", name, err)
				continue
			}
			if saved.Digest() == tm.saved.Digest() {
				t.Errorf("%s: the same digest", name)
			}
			c := s.restored(t, tm)
			// Of other contents only the digest can tell; but of what the monitor reads, it must survive everything.
			if v, err := saved.Restore(within(t), c); err == nil {
				watched(t, v, c)
			} else {
				t.Logf("%s: %v", name, err)
				if entries, _ := os.ReadDir(c.Dir); len(entries) != 0 {
					t.Errorf("%s: left behind: %v", name, entries)
				}
			}
			saved.Close()
		}
	}
	if saved, err := r.Load(within(t), t.TempDir()); err == nil {
		saved.Close()
		t.Error("loaded an empty directory")
	}
}

func (s *suite) testNotSavable(t *testing.T) {
	m := s.start(t, s.config(t))
	if err := m.VM.(vm.Snapshotter).Snapshot(within(t), t.TempDir()); !errors.Is(err, vm.ErrInvalid) {
		t.Errorf("saving a VM that is not Savable: %v, want ErrInvalid", err)
	}
	c := s.config(t)
	c.Savable, c.Disks = true, []vm.Disk{newDisk(t, "D", 64<<10)}
	if v, err := s.driver.Start(within(t), c); !errors.Is(err, vm.ErrInvalid) {
		if err == nil {
			v.Kill()
		}
		t.Errorf("Savable with disks: %v, want ErrInvalid", err)
	}
}
