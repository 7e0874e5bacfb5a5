package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/cradlevm/cradle/vm"
	"golang.org/x/sys/unix"
)

// A checkpoint is a live migration whose stream comes to this process rather than to another QEMU: the guest runs while
// its memory is copied, and what it has written to meanwhile is copied again. It stands still for the rest.
//
// QEMU reads all of the memory, and so fills the holes of the template that a restored VM came from, once for all of its VMs: 54 MiB were
// 256 after the first checkpoint of a guest with 256. The checkpoint has its holes again.

// Numbers of a checkpoint.
const (
	// pauseGoal is what the copying of the rest may take, in milliseconds, when QEMU decides that it is little enough.
	pauseGoal = 10
	// maxPasses is how often memory is gone through; then the rest is copied whatever it takes, in milliseconds.
	maxPasses = 6
	pauseMost = 60_000
	// unbounded is a bandwidth that is not to be kept to, in bytes a second.
	unbounded = 1 << 40
	// endLimit bounds what brings a VM back to where it was.
	endLimit = 30 * time.Second
	// pollStep is how often QEMU is asked for what it does not tell by itself.
	pollStep = 2 * time.Millisecond
)

// interruptedName is a file that is in a VM's directory while a checkpoint may have it stand still: a later process that
// finds it lets the VM go on.
const interruptedName = "checkpoint"

// Checkpoint implements vm.Checkpointer.
func (m *machine) Checkpoint(ctx context.Context, soon, still func(context.Context) error) (vm.Saved, time.Duration, error) {
	m.steady.Lock()
	defer m.steady.Unlock()
	s, pause, err := m.checkpoint(ctx, soon, still)
	if errors.Is(err, errTooSoon) {
		// It stood still before anybody was told. Told now, and once more.
		if err = soon(ctx); err == nil {
			s, pause, err = m.checkpoint(ctx, nil, still)
		}
	}
	if err != nil {
		return nil, pause, m.explain(fmt.Errorf("checkpoint of VM %s: %w", m.id, err))
	}
	return s, pause, nil
}

func (m *machine) checkpoint(ctx context.Context, soon, still func(context.Context) error) (_ *saved, pause time.Duration, err error) {
	state, err := m.settled(ctx)
	if err != nil {
		return nil, 0, err
	}
	runs := state == "running"
	if !runs {
		soon = nil
	}
	if state == "postmigrate" {
		// It stands still since an earlier checkpoint, and QEMU refuses another of a VM that has not run since. It does for an
		// instant: nothing but cont leads out of that state, a reset aside.
		if err := errors.Join(m.mon.run(ctx, "cont", nil), m.mon.run(ctx, "stop", nil)); err != nil {
			return nil, 0, err
		}
	}
	q, err := m.driver.qemu()
	if err != nil {
		return nil, 0, err
	}
	if m.proc.replaced() {
		return nil, 0, errors.New("QEMU has been replaced since the VM was started, and the new one might not restore what is saved of it; start it anew first")
	}
	s := &saved{driver: m.driver, from: "from VM " + m.id, build: q.build}
	if s.size, err = m.memorySize(ctx); err != nil {
		return nil, 0, err
	}
	s.shape = shape{CPUs: m.cpus, NICs: len(m.nics), Live: true}
	s.shape.Disks, s.shape.Slot = m.disks.saved()
	if s.form, err = json.Marshal(s.shape); err != nil {
		return nil, 0, err
	}
	s.digest = sync.OnceValue(s.sumMemory)
	s.sealed = sync.OnceValue(func() error { return seal(s.memory) }) // which takes long, and a container may stand still
	if s.memory, err = memoryFile("cradle-checkpoint"); err != nil {
		return nil, 0, err
	}
	defer func() {
		if err != nil {
			s.memory.Close()
		}
	}()
	if err := s.memory.Truncate(s.size); err != nil {
		return nil, 0, err
	}
	if s.state, pause, err = m.copyLive(ctx, s.memory, s.size, runs, soon, still); err != nil {
		return nil, pause, err
	}
	return s, pause, nil
}

// copyLive fills the file memory of that size, the same as the guest's. It calls still with the guest stopped, and lets it go
// on if runs says that it did. soon, when not nil, is called before that, when nearly all memory has come.
func (m *machine) copyLive(ctx context.Context, memory *os.File, size int64, runs bool, soon, still func(context.Context) error) (state []byte, pause time.Duration, err error) {
	if runs {
		if err := os.WriteFile(filepath.Join(m.dir, interruptedName), nil, 0o600); err != nil {
			return nil, 0, err
		}
		defer os.Remove(filepath.Join(m.dir, interruptedName))
	}
	ours, theirs, err := filePair()
	if err != nil {
		return nil, 0, err
	}
	defer theirs.Close()
	m.mu.Lock()
	clear(m.stood)
	m.mu.Unlock()
	var in io.Reader = ours
	var near func() error
	release := func() error { return nil }
	if soon != nil {
		d, err := newDribble(ours, theirs)
		if err != nil {
			ours.Close()
			return nil, 0, err
		}
		release = d.release
		in = d
		near = func() error {
			// While nobody reads on, QEMU cannot come to the point where the guest stands still.
			err := m.soon(ctx, soon)
			if err == nil {
				// What is left is copied with the guest standing still: each time that it is gone through while it runs takes longer.
				err = m.boundPause(ctx, pauseMost)
			}
			if err != nil {
				return err
			}
			return release()
		}
	}
	received := make(chan error, 1)
	go func() {
		var err error
		state, err = splitStream(in, memory, size, near)
		ours.Close() // QEMU fails, if it has more to say
		received <- err
	}()
	err = m.migrateTo(ctx, theirs, soon != nil)
	err = errors.Join(err, release()) // else the stream has no end
	if err == nil {
		err = still(ctx)
	} else {
		ours.Close()
	}
	theirs.Close()
	pause, back := m.back(runs)
	split := <-received
	if told := (*soonError)(nil); errors.As(split, &told) {
		err = told.err // of which the migration's failure came
		split = nil
	} else if err != nil && !errors.Is(split, errStream) {
		split = nil // only what comes of the stream's early end
	}
	return state, pause, errors.Join(err, back, split)
}

