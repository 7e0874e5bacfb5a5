package guest

import (
	"errors"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// copyTree copies what is in directory from into directory to, with owners, modes, times and extended attributes, and
// makes to like from itself. It follows no symbolic link.
func copyTree(from, to, depth int) error {
	if depth > 256 {
		return errors.New("directories nested more than 256 deep")
	}
	dir := os.NewFile(uintptr(dup(from)), "volume")
	names, err := dir.Readdirnames(-1)
	dir.Close()
	if err != nil {
		return err
	}
	for _, name := range names {
		var st unix.Stat_t
		if err := unix.Fstatat(from, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return err
		}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFDIR:
			err = copyDir(from, to, name, depth)
		case unix.S_IFREG:
			err = copyFile(from, to, name, &st)
		case unix.S_IFLNK:
			err = copyLink(from, to, name, &st)
		default:
			if err = unix.Mknodat(to, name, st.Mode, int(st.Rdev)); err == nil {
				err = copyOwner(to, name, &st)
			}
		}
		if err != nil {
			return &os.PathError{Op: "copy", Path: name, Err: err}
		}
	}
	return copyMeta(from, to)
}

func dup(fd int) int {
	n, _ := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
	return n
}

func copyDir(from, to int, name string, depth int) error {
	if err := unix.Mkdirat(to, name, 0o700); err != nil {
		return err
	}
	const flags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	a, err := unix.Openat(from, name, flags, 0)
	if err != nil {
		return err
	}
	defer unix.Close(a)
	b, err := unix.Openat(to, name, flags, 0)
	if err != nil {
		return err
	}
	defer unix.Close(b)
	return copyTree(a, b, depth+1)
}

func copyFile(from, to int, name string, st *unix.Stat_t) error {
	a, err := unix.Openat(from, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer unix.Close(a)
	b, err := unix.Openat(to, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	defer unix.Close(b)
	for left := st.Size; left > 0; {
		n, err := unix.Sendfile(b, a, nil, int(min(left, 1<<30)))
		if err != nil {
			return err
		}
		if n == 0 {
			break
		}
		left -= int64(n)
	}
	return copyMeta(a, b)
}

func copyLink(from, to int, name string, st *unix.Stat_t) error {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(from, name, buf)
	if err != nil {
		return err
	}
	if err := unix.Symlinkat(string(buf[:n]), to, name); err != nil {
		return err
	}
	return unix.Fchownat(to, name, int(st.Uid), int(st.Gid), unix.AT_SYMLINK_NOFOLLOW)
}

func copyOwner(dir int, name string, st *unix.Stat_t) error {
	if err := unix.Fchownat(dir, name, int(st.Uid), int(st.Gid), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	return unix.Fchmodat(dir, name, st.Mode&0o7777, 0)
}

// copyMeta makes an open file or directory like another: owner first, for a change of owner clears mode bits and
// capabilities.
func copyMeta(from, to int) error {
	var st unix.Stat_t
	if err := unix.Fstat(from, &st); err != nil {
		return err
	}
	if err := unix.Fchown(to, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	if err := unix.Fchmod(to, st.Mode&0o7777); err != nil {
		return err
	}
	if err := copyXattrs(from, to); err != nil {
		return err
	}
	times := []unix.Timeval{unix.NsecToTimeval(st.Atim.Nano()), unix.NsecToTimeval(st.Mtim.Nano())}
	return unix.Futimes(to, times)
}

func copyXattrs(from, to int) error {
	list := make([]byte, 64<<10)
	n, err := unix.Flistxattr(from, list)
	if err == unix.ENOTSUP {
		return nil
	}
	if err != nil {
		return err
	}
	value := make([]byte, 64<<10)
	for _, name := range strings.Split(string(list[:n]), "\x00") {
		if name == "" || strings.HasPrefix(name, "trusted.overlay.") {
			continue
		}
		n, err := unix.Fgetxattr(from, name, value)
		if err != nil {
			return err
		}
		if err := unix.Fsetxattr(to, name, value[:n], 0); err != nil && err != unix.ENOTSUP {
			return err
		}
	}
	return nil
}
