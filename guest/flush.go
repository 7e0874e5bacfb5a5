package guest

import (
	"errors"
	"fmt"
	"unsafe"

	"github.com/cradlevm/cradle/api"
	"golang.org/x/sys/unix"
)

// The request that shuts an ext4 file system down, and the manner that leaves its journal as it is (linux/ext4.h).
const (
	ext4Shutdown   = 0x8004587d // EXT4_IOC_SHUTDOWN
	leavingJournal = 2          // EXT4_GOING_FLAGS_NOLOGFLUSH
)

// flush writes what the container has written to its disk and its volumes'. No process of the container runs any more, its file
// systems are still mounted.
func (c *container) flush() error {
	var errs []error
	for i, d := range writtenDisks(c.req) {
		errs = append(errs, flushDisk(c.nodes[len(c.req.Rootfs.Layers)+i], d))
	}
	return errors.Join(errs...)
}

// flushDisk writes what is to be written to a disk, which has no room for it when the host's file system is full: that is lost
// then, and an error.
//
// The file system is shut down after an error. Otherwise its unmounting, which fails to write what is only in the
// journal to where it belongs, marks the journal as one that nobody needs (ext4_put_super, at least up to Linux 6.12): at its
// next mount the file system would be broken, not as the journal has it.
func flushDisk(node string, d api.Disk) error {
	fd, err := openMounted(node, d.FSType)
	if err != nil {
		return fmt.Errorf("flush disk %s: %w", d.Serial, err)
	}
	defer unix.Close(fd)
	// What could not be written in the background is told to one that asks, which a process may have been. But the kernel
	// ends a journal that lacks some of it as soon as anything is changed; nobody sees this directory.
	now := []unix.Timespec{{Nsec: unix.UTIME_NOW}, {Nsec: unix.UTIME_NOW}}
	err = unix.UtimesNanoAt(fd, ".", now, 0)
	if synced := unix.Syncfs(fd); synced != nil {
		err = synced
	}
	if err != nil {
		manner := uint32(leavingJournal)
		unix.Syscall(unix.SYS_IOCTL, uintptr(fd), ext4Shutdown, uintptr(unsafe.Pointer(&manner)))
		return fmt.Errorf("flush disk %s: %w", d.Serial, err)
	}
	return nil
}

// openMounted opens the root directory of a device's file system, which is mounted already where only the container's
// thread would find it.
func openMounted(node, fstype string) (fd int, err error) {
	fs, err := unix.Fsopen(fstype, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("fsopen: %w", err)
	}
	defer unix.Close(fs)
	if err := unix.FsconfigSetString(fs, "source", node); err != nil {
		return -1, fmt.Errorf("fsconfig: %w", err)
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, fmt.Errorf("fsconfig: %w", err)
	}
	tree, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("fsmount: %w", err)
	}
	defer unix.Close(tree)
	return unix.Openat(tree, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
}
