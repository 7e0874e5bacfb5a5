package vmtest

import (
	"context"
	"testing"
	"time"

	"github.com/cradlevm/cradle/api/wire"
	"github.com/cradlevm/cradle/vm"
	"github.com/cradlevm/cradle/vm/vmtest/guestapi"
)

// churnRounds is how many checkpoints are made of a guest that writes to its memory all the time.
const churnRounds = 3

// testChurn makes checkpoints of a VM whose guest never stops writing, and then of a clone of it, and has each clone
// look whether all of its memory is of one moment.
func (s *suite) testChurn(t *testing.T, savable bool) {
	c := s.config(t)
	c.Savable = savable
	m := s.start(t, c)
	client := m.session()
	checkChurn(t, client)
	var last *machine
	for range churnRounds {
		if last != nil {
			end(t, last)
		}
		last = s.churnedClone(t, m, c)
		checkChurn(t, last.session())
	}
	second := s.churnedClone(t, last, c)
	checkChurn(t, second.session())
	checkChurn(t, client)
	if !savable {
		return
	}
	// A VM that can be saved still can.
	tm := template{config: c, dir: t.TempDir()}
	if err := m.VM.(vm.Snapshotter).Snapshot(within(t), tm.dir); err != nil {
		t.Fatal(err)
	}
	var err error
	if tm.saved, err = s.driver.(vm.Restorer).Load(within(t), tm.dir); err != nil {
		t.Fatal(err)
	}
	defer tm.saved.Close()
	checkChurn(t, s.restore(t, tm).session())
}

// churnedClone makes a checkpoint of m, a VM without disks, and a clone of it.
func (s *suite) churnedClone(t *testing.T, m *machine, c vm.Config) *machine {
	t.Helper()
	saved, pause, err := m.VM.(vm.Checkpointer).Checkpoint(within(t), func(context.Context) error { return nil }, func(context.Context) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	defer saved.Close()
	t.Logf("stood still for %v", pause.Round(100*time.Microsecond))
	clone, _ := s.clone(t, point{saved: saved, c: c})
	return clone
}

// checkChurn waits until the guest has looked at each of its pages, and checks that it has found in them what it wrote.
func checkChurn(t *testing.T, client *wire.Client) {
	t.Helper()
	var first, now guestapi.Churn
	call(t, client, guestapi.MethodChurn, nil, &first)
	for began := time.Now(); now.Writes < first.Writes+first.Pages; {
		if time.Since(began) > limit {
			t.Fatalf("the guest has written %d pages, then %d", first.Writes, now.Writes)
		}
		call(t, client, guestapi.MethodChurn, nil, &now)
	}
	if now.Wrong != 0 {
		t.Errorf("of %d pages that a guest writes to, %d were not of the moment of the checkpoint", now.Pages, now.Wrong)
	}
}

// end ends a VM that is not looked at any more.
func end(t *testing.T, m *machine) {
	t.Helper()
	if err := m.Kill(); err != nil {
		t.Error(err)
	}
	m.end()
}
