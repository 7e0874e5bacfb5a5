package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/cradlevm/cradle/vm"
	"golang.org/x/sys/unix"
)

// A disk is a scsi-hd on the one virtio-scsi controller. Its slot gives its place on the bus: the first 256
// disks have a target each, then each target gets a second logical unit, and so on.
const (
	targets  = 256
	units    = 16 // as many as wanted, really: 4,096 disks
	maxDisks = targets * units
)

// stepsLimit bounds the steps of a plug that must not be left half done; they take milliseconds.
const stepsLimit = 30 * time.Second

// diskTable knows the disks and their slots.
type diskTable struct {
	mu    sync.Mutex
	disks map[string]*diskEntry
	used  [maxDisks]bool
	// next, below targets, is where the search for a free slot begins. A slot is used again as late as can be: the guest may still be
	// busy with the end of the disk that had it, and would take the new one for the old.
	next int
}

// diskEntry is a disk of the table.
type diskEntry struct {
	slot int
	busy bool // on its way in or out: not there yet, not free yet
	file fileID
}

// fileID is which file a disk's image is: its device and inode.
type fileID struct{ dev, ino uint64 }

func identify(f *os.File) (fileID, error) {
	var st unix.Stat_t
	err := unix.Fstat(int(f.Fd()), &st)
	return fileID{st.Dev, st.Ino}, err
}

// reserve takes a slot for a disk on its way in.
func (t *diskTable) reserve(serial string) (slot int, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, there := t.disks[serial]; there {
		return 0, fmt.Errorf("%w: there is already a disk with this serial", vm.ErrInvalid)
	}
	if slot = t.free(); slot < 0 {
		return 0, fmt.Errorf("%w: a VM has %d disks at most", vm.ErrInvalid, maxDisks)
	}
	t.disks[serial], t.used[slot] = &diskEntry{slot: slot, busy: true}, true
	t.next = (slot + 1) % targets
	return slot, nil
}

// restore takes the slots that disks had when the VM was saved.
func (t *diskTable) restore(form shape) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.next = form.Slot
	for _, d := range form.Disks {
		t.disks[d.Serial], t.used[d.Slot] = &diskEntry{slot: d.Slot, busy: true}, true
	}
}

// opened says which file a disk's image is.
func (t *diskTable) opened(serial string, f *os.File) error {
	id, err := identify(f)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.disks[serial].file = id
	return err
}

// files tells which file each disk's image is, by serial.
func (t *diskTable) files() map[string]fileID {
	t.mu.Lock()
	defer t.mu.Unlock()
	all := map[string]fileID{}
	for serial, e := range t.disks {
		all[serial] = e.file
	}
	return all
}

// saved lists the disks that are there, by slot. None is on its way in or out.
func (t *diskTable) saved() (disks []savedDisk, next int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for serial, e := range t.disks {
		disks = append(disks, savedDisk{serial, e.slot})
	}
	slices.SortFunc(disks, func(a, b savedDisk) int { return a.Slot - b.Slot })
	return disks, t.next
}

// free is a free slot, on a target of its own while there are such; -1 when there is none. t.mu is held.
func (t *diskTable) free() int {
	if i := slices.Index(t.used[t.next:targets], false); i >= 0 {
		return t.next + i
	}
	return slices.Index(t.used[:], false)
}

// take finds a disk that is about to go.
func (t *diskTable) take(serial string) (slot int, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.disks[serial]
	if e == nil || e.busy {
		return 0, vm.ErrNotFound
	}
	e.busy = true
	return e.slot, nil
}

// settle says that a disk is there, after all or still.
func (t *diskTable) settle(serial string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.disks[serial].busy = false
}

// release forgets a disk that is gone.
func (t *diskTable) release(serial string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.used[t.disks[serial].slot] = false
	delete(t.disks, serial)
}

// deviceID names a disk's device so that the table can be read back from QEMU after a restart.
func deviceID(slot int, serial string) string { return fmt.Sprintf("disk-%d-%s", slot, serial) }

// nodeID names a disk's block node; QEMU allows 31 characters, too few for the serial.
func nodeID(slot int) string { return fmt.Sprintf("disk-%d", slot) }

func parseDeviceID(id string) (slot int, serial string, ok bool) {
	parts := strings.Split(id, "-")
	if len(parts) != 3 || parts[0] != "disk" {
		return 0, "", false
	}
	slot, err := strconv.Atoi(parts[1])
	return slot, parts[2], err == nil && slot >= 0 && slot < maxDisks && id == deviceID(slot, parts[2])
}

// Plug implements vm.DiskPlugger.
func (m *machine) Plug(ctx context.Context, d vm.Disk) error {
	if err := d.Check(); err != nil {
		return err
	}
	f, err := openDisk(d)
	if err != nil {
		return err
	}
	defer f.Close()
	m.steady.RLock()
	defer m.steady.RUnlock()
	if err := m.plug(ctx, d, f); err != nil {
		return m.explain(fmt.Errorf("plug disk %s: %w", d.Serial, err))
	}
	return nil
}

func (m *machine) plug(ctx context.Context, d vm.Disk, f *os.File) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	slot, err := m.disks.reserve(d.Serial)
	if err != nil {
		return err
	}
	return m.plugAt(ctx, slot, d, f)
}

