package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cradlevm/cradle/vm"
)

// Files of a snapshot. The memory is as the guest saw it, zeros being holes; the state is QEMU's migration stream,
// without the memory.
const (
	savedMemory = "memory"
	savedState  = "state"
	savedShape  = "shape"
)

// shape is what QEMU does not know from the state: how many processors there must be, which it does not check, which
// slots the disks have and the next one gets, and how many network interfaces there must be. As JSON it is the file savedShape.
type shape struct {
	CPUs  int         `json:"cpus"`
	Slot  int         `json:"slot"`
	Disks []savedDisk `json:"disks,omitempty"`
	NICs  int         `json:"nics"`
	// Live tells that the state is Checkpoint's: it speaks of memory, and the guest stands still.
	Live bool `json:"live,omitempty"`
}

// savedDisk is a disk that was there.
type savedDisk struct {
	Serial string `json:"serial"`
	Slot   int    `json:"slot"`
}

// check reports what cannot be.
func (s *shape) check() error {
	if s.Slot < 0 || s.Slot >= targets {
		return fmt.Errorf("%w: %s: slot %d", vm.ErrInvalid, savedShape, s.Slot)
	}
	serials, slots := map[string]bool{}, map[int]bool{}
	for _, d := range s.Disks {
		if d.Slot < 0 || d.Slot >= maxDisks || serials[d.Serial] || slots[d.Slot] {
			return fmt.Errorf("%w: %s: disk %q in slot %d", vm.ErrInvalid, savedShape, d.Serial, d.Slot)
		}
		serials[d.Serial], slots[d.Slot] = true, true
	}
	return nil
}

// Snapshot implements vm.Snapshotter. The state says that the machine runs, so one restored from it does at once.
func (m *machine) Snapshot(ctx context.Context, dir string) error {
	if err := m.snapshot(ctx, dir); err != nil {
		return m.explain(fmt.Errorf("save VM %s: %w", m.id, err))
	}
	return nil
}

func (m *machine) snapshot(ctx context.Context, dir string) (err error) {
	m.steady.Lock()
	defer m.steady.Unlock()
	disks, next := m.disks.saved()
	switch {
	case m.ram == nil:
		return fmt.Errorf("%w: it was not started Savable", vm.ErrInvalid)
	case len(disks) > 0:
		return fmt.Errorf("%w: it has %d disks", vm.ErrInvalid, len(disks))
	}
	state, err := os.OpenFile(filepath.Join(dir, savedState), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, state.Close()) }()
	if err := m.setCapabilities(ctx, true); err != nil {
		return err
	}
	if err := m.migrate(ctx, "migrate", state); err != nil {
		return err
	}
	if err := m.await(ctx, nil); err != nil {
		return err
	}
	if err := state.Sync(); err != nil {
		return err
	}
	form, err := json.Marshal(shape{CPUs: m.cpus, Slot: next, NICs: len(m.nics)})
	if err != nil {
		return err
	}
	return writeFiles(ctx, dir, m.ram, map[string][]byte{savedShape: form})
}

// writeFiles makes the file of memory, and others, in dir and syncs all of it.
func writeFiles(ctx context.Context, dir string, memory *os.File, others map[string][]byte) error {
	err := newFile(dir, savedMemory, func(f *os.File) error { return copySparse(ctx, f, memory, nil) })
	if err != nil {
		return fmt.Errorf("write memory: %w", err)
	}
	for name, b := range others {
		err := newFile(dir, name, func(f *os.File) error {
			_, err := f.Write(b)
			return err
		})
		if err != nil {
			return err
		}
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// newFile makes a file, which must not be there yet, by fill, and syncs it.
func newFile(dir, name string, fill func(*os.File) error) error {
	f, err := os.OpenFile(filepath.Join(dir, name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	err = fill(f)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}
