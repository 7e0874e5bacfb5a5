// Walk prints all that a directory tree says of itself, one line to a path: the path and the facts of package
// hardimage's test, each quoted, separated by tabs.
//
//	walk [-touch] DIR
//	walk -wait          only waits for a signal
//
// With -touch it first sets the access time of each path (of the first 100 in a directory), for which overlayfs copies
// the path to its upper layer. Roots of other mounts are named and not entered. Paths may be longer than PATH_MAX: it
// walks with chdir. It must be alone with the tree.
package main

import (
	"bufio"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "walk:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	w := walker{out: bufio.NewWriterSize(os.Stdout, 1<<20), firsts: map[file]string{}}
	if len(args) == 2 && args[0] == "-touch" {
		w.touch, args = true, args[1:]
	}
	if len(args) == 1 && args[0] == "-wait" {
		return unix.Pause()
	}
	if len(args) != 1 {
		return fmt.Errorf("want one directory")
	}
	if err := unix.Chdir(args[0]); err != nil {
		return err
	}
	if _, err := w.show(".", "/", 0); err != nil {
		return err
	}
	if err := w.walk(""); err != nil {
		return err
	}
	// Without this line the output is not whole.
	fmt.Fprintln(w.out, "end")
	return w.out.Flush()
}

// touched is how many entries of a directory are touched.
const touched = 100

type walker struct {
	touch  bool
	out    *bufio.Writer
	root   file
	firsts map[file]string // the first path of each file: says which paths are one file, whatever its numbers
}

type file struct {
	major, minor uint32
	inode        uint64
}

// walk shows what is in the working directory, whose path is at.
func (w *walker) walk(at string) error {
	d, err := os.Open(".")
	if err != nil {
		return fmt.Errorf("%.200q: %w", at, err)
	}
	names, err := d.Readdirnames(-1)
	d.Close()
	if err != nil {
		return fmt.Errorf("%.200q: %w", at, err)
	}
	slices.Sort(names)
	for i, name := range names {
		p := at + "/" + name
		enter, err := w.show(name, p, i)
		if err != nil {
			return fmt.Errorf("%.200q: %w", p, err)
		}
		if !enter {
			continue
		}
		if err := unix.Chdir(name); err != nil {
			return fmt.Errorf("%.200q: %w", p, err)
		}
		if err := w.walk(p); err != nil {
			return err
		}
		if err := unix.Chdir(".."); err != nil {
			return err
		}
	}
	return nil
}

// show prints the facts of name, the nth in its directory, and tells whether it is a directory to be entered.
func (w *walker) show(name, p string, nth int) (enter bool, err error) {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, name, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_BASIC_STATS, &st); err != nil {
		return false, err
	}
	if p != "/" && st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0 {
		w.line(p, "type", "mount")
		return false, nil
	}
	before := file{st.Dev_major, st.Dev_minor, st.Ino}
	if w.touch && nth < touched {
		now := []unix.Timespec{{Nsec: unix.UTIME_NOW}, {Nsec: unix.UTIME_OMIT}}
		if err := unix.UtimesNanoAt(unix.AT_FDCWD, name, now, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return false, fmt.Errorf("touch: %w", err)
		}
		if err := unix.Statx(unix.AT_FDCWD, name, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_BASIC_STATS, &st); err != nil {
			return false, err
		}
	}
	id := file{st.Dev_major, st.Dev_minor, st.Ino}
	if p == "/" {
		w.root = id
	}
	if w.firsts[id] == "" {
		w.firsts[id] = p
	}
	facts := []string{
		"mode", fmt.Sprintf("%#o", st.Mode&0o7777),
		"owner", fmt.Sprintf("%d:%d", st.Uid, st.Gid),
		"rdev", fmt.Sprintf("%d:%d", st.Rdev_major, st.Rdev_minor),
		"size", fmt.Sprint(st.Size),
		"mtime", fmt.Sprintf("%d.%09d", st.Mtime.Sec, st.Mtime.Nsec),
		"nlink", fmt.Sprint(st.Nlink),
	}
	if first := w.firsts[id]; first != p {
		facts = append(facts, "first", first)
	}
	if id.major != w.root.major || id.minor != w.root.minor {
		facts = append(facts, "device", "not the root's")
	}
	if id != before {
		facts = append(facts, "inode", "changed by a touch")
	}
	kind := "unknown"
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		kind = "dir"
	case unix.S_IFCHR:
		kind = "char"
	case unix.S_IFBLK:
		kind = "block"
	case unix.S_IFIFO:
		kind = "fifo"
	case unix.S_IFSOCK:
		kind = "socket"
	case unix.S_IFLNK:
		kind = "symlink"
		target, err := os.Readlink(name)
		if err != nil {
			return false, err
		}
		facts = append(facts, "target", target)
	case unix.S_IFREG:
		kind = "file"
		sum, err := digest(name)
		if err != nil {
			return false, err
		}
		facts = append(facts, "sha256", sum)
	}
	xattrs, err := xattrsOf(name)
	if err != nil {
		return false, err
	}
	w.line(p, append(append([]string{"type", kind}, facts...), xattrs...)...)
	return kind == "dir", nil
}

func (w *walker) line(p string, facts ...string) {
	fmt.Fprintf(w.out, "%q", p)
	for _, f := range facts {
		fmt.Fprintf(w.out, "\t%q", f)
	}
	fmt.Fprintln(w.out)
}

func digest(name string) (string, error) {
	f, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return fmt.Sprintf("%x", h.Sum(nil)), nil
}

// xattrsOf returns names and values, but for overlayfs's own.
func xattrsOf(name string) ([]string, error) {
	buf := make([]byte, 64<<10)
	n, err := unix.Llistxattr(name, buf)
	if err != nil {
		return nil, fmt.Errorf("list xattrs: %w", err)
	}
	names := strings.Split(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00")
	slices.Sort(names)
	var out []string
	for _, x := range names {
		if x == "" || strings.HasPrefix(x, "trusted.overlay.") {
			continue
		}
		n, err := unix.Lgetxattr(name, x, buf)
		if err != nil {
			return nil, fmt.Errorf("get xattr %s: %w", x, err)
		}
		out = append(out, "xattr "+x, string(buf[:n]))
	}
	return out, nil
}