// migrateTo returns when the guest stands still and all of it is in the stream. With once, memory is gone through once, and
// then again with the guest standing still, for what it has written to.
func (m *machine) migrateTo(ctx context.Context, stream *os.File, once bool) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	// A caller that loses patience does so while QEMU works, not between a command and its answer.
	steps, cancel := context.WithTimeout(context.WithoutCancel(ctx), stepsLimit)
	defer cancel()
	if err := m.setCapabilities(steps, false); err != nil {
		return err
	}
	goal := pauseGoal
	if once {
		goal = 0 // the guest does not stand still for as long as there is anything left to copy
	}
	if err := m.boundPause(steps, goal); err != nil {
		return err
	}
	if err := m.migrate(steps, "migrate", stream); err != nil {
		return err
	}
	stream.Close() // QEMU has its own: when it goes, the stream ends
	return m.await(ctx, func(passes int) error {
		if passes < maxPasses {
			return nil
		}
		return m.boundPause(ctx, pauseMost)
	})
}

// boundPause says how long the copying of the rest may take for a migration to come to its end, in milliseconds.
func (m *machine) boundPause(ctx context.Context, pause int) error {
	return m.mon.run(ctx, "migrate-set-parameters", map[string]any{"downtime-limit": pause, "max-bandwidth": unbounded})
}

// back brings the VM back to where it was before a checkpoint, whatever that has come to, and tells how long it stood still.
func (m *machine) back(runs bool) (pause time.Duration, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), endLimit)
	defer cancel()
	if status, _, _ := m.migration.now(); status != "completed" {
		if err := m.endMigration(ctx); err != nil {
			return 0, err
		}
	}
	if !runs {
		return 0, nil
	}
	// QEMU tells that a migration is over before it has left the state that it was in for it.
	if _, err := m.settled(ctx); err != nil {
		return 0, err
	}
	if err := m.mon.run(ctx, "cont", nil); err != nil {
		return 0, fmt.Errorf("let it go on: %w", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if began, ended := m.stood["STOP"], m.stood["RESUME"]; !began.IsZero() && began.Before(ended) {
		pause = ended.Sub(began)
	}
	return pause, nil
}

// endMigration returns once no migration is in progress.
func (m *machine) endMigration(ctx context.Context) error {
	if err := m.mon.run(ctx, "migrate_cancel", nil); err != nil { // does nothing to one that is over
		return err
	}
	return m.poll(ctx, func() (bool, error) {
		value, err := m.mon.call(ctx, "query-migrate", nil)
		if err != nil {
			return false, err
		}
		var info struct {
			Status string `json:"status"`
		}
		if err := json.Unmarshal(value, &info); err != nil {
			return false, fmt.Errorf("QEMU query-migrate: %w", err)
		}
		return info.Status == "" || info.Status == "none" || over(info.Status), nil
	})
}

// settled returns the monitor's word for what the machine does, once that is not the end of a migration.
func (m *machine) settled(ctx context.Context) (state string, err error) {
	err = m.poll(ctx, func() (bool, error) {
		var err error
		state, err = m.state(ctx)
		return state != "finish-migrate", err
	})
	return state, err
}

// poll calls f, which has no event to wait for, until it says yes.
func (m *machine) poll(ctx context.Context, f func() (bool, error)) error {
	for {
		if ok, err := f(); ok || err != nil {
			return err
		}
		select {
		case <-time.After(pollStep):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// memorySize asks how much memory the guest has, in bytes.
func (m *machine) memorySize(ctx context.Context) (int64, error) {
	value, err := m.mon.call(ctx, "query-memory-size-summary", nil)
	if err != nil {
		return 0, err
	}
	var info struct {
		Base int64 `json:"base-memory"`
	}
	if err := json.Unmarshal(value, &info); err != nil {
		return 0, fmt.Errorf("QEMU query-memory-size-summary: %w", err)
	}
	if info.Base < vm.MinMemory || info.Base > vm.MaxMemory+oddMemory || info.Base%pageSize != 0 {
		return 0, fmt.Errorf("%w: a memory of %d bytes", errStream, info.Base)
	}
	return info.Base, nil
}

// goOn lets a VM run whose checkpoint an earlier process has not brought to its end.
func (m *machine) goOn(ctx context.Context) error {
	path := filepath.Join(m.dir, interruptedName)
	if _, err := os.Stat(path); err != nil {
		return nil
	}
	// QEMU notices by itself that nobody takes its stream any more.
	if err := m.endMigration(ctx); err != nil {
		return err
	}
	state, err := m.settled(ctx)
	if err != nil {
		return err
	}
	if state != "running" {
		if err := m.mon.run(ctx, "cont", nil); err != nil {
			return fmt.Errorf("let it go on: %w", err)
		}
	}
	return os.Remove(path)
}

// filePair makes two connected sockets; what is written to the second is read from the first.
func filePair() (reader, writer *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	unix.SetNonblock(fds[0], true) // so that closing it wakes its reader
	return os.NewFile(uintptr(fds[0]), "stream"), os.NewFile(uintptr(fds[1]), "stream"), nil
}
