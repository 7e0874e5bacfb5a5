package sandboxtest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/cradlevm/cradle/api"
	"github.com/cradlevm/cradle/vm"
)

// savedName is the one file of a saved machine: anything but savedText is damage that only the digest shows.
const (
	savedName = "saved"
	savedText = "a saved machine"
)

// FailRestore makes every Restore fail; nil ends that.
func (d *Driver) FailRestore(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.unrestorable = err
}

// FailSnapshot makes every Snapshot leave half a file and fail, as a disk that fills up does; nil ends that.
func (d *Driver) FailSnapshot(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.unsavable = err
}

// Upgrade changes what StateVersion says.
func (d *Driver) Upgrade(version string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.version = version
}

// StateVersion implements vm.Restorer.
func (d *Driver) StateVersion(context.Context) (string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return "a test " + d.version, nil
}

// Load implements vm.Restorer.
func (d *Driver) Load(_ context.Context, dir string) (vm.Saved, error) {
	b, err := os.ReadFile(filepath.Join(dir, savedName))
	if err != nil {
		return nil, err
	}
	return &saved{driver: d, text: b}, nil
}

// saved is a saved machine; text is savedText, or an image as JSON.
type saved struct {
	driver *Driver
	text   []byte
}

func (s *saved) Digest() string {
	sum := sha256.Sum256(s.text)
	return hex.EncodeToString(sum[:])
}

func (*saved) Close() error { return nil }

func (s *saved) Restore(ctx context.Context, c vm.Config) (vm.VM, error) {
	s.driver.mu.Lock()
	err := s.driver.unrestorable
	s.driver.mu.Unlock()
	if err != nil {
		return nil, err
	}
	var i image
	if json.Unmarshal(s.text, &i) != nil { // one without containers
		return s.driver.Start(ctx, c)
	}
	if !slices.EqualFunc(i.Disks, c.Disks, func(a, b vm.Disk) bool { return a.Serial == b.Serial && a.ReadOnly == b.ReadOnly }) {
		return nil, fmt.Errorf("%w: Disks: %v were saved, not %v", vm.ErrInvalid, i.Disks, c.Disks)
	}
	machine, err := s.driver.Start(ctx, c)
	if err == nil {
		machine.(*Machine).revive(i)
	}
	return machine, err
}

// Snapshot implements vm.Snapshotter.
func (m *Machine) Snapshot(_ context.Context, dir string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.Config.Savable || len(m.disks) > 0 || len(m.containers) > 0 {
		return fmt.Errorf("%w: Savable %v, %d disks, %d containers", vm.ErrInvalid, m.Config.Savable, len(m.disks), len(m.containers))
	}
	m.driver.mu.Lock()
	err := m.driver.unsavable
	m.driver.mu.Unlock()
	text := savedText
	if err != nil {
		text = text[:len(text)/2]
	}
	return errors.Join(err, os.WriteFile(filepath.Join(dir, savedName), []byte(text), 0o600))
}

// Plug implements vm.DiskPlugger.
func (m *Machine) Plug(_ context.Context, d vm.Disk) error {
	if err := d.Check(); err != nil {
		return err
	}
	if _, err := os.Stat(d.Path); err != nil {
		return fmt.Errorf("%w: %w", vm.ErrInvalid, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.ended {
		return vm.ErrExited
	}
	if m.disks[d.Serial] {
		return fmt.Errorf("%w: disk %s is there", vm.ErrInvalid, d.Serial)
	}
	if m.disks == nil {
		m.disks = map[string]bool{}
	}
	m.disks[d.Serial] = true
	return nil
}

// Unplug implements vm.DiskPlugger.
func (m *Machine) Unplug(_ context.Context, serial string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.disks[serial] {
		return vm.ErrNotFound
	}
	delete(m.disks, serial)
	return nil
}

// Disks are the serials of the machine's disks, in order.
func (m *Machine) Disks() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := slices.Collect(maps.Keys(m.disks))
	for _, d := range m.Config.Disks {
		all = append(all, d.Serial)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// Bare reports whether the machine has neither disks nor containers.
func (m *Machine) Bare() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.disks) == 0 && len(m.containers) == 0
}

// Identity is what the machine was configured with, the last value of each field.
func (m *Machine) Identity() api.ConfigureRequest {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.identity
}

// configure takes an identity as the agent does.
func (m *Machine) configure(r api.ConfigureRequest) error {
	if len(r.Token) != 0 && len(r.Token) != 16 {
		return errors.New("bad token")
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	i := &m.identity
	if r.Hostname != "" {
		i.Hostname = r.Hostname
	}
	if r.UnixNanos != 0 {
		i.UnixNanos = r.UnixNanos
	}
	if len(r.Seed) != 0 {
		i.Seed = r.Seed
	}
	if r.MachineID != "" {
		i.MachineID = r.MachineID
	}
	if len(r.Token) != 0 {
		i.Token = r.Token
	}
	return nil
}

var (
	_ vm.Restorer    = (*Driver)(nil)
	_ vm.Snapshotter = (*Machine)(nil)
	_ vm.DiskPlugger = (*Machine)(nil)
)
