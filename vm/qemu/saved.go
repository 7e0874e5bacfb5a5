package qemu

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"os"
	"slices"

	"github.com/cradlevm/cradle/vm"
)

// saved is the state of a VM, in this process's memory. The guest's memory is a sealed file: QEMU opens it for reading and
// writing, as it must to get a private writable mapping of it, and can write only there.
type saved struct {
	driver *Driver
	from   string // where it comes from; for errors
	build  string // of the QEMU that it is for
	memory *os.File
	sealed func() error // seals memory, once, before anybody else gets it
	size   int64
	state  []byte
	form   []byte // of shape
	shape  shape
	digest func() string
}

// newSum begins the digest, which memory follows.
func (s *saved) newSum() hash.Hash {
	sum := sha256.New()
	for _, b := range [][]byte{s.form, s.state} {
		sum.Write(binary.BigEndian.AppendUint64(nil, uint64(len(b))))
		sum.Write(b)
	}
	return sum
}

// sumMemory computes the digest of a state whose memory has not been read yet.
func (s *saved) sumMemory() string {
	sum := s.newSum()
	if copySparse(context.Background(), nil, s.memory, sum) != nil {
		return "" // closed
	}
	return hex.EncodeToString(sum.Sum(nil))
}

// Digest implements vm.Saved.
func (s *saved) Digest() string { return s.digest() }

// Close implements vm.Saved.
func (s *saved) Close() error { return s.memory.Close() }

// Write implements vm.Saved.
func (s *saved) Write(ctx context.Context, dir string) error {
	if err := writeFiles(ctx, dir, s.memory, map[string][]byte{savedState: s.state, savedShape: s.form}); err != nil {
		return fmt.Errorf("write saved VM to %s: %w", dir, err)
	}
	return nil
}

// Restore implements vm.Saved.
func (s *saved) Restore(ctx context.Context, c vm.Config) (vm.VM, error) {
	if c.Memory != s.size&^(1<<20-1) || c.CPUs != s.shape.CPUs {
		return nil, fmt.Errorf("%w: CPUs, Memory: %d and %d bytes, not the %d and %d that were saved",
			vm.ErrInvalid, c.CPUs, c.Memory, s.shape.CPUs, s.size&^(1<<20-1))
	}
	if q, err := s.driver.qemu(); err != nil {
		return nil, err
	} else if q.build != s.build {
		return nil, fmt.Errorf("%w: it was saved by another QEMU (%s) than the present one (%s)", vm.ErrInvalid, s.build, q.build)
	}
	if len(c.NICs) != s.shape.NICs {
		return nil, fmt.Errorf("%w: NICs: %d, not the %d that were saved", vm.ErrInvalid, len(c.NICs), s.shape.NICs)
	}
	if len(c.Disks) != len(s.shape.Disks) {
		return nil, fmt.Errorf("%w: Disks: %d, not the %d that were saved", vm.ErrInvalid, len(c.Disks), len(s.shape.Disks))
	}
	for _, d := range s.shape.Disks {
		if !slices.ContainsFunc(c.Disks, func(other vm.Disk) bool { return other.Serial == d.Serial }) {
			return nil, fmt.Errorf("%w: Disks: no %s, which was saved", vm.ErrInvalid, d.Serial)
		}
	}
	return s.driver.run(ctx, c, s.open, func(ctx context.Context, m *machine, in *inputs) error { return s.resume(ctx, m, c, in) })
}

// open gives a VM what it inherits.
func (s *saved) open(c vm.Config, accel string) (*inputs, error) {
	if s.size != ramSize(accel, c.Memory) {
		return nil, fmt.Errorf("%w: Accel: it was saved under another accelerator", vm.ErrInvalid)
	}
	kernel, err := openStub(c.Kernel)
	if err != nil {
		return nil, err
	}
	in := &inputs{kernel: kernel, restore: true}
	if err = s.sealed(); err == nil {
		in.ram, err = duplicate(s.memory)
	}
	if err == nil {
		in.hollow, err = hollowFile()
	}
	if err == nil {
		err = in.openDevices(c)
	}
	if err != nil {
		in.close()
		return nil, err
	}
	return in, nil
}

// resume hands QEMU its state and waits until it has taken it and the guest runs.
func (s *saved) resume(ctx context.Context, m *machine, c vm.Config, in *inputs) error {
	if err := m.hollow(ctx, in); err != nil {
		return err
	}
	m.disks.restore(s.shape)
	for _, d := range s.shape.Disks {
		i := slices.IndexFunc(c.Disks, func(other vm.Disk) bool { return other.Serial == d.Serial })
		if err := m.plugAt(ctx, d.Slot, c.Disks[i], in.disks[i]); err != nil {
			return fmt.Errorf("disk %s: %w", d.Serial, err)
		}
	}
	state, err := memoryCopy(bytes.NewReader(s.state))
	if err != nil {
		return err
	}
	defer state.Close()
	if _, err := state.Seek(0, io.SeekStart); err != nil {
		return err
	}
	if err := m.setCapabilities(ctx, !s.shape.Live); err != nil {
		return err
	}
	// The guest's interfaces are not announced to the network: see nicArg.args.
	if err := m.mon.run(ctx, "migrate-set-parameters", map[string]any{"announce-rounds": 0}); err != nil {
		return err
	}
	if err := m.migrate(ctx, "migrate-incoming", state); err != nil {
		return err
	}
	if err := m.await(ctx, nil); err != nil {
		return fmt.Errorf("take the state saved %s: %w", s.from, err)
	}
	if s.shape.Live {
		return m.mon.run(ctx, "cont", nil)
	}
	return nil
}
