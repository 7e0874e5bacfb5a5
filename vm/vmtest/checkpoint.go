package vmtest

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cradlevm/cradle/api"
	"github.com/cradlevm/cradle/api/wire"
	"github.com/cradlevm/cradle/vm"
	"github.com/cradlevm/cradle/vm/vmtest/guestapi"
)

// checkpointDisk is the serial of the disk that the checkpointed VMs write to.
const checkpointDisk = "DATA"

// point is a checkpoint: of a VM that had written "v1" to its disk, and kept it in memory.
type point struct {
	saved vm.Saved
	c     vm.Config // of clones, but for their directories and disks
	disk  string    // path of the disk's copy
	count int64     // the guest's counter, not long before
}

// testCheckpoint saves VMs that go on: one that booted, clones of it, one of the second generation.
func (s *suite) testCheckpoint(t *testing.T) {
	c := s.config(t)
	c.NICs = []vm.NIC{{}, {Stream: true}}
	disk := newDisk(t, checkpointDisk, 1<<20)
	c.Disks = []vm.Disk{newDisk(t, "OTHER", 64<<10), disk}
	m := s.start(t, c)
	if _, ok := m.VM.(vm.Checkpointer); !ok {
		t.Skip("the driver has no Checkpointer")
	}
	client := m.session()
	call(t, client, guestapi.MethodAwait, guestapi.Await{Serial: disk.Serial, Present: true}, nil)
	// A disk that comes and goes, so that slots are not what they would be in a new VM.
	gone := newDisk(t, "GONE", 64<<10)
	plug(t, m, gone)
	call(t, client, guestapi.MethodAwait, guestapi.Await{Serial: gone.Serial, Present: true}, nil)
	if err := m.VM.(vm.DiskPlugger).Unplug(within(t), c.Disks[0].Serial); err != nil {
		t.Fatal(err)
	}
	c.Disks = []vm.Disk{disk, gone}
	testRefusedCheckpoints(t, m, client)

	p := s.checkpoint(t, m, client, c, disk.Path)
	t.Run("Clones", func(t *testing.T) { s.testClones(t, p) })
	t.Run("Written", func(t *testing.T) { s.testWritten(t, p) })
	t.Run("OtherDisks", func(t *testing.T) { s.testOtherDisks(t, p) })
	t.Run("Paused", func(t *testing.T) { s.testPausedCheckpoint(t, m, client, p) })
	t.Run("Killed", func(t *testing.T) { s.testKilledCheckpoint(t, p) })
	t.Run("Abandoned", func(t *testing.T) { s.testAbandonedCheckpoint(t) })
	t.Run("Churn", func(t *testing.T) { s.testChurn(t, false) })
	t.Run("Savable", func(t *testing.T) { s.testChurn(t, true) })
	checkCount(t, client, p.count)
}

// copyFile copies a disk's image.
func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// count reads the guest's counter, which an earlier call of it has started.
func count(t *testing.T, client *wire.Client) int64 {
	t.Helper()
	var n int64
	call(t, client, guestapi.MethodCount, nil, &n)
	return n
}

// checkCount checks that the guest's counter goes on, from where it was.
func checkCount(t *testing.T, client *wire.Client, from int64) {
	t.Helper()
	first := count(t, client)
	if first < from {
		t.Errorf("the guest's counter is at %d, and was at %d before", first, from)
	}
	for began := time.Now(); count(t, client) == first; {
		if time.Since(began) > limit {
			t.Fatalf("the guest's counter stays at %d", first)
		}
	}
}

func write(t *testing.T, client *wire.Client, text string) {
	t.Helper()
	call(t, client, guestapi.MethodWrite, guestapi.Extent{Serial: checkpointDisk, Data: contents(text, 300<<10)}, nil)
}

func checkText(t *testing.T, client *wire.Client, text string) {
	t.Helper()
	var e guestapi.Extent
	call(t, client, guestapi.MethodRead, guestapi.Extent{Serial: checkpointDisk, Length: 300 << 10}, &e)
	if string(e.Data) != string(contents(text, 300<<10)) {
		t.Errorf("the disk does not hold %q", text)
	}
}

