package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

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
// slot the next disk gets, and how many network interfaces there must be. As JSON it is the file savedShape.
type shape struct {
	CPUs int `json:"cpus"`
	Slot int `json:"slot"`
	NICs int `json:"nics"`
}

// migration follows QEMU's one migration, out or in.
type migration struct {
	once   sync.Once
	ended  chan struct{}
	status string // set before ended is closed
}

// became takes QEMU's word for how far it is.
func (g *migration) became(status string) {
	switch status {
	case "completed", "failed", "cancelled":
		g.once.Do(func() {
			g.status = status
			close(g.ended)
		})
	}
}

// migrationCapabilities leaves memory out of the stream, and asks for events.
func migrationCapabilities() any {
	type capability struct {
		Capability string `json:"capability"`
		State      bool   `json:"state"`
	}
	return map[string]any{"capabilities": []capability{{"x-ignore-shared", true}, {"events", true}}}
}

// await waits for the migration's end. The error is QEMU's reason when it can still be asked.
func (m *machine) await(ctx context.Context) error {
	select {
	case <-m.migration.ended:
	case <-m.mon.done:
		return vm.ErrExited
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if m.migration.status == "completed" {
		return nil
	}
	value, err := m.mon.call(ctx, "query-migrate", nil)
	var info struct {
		Reason string `json:"error-desc"`
	}
	if err == nil {
		err = json.Unmarshal(value, &info)
	}
	if err != nil {
		return err
	}
	return fmt.Errorf("QEMU says %s: %s", m.migration.status, info.Reason)
}

// Snapshot implements vm.Snapshotter. The state says that the machine runs, so one restored from it does at once.
func (m *machine) Snapshot(ctx context.Context, dir string) error {
	if err := m.snapshot(ctx, dir); err != nil {
		return m.explain(fmt.Errorf("save VM %s: %w", m.id, err))
	}
	return nil
}

func (m *machine) snapshot(ctx context.Context, dir string) (err error) {
	m.disks.mu.Lock()
	disks, form := len(m.disks.disks), shape{CPUs: m.cpus, Slot: m.disks.next, NICs: len(m.nics)}
	m.disks.mu.Unlock()
	switch {
	case m.ram == nil:
		return fmt.Errorf("%w: it was not started Savable", vm.ErrInvalid)
	case disks > 0:
		return fmt.Errorf("%w: it has %d disks", vm.ErrInvalid, disks)
	}
	state, err := os.OpenFile(filepath.Join(dir, savedState), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, state.Close()) }()
	if err := m.mon.run(ctx, "migrate-set-capabilities", migrationCapabilities()); err != nil {
		return err
	}
	if _, err := m.mon.call(ctx, "getfd", map[string]any{"fdname": savedState}, int(state.Fd())); err != nil {
		return err
	}
	if err := m.mon.run(ctx, "migrate", map[string]any{"uri": "fd:" + savedState}); err != nil {
		return err
	}
	if err := m.await(ctx); err != nil {
		return err
	}
	memory, err := os.OpenFile(filepath.Join(dir, savedMemory), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, memory.Close()) }()
	if err := copySparse(ctx, memory, m.ram, nil); err != nil {
		return fmt.Errorf("write memory: %w", err)
	}
	file, err := os.OpenFile(filepath.Join(dir, savedShape), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	if err := json.NewEncoder(file).Encode(form); err != nil {
		return err
	}
	return syncAll(dir, state, memory, file)
}

// syncAll syncs files and the directory they are in.
func syncAll(dir string, files ...*os.File) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	for _, f := range append(files, d) {
		if err := f.Sync(); err != nil {
			return err
		}
	}
	return nil
}
