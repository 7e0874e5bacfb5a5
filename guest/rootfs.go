package guest

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/cradlevm/cradle/api"
	"golang.org/x/sys/unix"
)

const (
	runDir = "/run/cradle"
	// stage is where a container's root is put together. Every container's thread mounts its own tmpfs there, in
	// its own mount namespace, so nobody sees another's.
	stage = runDir + "/stage"
)

// requestDisks lists the serials of a request's own disks: layers, upper, volumes.
func requestDisks(r *api.CreateRequest) []string {
	var serials []string
	for _, l := range r.Rootfs.Layers {
		serials = append(serials, l.Serial)
	}
	for _, d := range writtenDisks(r) {
		serials = append(serials, d.Serial)
	}
	return serials
}

// writtenDisks are those of a request that its container may write to: their devices follow those of the layers.
func writtenDisks(r *api.CreateRequest) []api.Disk {
	var disks []api.Disk
	if r.Rootfs.Upper != nil {
		disks = append(disks, *r.Rootfs.Upper)
	}
	for _, v := range r.VolumeDisks {
		disks = append(disks, v.Disk)
	}
	return disks
}

// enterNamespaces gives the calling thread namespaces of its own, with mounts that nothing propagates into.
func enterNamespaces() error {
	if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS); err != nil {
		return fmt.Errorf("make namespaces: %w", err)
	}
	return unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, "")
}

// mountRootfs stacks the layers at stage/root. nodes are the devices of the layers and of the upper filesystem.
func mountRootfs(r *api.Rootfs, nodes []string) error {
	if err := os.MkdirAll(stage, 0o700); err != nil {
		return err
	}
	if err := unix.Mount("stage", stage, "tmpfs", unix.MS_NOSUID, "mode=700"); err != nil {
		return fmt.Errorf("mount the stage: %w", err)
	}
	// Short relative names keep the options of 500 layers below the kernel's limit of one page.
	if err := unix.Chdir(stage); err != nil {
		return err
	}
	for i, l := range r.Layers {
		dir := strconv.Itoa(i)
		if err := mountDisk(nodes[i], dir, l, unix.MS_RDONLY); err != nil {
			return err
		}
	}
	if err := unix.Mkdir("u", 0o755); err != nil {
		return err
	}
	if r.Upper != nil {
		if err := mountDisk(nodes[len(nodes)-1], "u", *r.Upper, 0); err != nil {
			return err
		}
	}
	for _, dir := range []string{"u/upper", "u/work", "u/volumes", "root"} {
		if err := unix.Mkdir(dir, 0o755); err != nil && err != unix.EEXIST {
			return err
		}
	}
	var data strings.Builder
	data.WriteString("lowerdir=")
	for i := len(r.Layers) - 1; i >= 0; i-- {
		data.WriteString(strconv.Itoa(i))
		if i > 0 {
			data.WriteByte(':')
		}
	}
	// With xino one device number goes for all files, as with docker, whose layers are on one file system: tar
	// --one-file-system, for one, would leave out all others. It also keeps a file's inode number when it is copied up.
	data.WriteString(",upperdir=u/upper,workdir=u/work,xino=on")
	if err := unix.Mount("overlay", "root", "overlay", 0, data.String()); err != nil {
		return api.Errorf(api.CodeInternal, "stack %d layers: %w", len(r.Layers), err)
	}
	return nil
}

// mountDisk mounts a device of the host's at dir.
func mountDisk(node, dir string, d api.Disk, flags uintptr) error {
	if err := unix.Mkdir(dir, 0o755); err != nil && err != unix.EEXIST {
		return err
	}
	mount := func() error { return unix.Mount(node, dir, d.FSType, flags, diskOptions(d.FSType)) }
	err := whenLive(mount)
	if err != nil && remeasure("/sys", filepath.Base(node)) {
		err = mount()
	}
	if err != nil {
		return api.Errorf(api.CodeInternal, "mount disk %s as %s: %w", d.Serial, d.FSType, err)
	}
	return nil
}

// remeasure has the kernel ask once more how large a disk is that it takes for an empty one, and tells whether it was one. QEMU (10, not 7.2) answers the next
// command to any disk with a unit attention whenever another has been plugged; the kernel asks a new disk for its size four times, and
// gives up where more are plugged meanwhile.
func remeasure(sys, name string) bool {
	dir := filepath.Join(sys, "block", name)
	size, err := readSmall(filepath.Join(dir, "size"), 32)
	return err == nil && string(size) == "0\n" && os.WriteFile(filepath.Join(dir, "device/rescan"), []byte("1"), 0) == nil
}

// whenLive calls use of a disk, again while the kernel is not done with adding it: a new disk is in /sys and in /dev a
// moment before it can be opened, and until then it is ENXIO. The kernel's word that it is there comes after.
func whenLive(use func() error) error {
	err := use()
	if err != unix.ENXIO {
		return err
	}
	waited := awaitDevice(diskTimeout, func() (bool, error) {
		err = use()
		return err != unix.ENXIO, nil
	})
	if waited != nil && err == nil {
		return waited
	}
	return err
}

// diskOptions keep ext4 from reading the block bitmaps of all its groups as soon as it is mounted, on a thread of its own:
// most containers write to one or two of the 80 that 10 GiB have.
func diskOptions(fstype string) string {
	if fstype == "ext4" {
		return "no_prefetch_block_bitmaps"
	}
	return ""
}

// enterRoot makes stage/root the calling thread's root and lets go of everything else. From here on no path leads
// out of the container.
func enterRoot() error {
	if err := unix.Chdir(stage + "/root"); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot_root: %w", err)
	}
	// The old root lies on top of the new one now.
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("let the old root go: %w", err)
	}
	return unix.Chdir("/")
}
