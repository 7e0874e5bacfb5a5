package vmtest

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cradlevm/cradle/api"
	"github.com/cradlevm/cradle/api/wire"
	"github.com/cradlevm/cradle/vm"
	"github.com/cradlevm/cradle/vm/vmtest/guestapi"
)

// newDisk makes an image of so many bytes whose contents depend on its serial.
func newDisk(t *testing.T, serial string, size int) vm.Disk {
	path := filepath.Join(t.TempDir(), serial)
	if err := os.WriteFile(path, contents(serial, size), 0o600); err != nil {
		t.Fatal(err)
	}
	return vm.Disk{Serial: serial, Path: path}
}

func contents(serial string, size int) []byte {
	b := make([]byte, size)
	rand.NewChaCha8(sha256.Sum256([]byte(serial))).Read(b)
	return b
}

// checkDisk reads a piece of a disk in the guest and compares it with what newDisk wrote.
func checkDisk(t *testing.T, client *wire.Client, serial string, size int, offset, length int64) {
	t.Helper()
	var got guestapi.Extent
	call(t, client, guestapi.MethodRead, guestapi.Extent{Serial: serial, Offset: offset, Length: length}, &got)
	if !bytes.Equal(got.Data, contents(serial, size)[offset:offset+length]) {
		t.Errorf("disk %s: other bytes at %d", serial, offset)
	}
}

func testBootDisks(t *testing.T, m *machine, client *wire.Client, fixed, scratch vm.Disk) {
	var found []guestapi.Disk
	call(t, client, guestapi.MethodAwait, guestapi.Await{Serial: fixed.Serial, Present: true}, nil)
	call(t, client, guestapi.MethodAwait, guestapi.Await{Serial: scratch.Serial, Present: true}, nil)
	call(t, client, guestapi.MethodDisks, nil, &found)
	want := map[string]guestapi.Disk{
		fixed.Serial:   {Serial: fixed.Serial, Size: 1 << 20, ReadOnly: true},
		scratch.Serial: {Serial: scratch.Serial, Size: 16 << 20},
	}
	if len(found) != len(want) {
		t.Errorf("the guest has %+v", found)
	}
	for _, d := range found {
		if d != want[d.Serial] {
			t.Errorf("the guest has %+v, want %+v", d, want[d.Serial])
		}
	}
	checkDisk(t, client, fixed.Serial, 1<<20, 512<<10, 512<<10)
	checkDisk(t, client, scratch.Serial, 16<<20, 15<<20, 1<<20)

	text := bytes.Repeat([]byte("scratch!"), 1024)
	if err := client.Call(within(t), guestapi.MethodWrite, guestapi.Extent{Serial: fixed.Serial, Data: text}, nil); err == nil {
		t.Error("a read-only disk was written to")
	}
	checkDisk(t, client, fixed.Serial, 1<<20, 0, 64<<10)
	if now, err := os.ReadFile(fixed.Path); err != nil || !bytes.Equal(now, contents(fixed.Serial, 1<<20)) {
		t.Errorf("a read-only disk has changed (%v)", err)
	}

	call(t, client, guestapi.MethodWrite, guestapi.Extent{Serial: scratch.Serial, Offset: 4 << 20, Data: text}, nil)
	now, err := os.ReadFile(scratch.Path)
	if err != nil || !bytes.Equal(now[4<<20:4<<20+len(text)], text) {
		t.Errorf("what the guest wrote and synced is not in the file (%v)", err)
	}
	before := blocks(t, scratch.Path)
	call(t, client, guestapi.MethodDiscard, guestapi.Extent{Serial: scratch.Serial, Offset: 8 << 20, Length: 8 << 20}, nil)
	if after := blocks(t, scratch.Path); after > before/2+64 {
		t.Errorf("discarding half of the disk left %d of %d blocks", after, before)
	}
}

// blocks is how much of a file is really there, in units of 512 bytes.
func blocks(t *testing.T, path string) int64 {
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Sys().(*syscall.Stat_t).Blocks
}

