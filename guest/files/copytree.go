package files

import (
	"errors"
	"math"
	"strings"

	"github.com/cradlevm/cradle/api"
	"golang.org/x/sys/unix"
)

// maxLinkPaths bounds the bytes of paths that a copy remembers of files with several names. A file that finds no room
// is copied once for each of its names.
const maxLinkPaths = 16 << 20

// CopyTree copies what is in directory from into the empty directory to, and makes to like from itself: owners, modes,
// times to the nanosecond and extended attributes, several names of one file, holes. It follows no symbolic link. from
// may be hostile but stands still; to is nobody else's.
func CopyTree(from, to int) error {
	c := &copier{to: to, links: map[inode]*linked{}, room: maxLinkPaths}
	return c.directory(from, to, "", 0)
}

// copier copies one tree.
type copier struct {
	to    int
	links map[inode]*linked
	room  int // bytes of paths that may still be remembered
}

// linked is a file whose other names are still to come.
type linked struct {
	path string // of its copy, below to
	left uint64 // names
}

// directory copies what is in from to to, whose path below the top is prefix: empty, or ending in a slash.
func (c *copier) directory(from, to int, prefix string, depth int) error {
	if depth > maxDepth {
		return tooDeep(prefix)
	}
	err := eachName(from, func(name string) error {
		err := c.entry(from, to, prefix, name, depth)
		var errno unix.Errno
		if errors.As(err, &errno) { // not named yet by a directory further down
			return api.Errorf(api.CodeInternal, "copy %.200q: %w", prefix+name, errno)
		}
		return err
	})
	if err != nil {
		return err
	}
	return copyMeta(from, to)
}

func (c *copier) entry(from, to int, prefix, name string, depth int) error {
	var st unix.Stat_t
	if err := unix.Fstatat(from, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return c.subdirectory(from, to, prefix, name, depth)
	}
	if st.Nlink > 1 {
		if done, err := c.link(to, prefix+name, name, &st); done || err != nil {
			return err
		}
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return copyFile(from, to, name, &st)
	case unix.S_IFLNK:
		buf := make([]byte, unix.PathMax)
		n, err := unix.Readlinkat(from, name, buf)
		if err != nil {
			return err
		}
		if err := unix.Symlinkat(string(buf[:n]), to, name); err != nil {
			return err
		}
	default:
		if err := unix.Mknodat(to, name, st.Mode, int(st.Rdev)); err != nil {
			return err
		}
	}
	return copyOwner(to, name, &st)
}

// link makes a name of a file that was copied under another one. done is false when this is the first.
func (c *copier) link(to int, p, name string, st *unix.Stat_t) (done bool, err error) {
	id := inode{st.Dev, st.Ino}
	first := c.links[id]
	if first == nil {
		// A path too long for the kernel is of no use.
		if len(p) < unix.PathMax && len(p) <= c.room {
			c.links[id] = &linked{p, uint64(st.Nlink) - 1}
			c.room -= len(p)
		}
		return false, nil
	}
	if err := unix.Linkat(c.to, first.path, to, name, 0); err != nil {
		return false, err
	}
	if first.left--; first.left == 0 {
		delete(c.links, id)
		c.room += len(first.path)
	}
	return true, nil
}

func (c *copier) subdirectory(from, to int, prefix, name string, depth int) error {
	if err := unix.Mkdirat(to, name, 0o700); err != nil {
		return err
	}
	a, err := openDir(from, name)
	if err != nil {
		return err
	}
	defer unix.Close(a)
	b, err := openDir(to, name)
	if err != nil {
		return err
	}
	defer unix.Close(b)
	return c.directory(a, b, prefix+name+"/", depth+1)
}

func copyFile(from, to int, name string, st *unix.Stat_t) error {
	a, err := openFile(from, name)
	if err != nil {
		return err
	}
	defer unix.Close(a)
	b, err := unix.Openat(to, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	defer unix.Close(b)
	if err := copyData(a, b, st.Size); err != nil {
		return err
	}
	return copyMeta(a, b)
}

// copyData copies the size bytes of a file, holes as holes where the file system tells of them.
func copyData(a, b int, size int64) error {
	for at := int64(0); at < size; {
		begin, err := unix.Seek(a, at, unix.SEEK_DATA)
		if err == unix.ENXIO {
			break // a hole up to the end
		}
		end := size
		if err != nil {
			begin = at // a file system without a notion of holes: all is data
		} else if end, err = unix.Seek(a, begin, unix.SEEK_HOLE); err != nil {
			end = size
		}
		end = min(end, size)
		if _, err := unix.Seek(b, begin, unix.SEEK_SET); err != nil {
			return err
		}
		for at = begin; at < end; {
			n, err := unix.Sendfile(b, a, &at, int(min(end-at, math.MaxInt32&^0xfff)))
			if err == unix.EINTR {
				continue
			}
			if err != nil {
				return err
			}
			if n == 0 { // it has become shorter: the rest is zeros
				return unix.Ftruncate(b, size)
			}
		}
	}
	return unix.Ftruncate(b, size)
}

// copyOwner makes an entry that cannot be opened like another: its owner, for what is no link its mode, its times.
func copyOwner(dir int, name string, st *unix.Stat_t) error {
	if err := unix.Fchownat(dir, name, int(st.Uid), int(st.Gid), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFLNK {
		if err := unix.Fchmodat(dir, name, st.Mode&0o7777, 0); err != nil {
			return err
		}
	}
	return unix.UtimesNanoAt(dir, name, []unix.Timespec{st.Atim, st.Mtim}, unix.AT_SYMLINK_NOFOLLOW)
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
	return setTimes(to, st.Atim, st.Mtim)
}

// setTimes sets the times of an open file.
func setTimes(fd int, atime, mtime unix.Timespec) error {
	return unix.UtimesNanoAt(fd, "", []unix.Timespec{atime, mtime}, unix.AT_EMPTY_PATH)
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
		if name == "" || name == mountMark || strings.HasPrefix(name, "trusted.overlay.") {
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
