package qemu

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"sync"

	"github.com/cradlevm/cradle/vm"
)

// Bounds of a snapshot's small files, in bytes. The devices' state is some 60 KiB.
const (
	maxState = 16 << 20
	maxShape = 1 << 20 // some 70 a disk
)

// processorLines find the processor's name and what it can do in /proc/cpuinfo.
var processorLines = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`(?m)^(?:model name|flags)\s*:\s*(.*)$`) })

// processor names the first processor of a /proc/cpuinfo: by its model and, since one model has other features under another
// firmware, microcode or hypervisor, a digest of those.
func processor(cpuinfo []byte) string {
	var model, features []byte
	if lines := processorLines().FindAllSubmatch(cpuinfo, 2); len(lines) == 2 {
		model, features = lines[0][1], lines[1][1]
	}
	return fmt.Sprintf("%s (%.12x)", model, sha256.Sum256(features))
}

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
	known := launch{version: q.version, accel: accel, tscKHz: d.tscKHz()}
	// Under TCG the guest's clock counts the host's ticks, whose frequency it was told at boot: to 2 MHz, since each
	// measurement is a little different. Under KVM it sees the host's processor.
	host := fmt.Sprintf("tsc %d MHz", (d.tscKHz()+1000)/2000*2)
	if accel == vm.AccelKVM {
		info, err := os.ReadFile("/proc/cpuinfo")
		if err != nil {
			return "", err
		}
		host = processor(info)
	}
	// What the kernel was told at boot, it keeps.
	return fmt.Sprintf("%s; %s; %s; %s; %s; %s; %s", q.build, known.machine(), l.processor(), l.kernelWords(), host, balloonDevice, nicArg{}.args(0)), nil
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
	q, err := d.qemu()
	if err != nil {
		return nil, err
	}
	s := &saved{driver: d, from: "from " + dir, build: q.build}
	if s.state, err = readBounded(filepath.Join(dir, savedState), maxState); err != nil {
		return nil, err
	}
	if s.form, err = readBounded(filepath.Join(dir, savedShape), maxShape); err != nil {
		return nil, err
	}
	if err := json.Unmarshal(s.form, &s.shape); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", vm.ErrInvalid, savedShape, err)
	}
	if err := s.shape.check(); err != nil {
		return nil, err
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
	if s.size = info.Size(); s.size < vm.MinMemory || s.size > vm.MaxMemory+oddMemory {
		return nil, fmt.Errorf("%w: a memory of %d bytes", vm.ErrInvalid, s.size)
	}
	sum := s.newSum()
	if s.memory, err = memoryFile("cradle-template"); err != nil {
		return nil, err
	}
	if err = copySparse(ctx, s.memory, memory, sum); err == nil {
		s.sealed = sync.OnceValue(func() error { return seal(s.memory) })
		err = s.sealed()
	}
	if err != nil {
		s.memory.Close()
		return nil, err
	}
	s.digest = sync.OnceValue(func() string { return hex.EncodeToString(sum.Sum(nil)) })
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