func testPlug(t *testing.T, m *machine, client *wire.Client) {
	p, ok := m.VM.(vm.DiskPlugger)
	if !ok {
		t.Skip("the driver has no DiskPlugger")
	}
	const count, size = 30, 64 << 10
	var disks []vm.Disk
	for i := range count {
		d := newDisk(t, fmt.Sprintf("PLUG%032d", i), size) // serials of full length
		d.ReadOnly = i%2 == 0
		disks = append(disks, d)
	}
	began := time.Now()
	each(disks, func(d vm.Disk) {
		if err := p.Plug(within(t), d); err != nil {
			t.Error(err)
		}
	})
	plugged := time.Since(began)
	for _, d := range disks {
		call(t, client, guestapi.MethodAwait, guestapi.Await{Serial: d.Serial, Present: true}, nil)
	}
	t.Logf("%d disks plugged in %v, all seen by the guest after %v", count, plugged.Round(time.Millisecond), time.Since(began).Round(time.Millisecond))
	for _, d := range disks {
		checkDisk(t, client, d.Serial, size, size-8192, 8192)
		if !holds(m.PID(), d.Path) {
			t.Errorf("the monitor does not hold %s open: the test below means nothing", d.Path)
		}
	}
	testPlugErrors(t, p, disks[0])

	began = time.Now()
	each(disks, func(d vm.Disk) {
		if err := p.Unplug(within(t), d.Serial); err != nil {
			t.Error(err)
		}
	})
	unplugged := time.Since(began)
	for _, d := range disks {
		call(t, client, guestapi.MethodAwait, guestapi.Await{Serial: d.Serial}, nil)
		if holds(m.PID(), d.Path) {
			t.Errorf("the monitor still holds %s open", d.Path)
		}
	}
	t.Logf("unplugged in %v, all gone for the guest after %v", unplugged.Round(time.Millisecond), time.Since(began).Round(time.Millisecond))

	// A serial may come again, with other contents.
	again := newDisk(t, "AGAIN", size)
	again.Serial = disks[0].Serial
	began = time.Now()
	if err := p.Plug(within(t), again); err != nil {
		t.Fatal(err)
	}
	call(t, client, guestapi.MethodAwait, guestapi.Await{Serial: again.Serial, Present: true}, nil)
	t.Logf("one disk plugged and seen in %v", time.Since(began).Round(time.Millisecond))
	var got guestapi.Extent
	call(t, client, guestapi.MethodRead, guestapi.Extent{Serial: again.Serial, Length: 4096}, &got)
	if !bytes.Equal(got.Data, contents("AGAIN", size)[:4096]) {
		t.Error("a serial plugged again shows other bytes")
	}
	if err := p.Unplug(within(t), again.Serial); err != nil {
		t.Error(err)
	}
}

func testPlugErrors(t *testing.T, p vm.DiskPlugger, there vm.Disk) {
	if err := p.Plug(within(t), there); !errors.Is(err, vm.ErrInvalid) {
		t.Errorf("plugging a serial twice: %v, want ErrInvalid", err)
	}
	if err := p.Unplug(within(t), "NOSUCHDISK"); !errors.Is(err, vm.ErrNotFound) {
		t.Errorf("unplugging an unknown disk: %v, want ErrNotFound", err)
	}
	if err := p.Plug(within(t), vm.Disk{Serial: "a-b", Path: there.Path}); !errors.Is(err, vm.ErrInvalid) {
		t.Errorf("plugging with an odd serial: %v, want ErrInvalid", err)
	}
	if err := p.Plug(within(t), vm.Disk{Serial: "MISSING", Path: there.Path + ".missing"}); err == nil {
		t.Error("plugging a missing file: no error")
	}
}

// testFullDisk writes to a disk that the host's file system has no room for: the guest gets an error, and goes on.
func testFullDisk(t *testing.T, m *machine, client *wire.Client) {
	p, ok := m.VM.(vm.DiskPlugger)
	if !ok {
		t.Skip("the driver has no DiskPlugger")
	}
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Skip(err)
	}
	defer func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	}()
	d := vm.Disk{Serial: "FULL", Path: filepath.Join(dir, "disk")}
	if err := errors.Join(os.WriteFile(d.Path, nil, 0o600), os.Truncate(d.Path, 8<<20)); err != nil {
		t.Fatal(err)
	}
	if err := p.Plug(within(t), d); err != nil {
		t.Fatal(err)
	}
	call(t, client, guestapi.MethodAwait, guestapi.Await{Serial: d.Serial, Present: true}, nil)
	write := func(offset, length int64) error {
		return client.Call(within(t), guestapi.MethodWrite, guestapi.Extent{Serial: d.Serial, Offset: offset, Data: bytes.Repeat([]byte("full"), int(length/4))}, nil)
	}
	if err := write(0, 64<<10); err != nil {
		t.Error(err)
	}
	if err := write(64<<10, 2<<20); !errors.As(err, new(*api.Error)) {
		t.Errorf("writing what does not fit: %v, want the guest's error", err)
	}
	if err := write(0, 64<<10); err != nil {
		t.Errorf("writing where there is room already: %v", err)
	}
	if err := syscall.Mount("", dir, "", syscall.MS_REMOUNT, "size=16m"); err != nil {
		t.Fatal(err)
	}
	if err := write(64<<10, 2<<20); err != nil {
		t.Errorf("writing when there is room again: %v", err)
	}
	if err := p.Unplug(within(t), d.Serial); err != nil {
		t.Error(err)
	}
}

// each calls f for all disks at once.
func each(disks []vm.Disk, f func(vm.Disk)) {
	var wg sync.WaitGroup
	for _, d := range disks {
		wg.Go(func() { f(d) })
	}
	wg.Wait()
}
