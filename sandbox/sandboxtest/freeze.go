package sandboxtest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/cradlevm/cradle/vm"
)

// Copy makes machines that can be frozen and copied, but if err is not nil, with which every Freeze fails then.
func (d *Driver) Copy(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.forks, d.unfreezable = true, err
}

// Sterile makes copies that cannot be Forkable from here on: starting one fails with errors.ErrUnsupported.
func (d *Driver) Sterile() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.sterile = true
}

// Forks implements vm.Forker.
func (d *Driver) Forks(context.Context) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.forks
}

// Freeze implements vm.Freezer.
func (m *Machine) Freeze(context.Context) (vm.Source, error) {
	m.driver.mu.Lock()
	err := m.driver.unfreezable
	m.driver.mu.Unlock()
	if err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.ended:
		return nil, vm.ErrExited
	}
	m.frozen = true
	if m.conn != nil {
		m.conn.Close()
	}
	return frozen{m, m.image()}, nil
}

// Frozen machines are those that others are copies of.
func (d *Driver) Frozen() (all []*Machine) {
	for _, m := range d.Running() {
		m.mu.Lock()
		if m.frozen {
			all = append(all, m)
		}
		m.mu.Unlock()
	}
	return all
}

// frozen is a machine that others are copies of.
type frozen struct {
	m     *Machine
	image image
}

// Restore implements vm.Source. The copy has the containers as a restored machine has them.
func (f frozen) Restore(ctx context.Context, c vm.Config) (vm.VM, error) {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	if f.m.ended {
		return nil, vm.ErrExited
	}
	f.m.driver.mu.Lock()
	sterile := f.m.driver.sterile
	f.m.driver.mu.Unlock()
	if c.Forkable && sterile {
		return nil, fmt.Errorf("%w: Forkable", errors.ErrUnsupported)
	}
	var serials []string
	for _, d := range c.Disks {
		serials = append(serials, d.Serial)
	}
	slices.Sort(serials)
	there := slices.Collect(maps.Keys(f.m.disks))
	for _, d := range f.m.Config.Disks {
		there = append(there, d.Serial)
	}
	slices.Sort(there)
	if !slices.Equal(serials, there) {
		return nil, fmt.Errorf("%w: Disks: %v, not %v", vm.ErrInvalid, serials, there)
	}
	if !f.m.Config.Forkable && (c.Forkable || c.UID != f.m.Config.UID) {
		return nil, fmt.Errorf("%w: UID %d, Forkable %v", vm.ErrInvalid, c.UID, c.Forkable)
	}
	v, err := f.m.driver.Start(ctx, c)
	if err != nil {
		return nil, err
	}
	copied := v.(*Machine)
	copied.disks = maps.Clone(f.m.disks)
	copied.revive(f.image)
	return copied, nil
}

// Close implements vm.Source.
func (f frozen) Close() error { return f.m.Kill() }

var (
	_ vm.Forker  = (*Driver)(nil)
	_ vm.Freezer = (*Machine)(nil)
)