// checkpoint makes a checkpoint of m, whose configuration is now c, and has m write something else afterwards.
func (s *suite) checkpoint(t *testing.T, m *machine, client *wire.Client, c vm.Config, disk string) point {
	t.Helper()
	p := point{disk: filepath.Join(t.TempDir(), "copy"), c: c}
	write(t, client, "v1")
	call(t, client, guestapi.MethodKeep, guestapi.Print{Text: "v1"}, nil)
	p.count = count(t, client)
	began := time.Now()
	var pause time.Duration
	var err error
	told := 0
	p.saved, pause, err = m.VM.(vm.Checkpointer).Checkpoint(within(t), func(context.Context) error {
		told++
		checkText(t, client, "v1") // the guest runs, and answers
		return nil
	}, func(context.Context) error { return copyFile(disk, p.disk) })
	if err != nil {
		t.Fatal(err)
	}
	if told != 1 {
		t.Errorf("told %d times that it is soon", told)
	}
	t.Cleanup(func() { p.saved.Close() })
	t.Logf("checkpoint in %v, of that %v standing still", time.Since(began).Round(time.Millisecond), pause.Round(100*time.Microsecond))
	if pause <= 0 || pause > time.Since(began) {
		t.Errorf("a pause of %v", pause)
	}
	checkCount(t, client, p.count)
	write(t, client, "v2")
	call(t, client, guestapi.MethodKeep, guestapi.Print{Text: "v2"}, nil)
	checkText(t, client, "v2")
	return p
}

// clone restores p over copies of its disks.
func (s *suite) clone(t *testing.T, p point) (*machine, vm.Config) {
	t.Helper()
	c := p.clone(t)
	v, err := p.saved.Restore(within(t), c)
	if err != nil {
		t.Fatal(err)
	}
	return watched(t, v, c), c
}

// clone is the configuration of a clone.
func (p point) clone(t *testing.T) vm.Config {
	t.Helper()
	c := p.c
	c.Dir, c.Initrd, c.Cmdline = t.TempDir(), "", nil
	c.Savable = false
	c.Disks = nil
	for _, d := range p.c.Disks {
		if d.Serial == checkpointDisk {
			path := filepath.Join(t.TempDir(), "disk")
			if err := copyFile(p.disk, path); err != nil {
				t.Fatal(err)
			}
			d.Path = path
		}
		c.Disks = append([]vm.Disk{d}, c.Disks...) // in another order
	}
	if os.Geteuid() == 0 {
		c.UID, c.GID = 1_900_123_457, 1_900_123_457
	}
	return c
}

// testClones checks that clones are as the VM was and independent of one another and of it, and makes one of a clone.
func (s *suite) testClones(t *testing.T, p point) {
	var both sync.WaitGroup
	for _, mine := range []string{"one", "other"} {
		both.Add(1)
		go t.Run(mine, func(t *testing.T) {
			defer both.Done()
			m, c := s.clone(t, p)
			client := m.session()
			checkClone(t, client, p)
			write(t, client, mine)
			checkText(t, client, mine)
			checkNICs(t, client, c)
			testStream(t, m, client, 1)
			late := newDisk(t, "LATE", 64<<10)
			plug(t, m, late)
			call(t, client, guestapi.MethodAwait, guestapi.Await{Serial: late.Serial, Present: true}, nil)
			if err := m.VM.(vm.DiskPlugger).Unplug(within(t), late.Serial); err != nil {
				t.Error(err)
			}
			if mine == "one" {
				for _, d := range c.Disks {
					if d.Serial == checkpointDisk {
						next := s.checkpoint(t, m, client, c, d.Path)
						m, _ := s.clone(t, next)
						checkClone(t, m.session(), next)
					}
				}
			}
			askEnd(t, client, guestapi.MethodPowerOff)
			if err := m.end(); err != nil {
				t.Errorf("after a power-off: %v", err)
			}
		})
	}
	both.Wait()
}

// checkClone checks that a clone is as the VM was at p.
func checkClone(t *testing.T, client *wire.Client, p point) {
	t.Helper()
	var was guestapi.Print
	call(t, client, guestapi.MethodKeep, guestapi.Print{Text: "clone"}, &was)
	if was.Text != "v1" {
		t.Errorf("the clone's memory holds %.20q, want v1", was.Text)
	}
	checkText(t, client, "v1")
	checkCount(t, client, p.count)
}

// testWritten takes a checkpoint through a directory.
func (s *suite) testWritten(t *testing.T, p point) {
	dir := t.TempDir()
	if err := p.saved.Write(within(t), dir); err != nil {
		t.Fatal(err)
	}
	loaded, err := s.driver.(vm.Restorer).Load(within(t), dir)
	if err != nil {
		t.Fatal(err)
	}
	defer loaded.Close()
	if loaded.Digest() != p.saved.Digest() || len(loaded.Digest()) != 64 {
		t.Errorf("digest %s, and %s once written", p.saved.Digest(), loaded.Digest())
	}
	p.saved = loaded
	m, _ := s.clone(t, p)
	checkClone(t, m.session(), p)
	if err := p.saved.Write(within(t), dir); err == nil {
		t.Error("written where there already is one")
	}
}

