package qemu

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"

	"github.com/cradlevm/cradle/vm"
)

// Bounds of a snapshot's small files, in bytes. The devices' state is some 60 KiB.
const (
	maxState = 16 << 20
	maxShape = 4 << 10
)

// modelName finds the processor's name in /proc/cpuinfo.
var modelName = regexp.MustCompile(`(?m)^model name\s*:\s*(.*)$`)

// StateVersion implements vm.Restorer.
func (d *Driver) StateVersion(context.Context) (string, error) {
	q, err := d.qemu()
	if err != nil {
		return "", err
	}
	accel, err := d.choose(vm.AccelAuto)
	if err != nil {
		return "", err
	}
	l := launch{version: q.version, accel: accel}
	// Under TCG the guest's clock counts the host's ticks, whose frequency it was told at boot: to 2 MHz, since each
	// measurement is a little different. Under KVM it sees the host's processor.
	host := fmt.Sprintf("tsc %d MHz", (d.tscKHz()+1000)/2000*2)
	if accel == vm.AccelKVM {
		info, err := os.ReadFile("/proc/cpuinfo")
		if err != nil {
			return "", err
		}
		host = string(bytes.Join(modelName.FindSubmatch(info), nil))
	}
	// What the kernel was told at boot, it keeps.
	return fmt.Sprintf("%s; %s; %s; %s; %s; %s", q.build, l.machine(), l.processor(), l.kernelWords(), host, nicArg{}.args(0)), nil
}

// saved is a loaded snapshot. The memory is a sealed file: QEMU opens it for reading and writing, as it must to get a
// private writable mapping of it, and can write only there.
type saved struct {
	driver *Driver
	dir    string // it was read from; for errors
	memory *os.File
	size   int64
	state  []byte
	shape  shape
	digest string
}

// Load implements vm.Restorer.
func (d *Driver) Load(ctx context.Context, dir string) (vm.Saved, error) {
	s, err := d.load(ctx, dir)
	if err != nil {
		return nil, fmt.Errorf("load saved VM %s: %w", dir, err)
	}
	return s, nil
}

func (d *Driver) load(ctx context.Context, dir string) (_ *saved, err error) {
	s := &saved{driver: d, dir: dir}
	if s.state, err = readBounded(filepath.Join(dir, savedState), maxState); err != nil {
		return nil, err
	}
	form, err := readBounded(filepath.Join(dir, savedShape), maxShape)
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(form, &s.shape); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", vm.ErrInvalid, savedShape, err)
	}
	if s.shape.Slot < 0 || s.shape.Slot >= targets {
		return nil, fmt.Errorf("%w: %s: slot %d", vm.ErrInvalid, savedShape, s.shape.Slot)
	}
	memory, err := os.Open(filepath.Join(dir, savedMemory))
	if err != nil {
		return nil, err
	}
	defer memory.Close()
	info, err := memory.Stat()
	if err != nil {
		return nil, err
	}
	if s.size = info.Size(); s.size < vm.MinMemory || s.size > vm.MaxMemory {
		return nil, fmt.Errorf("%w: a memory of %d bytes", vm.ErrInvalid, s.size)
	}
	sum := sha256.New()
	for _, b := range [][]byte{form, s.state} {
		sum.Write(binary.BigEndian.AppendUint64(nil, uint64(len(b))))
		sum.Write(b)
	}
	if s.memory, err = memoryFile("cradle-template"); err != nil {
		return nil, err
	}
	if err = copySparse(ctx, s.memory, memory, sum); err == nil {
		err = seal(s.memory)
	}
	if err != nil {
		s.memory.Close()
		return nil, err
	}
	s.digest = hex.EncodeToString(sum.Sum(nil))
	return s, nil
}

// readBounded reads a file that is not empty and has at most max bytes.
func readBounded(path string, max int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, max+1))
	if err != nil {
		return nil, err
	}
	if len(b) == 0 || int64(len(b)) > max {
		return nil, fmt.Errorf("%w: %s has %d bytes, want 1 to %d", vm.ErrInvalid, path, len(b), max)
	}
	return b, nil
}

// Digest implements vm.Saved.
func (s *saved) Digest() string { return s.digest }

// Close implements vm.Saved.
func (s *saved) Close() error { return s.memory.Close() }

// Restore implements vm.Saved.
func (s *saved) Restore(ctx context.Context, c vm.Config) (vm.VM, error) {
	if len(c.Disks) > 0 {
		return nil, fmt.Errorf("%w: Disks: a VM is restored without", vm.ErrInvalid)
	}
	if c.Memory != s.size || c.CPUs != s.shape.CPUs {
		return nil, fmt.Errorf("%w: CPUs, Memory: %d and %d bytes, not the %d and %d that were saved",
			vm.ErrInvalid, c.CPUs, c.Memory, s.shape.CPUs, s.size)
	}
	if len(c.NICs) != s.shape.NICs {
		return nil, fmt.Errorf("%w: NICs: %d, not the %d that were saved", vm.ErrInvalid, len(c.NICs), s.shape.NICs)
	}
	return s.driver.run(ctx, c, s.open, func(ctx context.Context, m *machine, _ *inputs) error { return s.resume(ctx, m) })
}

// open gives a VM what it inherits.
func (s *saved) open(c vm.Config) (*inputs, error) {
	kernel, err := openStub(c.Kernel)
	if err != nil {
		return nil, err
	}
	in := &inputs{kernel: kernel, restore: true}
	if in.ram, err = duplicate(s.memory); err == nil {
		err = in.openDevices(c)
	}
	if err != nil {
		in.close()
		return nil, err
	}
	return in, nil
}

// resume hands QEMU its state and waits until it has taken it: the guest runs then.
func (s *saved) resume(ctx context.Context, m *machine) error {
	m.disks.next = s.shape.Slot
	state, err := memoryCopy(bytes.NewReader(s.state))
	if err != nil {
		return err
	}
	defer state.Close()
	if _, err := state.Seek(0, io.SeekStart); err != nil {
		return err
	}
	if err := m.mon.run(ctx, "migrate-set-capabilities", migrationCapabilities()); err != nil {
		return err
	}
	// The guest's interfaces are not announced to the network: see nicArg.args.
	if err := m.mon.run(ctx, "migrate-set-parameters", map[string]any{"announce-rounds": 0}); err != nil {
		return err
	}
	if _, err := m.mon.call(ctx, "getfd", map[string]any{"fdname": savedState}, int(state.Fd())); err != nil {
		return err
	}
	if err := m.mon.run(ctx, "migrate-incoming", map[string]any{"uri": "fd:" + savedState}); err != nil {
		return err
	}
	if err := m.await(ctx); err != nil {
		return fmt.Errorf("take the state saved in %s: %w", s.dir, err)
	}
	return nil
}
