package guest

import (
	"fmt"
	"os"
	"path"

	"github.com/cradlevm/cradle/api"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// defaultDevices are in every container, as the runtime spec demands.
var defaultDevices = [...]struct {
	path         string
	major, minor uint32
}{
	{"/dev/null", 1, 3}, {"/dev/zero", 1, 5}, {"/dev/full", 1, 7}, {"/dev/random", 1, 8}, {"/dev/urandom", 1, 9},
	{"/dev/tty", 5, 0},
}

var defaultLinks = [...][2]string{
	{"/dev/fd", "/proc/self/fd"}, {"/dev/stdin", "/proc/self/fd/0"}, {"/dev/stdout", "/proc/self/fd/1"},
	{"/dev/stderr", "/proc/self/fd/2"}, {"/dev/core", "/proc/kcore"}, {"/dev/ptmx", "pts/ptmx"},
}

// makeDevices fills /dev of the calling thread's root.
func makeDevices(l *specs.Linux) error {
	for _, d := range defaultDevices {
		if err := makeDevice(d.path, unix.S_IFCHR|0o666, unix.Mkdev(d.major, d.minor), 0, 0); err != nil {
			return err
		}
	}
	for _, d := range l.Devices {
		kind := map[string]uint32{"c": unix.S_IFCHR, "u": unix.S_IFCHR, "b": unix.S_IFBLK, "p": unix.S_IFIFO}[d.Type]
		if kind == 0 || !path.IsAbs(d.Path) {
			return api.Errorf(api.CodeInvalid, "linux.devices: %.80q of type %.10q", d.Path, d.Type)
		}
		mode, uid, gid := os.FileMode(0o666), uint32(0), uint32(0)
		if d.FileMode != nil {
			mode = *d.FileMode
		}
		if d.UID != nil {
			uid = *d.UID
		}
		if d.GID != nil {
			gid = *d.GID
		}
		dev := unix.Mkdev(uint32(d.Major), uint32(d.Minor))
		if err := makeDevice(d.Path, kind|uint32(mode.Perm()), dev, uid, gid); err != nil {
			return err
		}
	}
	for _, l := range defaultLinks {
		if err := unix.Symlink(l[1], l[0]); err != nil && err != unix.EEXIST {
			return fmt.Errorf("%s: %w", l[0], err)
		}
	}
	return nil
}

// makeDevice makes a node, in the place of whatever the image has at its path.
func makeDevice(p string, mode uint32, dev uint64, uid, gid uint32) error {
	parent, err := makeTarget(path.Dir(p), true)
	if err != nil {
		return err
	}
	p = path.Join(parent, path.Base(p))
	var st unix.Stat_t
	if unix.Lstat(p, &st) == nil {
		if st.Mode == mode && st.Rdev == dev && st.Uid == uid && st.Gid == gid {
			return nil
		}
		if err := unix.Unlink(p); err != nil {
			return fmt.Errorf("%s: %w", p, err)
		}
	}
	if err := unix.Mknod(p, mode, int(dev)); err != nil {
		return fmt.Errorf("mknod %s: %w", p, err)
	}
	if err := unix.Chmod(p, mode&0o7777); err != nil { // mknod heeds the umask
		return err
	}
	return unix.Lchown(p, int(uid), int(gid))
}

// mountConsole makes the process's terminal the container's /dev/console.
func mountConsole(slave int) error {
	target, err := makeTarget("/dev/console", false)
	if err != nil {
		return err
	}
	// A descriptor as the source: the slave has no path that the container could not change.
	tree, err := unix.OpenTree(slave, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
	if err != nil {
		return fmt.Errorf("open_tree of the terminal: %w", err)
	}
	defer unix.Close(tree)
	if err := unix.MoveMount(tree, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("mount /dev/console: %w", err)
	}
	return nil
}