func (s *suite) testOtherDisks(t *testing.T, p point) {
	for name, change := range map[string]func(*vm.Config){
		"no disks":     func(c *vm.Config) { c.Disks = nil },
		"other serial": func(c *vm.Config) { c.Disks[0].Serial = "STRANGE" },
	} {
		c := p.clone(t)
		change(&c)
		mustFail(t, name, p.saved, c, vm.ErrInvalid)
	}
}

// testRefusedCheckpoints has checkpoints fail in every way that leaves the VM running, which is all of them.
func testRefusedCheckpoints(t *testing.T, m *machine, client *wire.Client) {
	cp := m.VM.(vm.Checkpointer)
	from := count(t, client)
	refuses := errors.New("the disks cannot be copied")
	if _, _, err := cp.Checkpoint(within(t), func(context.Context) error { return refuses }, nil); !errors.Is(err, refuses) {
		t.Errorf("soon that fails: %v", err)
	}
	if _, _, err := cp.Checkpoint(within(t), nil, func(context.Context) error { return refuses }); !errors.Is(err, refuses) {
		t.Errorf("still refuses: %v", err)
	}
	checkCount(t, client, from)
	ctx, cancel := context.WithCancel(within(t))
	if _, _, err := cp.Checkpoint(ctx, nil, func(ctx context.Context) error {
		cancel()
		return context.Cause(ctx)
	}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled in still: %v", err)
	}
	checkCount(t, client, from)
	for _, after := range []time.Duration{0, time.Millisecond, 20 * time.Millisecond, 80 * time.Millisecond} {
		ctx, cancel := context.WithTimeout(within(t), after)
		if s, _, err := cp.Checkpoint(ctx, nil, func(context.Context) error { return nil }); err == nil {
			s.Close()
		} else if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("cancelled after %v: %v", after, err)
		}
		cancel()
		checkCount(t, client, from)
	}
}

// testPausedCheckpoint checks that a VM that was paused stays so.
func (s *suite) testPausedCheckpoint(t *testing.T, m *machine, client *wire.Client, p point) {
	pauser, ok := m.VM.(vm.Pauser)
	if !ok {
		t.Skip("the driver has no Pauser")
	}
	if err := pauser.Pause(within(t)); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		saved, pause, err := m.VM.(vm.Checkpointer).Checkpoint(within(t), nil, func(context.Context) error { return copyFile(p.path(checkpointDisk), p.disk) })
		if err != nil {
			t.Fatal(err)
		}
		if pause != 0 {
			t.Errorf("a pause of %v", pause)
		}
		defer saved.Close()
		p.saved = saved
		ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
		if err := client.Call(ctx, api.MethodPing, nil, nil); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("ping of a paused VM after a checkpoint: %v, want the deadline", err)
		}
		cancel()
	}
	clone, _ := s.clone(t, p)
	checkCount(t, clone.session(), p.count)
	if err := pauser.Resume(within(t)); err != nil {
		t.Fatal(err)
	}
	checkCount(t, client, p.count)
	write(t, client, "v3")
	checkText(t, client, "v3")
}

// path is where the checkpointed VM has a disk.
func (p point) path(serial string) string {
	for _, d := range p.c.Disks {
		if d.Serial == serial {
			return d.Path
		}
	}
	return ""
}

// testKilledCheckpoint kills a VM in mid-checkpoint.
func (s *suite) testKilledCheckpoint(t *testing.T, p point) {
	m, _ := s.clone(t, p)
	count(t, m.session())
	_, _, err := m.VM.(vm.Checkpointer).Checkpoint(within(t), nil, func(context.Context) error { return m.Kill() })
	if !errors.Is(err, vm.ErrExited) {
		t.Errorf("killed in mid-checkpoint: %v, want ErrExited", err)
	}
	if err := m.end(); err != nil {
		t.Errorf("after Kill: %v", err)
	}
}

// testAbandonedCheckpoint takes over a VM whose daemon has crashed while it stood still for a checkpoint.
func (s *suite) testAbandonedCheckpoint(t *testing.T) {
	c := s.config(t)
	// It is checkpointed while it boots. Its console is to tell how far it came, should it not come further.
	c.Cmdline = append(c.Cmdline, "ignore_loglevel")
	pid := startElsewhere(t, order{Config: c, Checkpoint: true})
	v, err := s.driver.Attach(within(t), c)
	if err != nil {
		syscall.Kill(pid, syscall.SIGKILL)
		t.Fatal(err)
	}
	m := watched(t, v, c)
	checkCount(t, m.session(), 0)
	saved, _, err := m.VM.(vm.Checkpointer).Checkpoint(within(t), nil, func(context.Context) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	saved.Close()
	if err := m.Kill(); err != nil {
		t.Error(err)
	}
	m.end()
}