// plugAt plugs a disk into a slot that has been reserved for it.
func (m *machine) plugAt(ctx context.Context, slot int, d vm.Disk, f *os.File) (err error) {
	defer func() {
		if err != nil {
			m.disks.release(d.Serial)
		} else {
			m.disks.settle(d.Serial)
		}
	}()
	// From here on QEMU is not left half way because a caller has lost patience.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stepsLimit)
	defer cancel()
	if err := errors.Join(m.disks.opened(d.Serial, f), m.addNode(ctx, slot, d, f)); err != nil {
		return err
	}
	err = m.mon.run(ctx, "device_add", map[string]any{
		"driver": "scsi-hd", "bus": scsiID + ".0", "id": deviceID(slot, d.Serial), "drive": nodeID(slot),
		"scsi-id": slot % targets, "lun": slot / targets, "serial": d.Serial,
		"device_id":     nodeID(slot), // by default the serial, which may then be 20 characters long only
		"rotation_rate": 1,            // a solid-state disk: the guest need not sort its requests
		// What cannot be written is the guest's error. By default QEMU stops the whole machine when the host's file system,
		// which a scratch disk grows in, is full.
		"werror": "report",
	})
	if err != nil {
		m.mon.run(ctx, "blockdev-del", map[string]any{"node-name": nodeID(slot)})
	}
	return err
}

// addNode makes QEMU's block node of an open image. The descriptor travels in a set of its own, which QEMU
// forgets with the node: the node holds a duplicate.
func (m *machine) addNode(ctx context.Context, slot int, d vm.Disk, f *os.File) error {
	value, err := m.mon.call(ctx, "add-fd", map[string]any{"opaque": "disk"}, int(f.Fd()))
	if err != nil {
		return err
	}
	var set struct {
		ID int `json:"fdset-id"`
	}
	if err := json.Unmarshal(value, &set); err != nil {
		return fmt.Errorf("QEMU add-fd: %w", err)
	}
	// remove-fd ends the set once nothing uses it: now on failure, with the node otherwise.
	defer m.mon.run(ctx, "remove-fd", map[string]any{"fdset-id": set.ID})
	return m.mon.run(ctx, "blockdev-add", map[string]any{
		"driver": "file", "node-name": nodeID(slot), "filename": fmt.Sprintf("/dev/fdset/%d", set.ID),
		"read-only": d.ReadOnly,
		"locking":   "off",   // layers are shared by many VMs; who may write what is not for QEMU to decide
		"discard":   "unmap", // what the guest frees, the host gets back
	})
}

// Unplug implements vm.DiskPlugger. It does not wait for the guest, which may have hung: the disk is gone all the
// same. It takes some 60 ms, which QEMU waits for company before it frees a device; so disks had better be unplugged
// at the same time than one after the other.
func (m *machine) Unplug(ctx context.Context, serial string) error {
	m.steady.RLock()
	defer m.steady.RUnlock()
	slot, err := m.disks.take(serial)
	if err != nil {
		return fmt.Errorf("unplug disk %s: %w", serial, err)
	}
	if err := m.unplug(ctx, slot, serial); err != nil {
		m.disks.settle(serial)
		return m.explain(fmt.Errorf("unplug disk %s: %w", serial, err))
	}
	m.disks.release(serial)
	return nil
}

// unplug can be called again after a failure half way.
func (m *machine) unplug(ctx context.Context, slot int, serial string) error {
	id := deviceID(slot, serial)
	deleted := m.deletions.expect(id)
	defer m.deletions.forget(id)
	err := m.mon.run(ctx, "device_del", map[string]any{"id": id})
	var refused *monitorError
	switch {
	case err == nil:
		select {
		case <-deleted:
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-m.mon.done:
			return vm.ErrExited
		}
	case errors.As(err, &refused) && refused.Class == "DeviceNotFound":
		// An earlier call got this far.
	default:
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stepsLimit)
	defer cancel()
	return m.mon.run(ctx, "blockdev-del", map[string]any{"node-name": nodeID(slot)})
}

// readDisks fills the table with what QEMU has.
func (m *machine) readDisks(ctx context.Context) error {
	value, err := m.mon.call(ctx, "qom-list", map[string]any{"path": "/machine/peripheral"})
	if err != nil {
		return err
	}
	var children []struct {
		Name string `json:"name"`
	}
	if err := json.Unmarshal(value, &children); err != nil {
		return fmt.Errorf("QEMU qom-list: %w", err)
	}
	m.disks.mu.Lock()
	defer m.disks.mu.Unlock()
	for _, c := range children {
		if slot, serial, ok := parseDeviceID(c.Name); ok {
			m.disks.disks[serial], m.disks.used[slot] = &diskEntry{slot: slot}, true
			m.disks.next = (slot + 1) % targets
		}
	}
	return nil
}

// deletions tells those who wait for a device to be gone.
type deletions struct {
	mu      sync.Mutex
	waiting map[string]chan struct{}
}

// expect returns a channel that is closed when the device is deleted. It must be asked for before the deletion.
func (d *deletions) expect(id string) <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	c := make(chan struct{})
	d.waiting[id] = c
	return c
}

func (d *deletions) forget(id string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.waiting, id)
}

func (d *deletions) happened(id string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if c := d.waiting[id]; c != nil {
		close(c)
		delete(d.waiting, id)
	}
}
