package vmtest

import (
	"bufio"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/cradlevm/cradle/vm"
	"github.com/cradlevm/cradle/vm/vmtest/guestapi"
)

// Numbers of what is given back, in bytes. Linux reports nothing while less than some 64 MiB are free (docs/architecture.md), and nothing of what is
// free in pieces below 2 MiB.
const (
	filledMemory = 200 << 20
	mostFilled   = filledMemory - 80<<20
)

// testGiveBack checks that what a guest frees is the host's again, however the guest came to be.
func (s *suite) testGiveBack(t *testing.T) {
	c := s.config(t)
	c.Memory = 384 << 20
	t.Run("Booted", func(t *testing.T) { testGivesBack(t, s.start(t, c)) })
	r, ok := s.driver.(vm.Restorer)
	if !ok {
		t.Skip("the driver has no Restorer")
	}
	c.Dir, c.Savable = t.TempDir(), true
	tm := template{dir: t.TempDir(), config: c}
	m := s.start(t, c)
	t.Run("Savable", func(t *testing.T) { testGivesBack(t, m) })
	if err := m.VM.(vm.Snapshotter).Snapshot(within(t), tm.dir); err != nil {
		t.Fatal(err)
	}
	end(t, m)
	var err error
	if tm.saved, err = r.Load(within(t), tm.dir); err != nil {
		t.Fatal(err)
	}
	defer tm.saved.Close()
	t.Run("Restored", func(t *testing.T) { testGivesBack(t, s.restore(t, tm)) })
	t.Run("Copied", func(t *testing.T) { s.testCopyGivesBack(t, tm) })
	// What is given back by one is not taken from the template, nor put there.
	t.Run("RestoredAgain", func(t *testing.T) { testGivesBack(t, s.restore(t, tm)) })
}

// testCopyGivesBack does so with copies of a restored VM.
func (s *suite) testCopyGivesBack(t *testing.T, tm template) {
	if d, ok := s.driver.(vm.Forker); !ok || !d.Forks(within(t)) {
		t.Skip("VMs cannot be copied here")
	}
	c := s.restored(t, tm)
	c.Forkable = true
	v, err := tm.saved.Restore(within(t), c)
	if err != nil {
		t.Fatal(err)
	}
	client := watched(t, v, c).session()
	ping(t, client)
	client.Close()
	source, err := v.(vm.Freezer).Freeze(within(t))
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	for range 2 { // the second is what the first was
		copied := another(t, c)
		v, err := source.Restore(within(t), copied)
		if err != nil {
			t.Fatal(err)
		}
		testGivesBack(t, watched(t, v, copied))
	}
}

// testGivesBack has the guest take memory and free it. The rest of its memory must stay as it was.
func testGivesBack(t *testing.T, m *machine) {
	client := m.session()
	text := strings.Repeat("kept while other memory is given back ", 30000)
	call(t, client, guestapi.MethodKeep, guestapi.Print{Text: text}, nil)
	checkChurn(t, client)
	before := privateMemory(t, m.PID())
	call(t, client, guestapi.MethodFill, filledMemory, nil)
	full := privateMemory(t, m.PID())
	if full < before+filledMemory/2 { // some of it was the monitor's before: what the guest had used when it booted
		t.Fatalf("the guest filled %d bytes, of which its monitor's memory grew from %d to %d", filledMemory, before, full)
	}
	call(t, client, guestapi.MethodFill, 0, nil)
	began := time.Now()
	now := full
	for now > full-mostFilled {
		if time.Since(began) > limit {
			t.Fatalf("the guest freed %d bytes, of which its monitor has given back %d", filledMemory, full-now)
		}
		time.Sleep(50 * time.Millisecond)
		now = privateMemory(t, m.PID())
	}
	t.Logf("private memory of %d MiB was %d with %d filled, and was %d after %v", before>>20, full>>20, filledMemory>>20, now>>20,
		time.Since(began).Round(100*time.Millisecond))
	call(t, client, guestapi.MethodFill, filledMemory, nil) // some of it has been given back
	checkChurn(t, client)
	var was guestapi.Print
	call(t, client, guestapi.MethodKeep, guestapi.Print{}, &was)
	if was.Text != text {
		t.Error("what the guest kept has changed")
	}
	call(t, client, guestapi.MethodFill, 0, nil)
}

// privateMemory is how much memory a process has that it would leave free, in bytes: the pages that nobody else has, and have been written to.
func privateMemory(t *testing.T, pid int) int64 {
	t.Helper()
	f, err := os.Open(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		var kib int64
		if n, _ := fmt.Sscanf(lines.Text(), "Private_Dirty: %d kB", &kib); n == 1 {
			return kib << 10
		}
	}
	t.Fatalf("%s tells nothing of private memory", f.Name())
	return 0
}
