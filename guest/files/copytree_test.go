package files

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// copied copies the directory from of dir to a new one and returns that one's path.
func copied(t *testing.T, dir string) string {
	t.Helper()
	to := filepath.Join(dir, "to")
	if err := os.Mkdir(to, 0o700); err != nil {
		t.Fatal(err)
	}
	a, err := unix.Open(filepath.Join(dir, "from"), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(a)
	b, err := unix.Open(to, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(b)
	if err := CopyTree(a, b); err != nil {
		t.Fatal(err)
	}
	return to
}

func lstat(t *testing.T, p string) unix.Stat_t {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(p, &st); err != nil {
		t.Fatal(p, err)
	}
	return st
}

// A copy has what the original has: contents, kinds, owners, modes, times to the nanosecond, attributes.
func TestCopyTree(t *testing.T) {
	dir, _ := rootDir(t)
	tree(t, dir, "from/f=text", "from/empty=", "from/d/deep/f=more", "from/l -> /x", "from/suid=y")
	p := func(name string) string { return filepath.Join(dir, "from", name) }
	for _, err := range []error{
		os.Chown(p("f"), 7, 8), os.Lchown(p("l"), 9, 10), os.Chown(p("suid"), 5, 5), unix.Chmod(p("suid"), 0o6755),
		unix.Chmod(p("d"), 0o1731), unix.Mkfifo(p("pipe"), 0o600), unix.Mknod(p("socket"), unix.S_IFSOCK|0o640, 0),
		unix.Mknod(p("null"), unix.S_IFCHR|0o640, int(unix.Mkdev(1, 3))), unix.Chmod(filepath.Join(dir, "from"), 0o751),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	hasXattr := unix.Setxattr(p("f"), "user.k", []byte("v\x00w"), 0) == nil
	_ = unix.Setxattr(p("f"), mountMark, []byte{'1'}, 0)
	names := []string{"d/deep/f", "d/deep", "d", "f", "empty", "l", "suid", "pipe", "socket", "null", "."}
	for i, name := range names {
		ts := []unix.Timespec{{Sec: 1000 + int64(i), Nsec: 123456789}, {Sec: 2000 + int64(i), Nsec: 987654321}}
		if err := unix.UtimesNanoAt(unix.AT_FDCWD, p(name), ts, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			t.Fatal(err)
		}
	}
	to := copied(t, dir)
	for i, name := range names {
		a, b := lstat(t, p(name)), lstat(t, filepath.Join(to, name))
		if a.Mode != b.Mode || a.Uid != b.Uid || a.Gid != b.Gid || a.Rdev != b.Rdev || a.Mtim != b.Mtim ||
			a.Mode&unix.S_IFMT != unix.S_IFDIR && a.Size != b.Size || b.Mtim.Sec != 2000+int64(i) || b.Mtim.Nsec != 987654321 {
			t.Errorf("%s: %+v, was %+v", name, b, a)
		}
	}
	if text, err := os.ReadFile(filepath.Join(to, "d/deep/f")); err != nil || string(text) != "more" {
		t.Errorf("%q %v", text, err)
	}
	if at, err := os.Readlink(filepath.Join(to, "l")); err != nil || at != "/x" {
		t.Errorf("%q %v", at, err)
	}
	if n, _ := unix.Getxattr(filepath.Join(to, "f"), "user.k", make([]byte, 9)); hasXattr && n != 3 {
		t.Error("the attribute is gone")
	}
	if n, _ := unix.Getxattr(filepath.Join(to, "f"), mountMark, make([]byte, 9)); n > 0 {
		t.Error("the mark of a mount point went along")
	}
}

// Names of one file stay names of one file, in whatever directories they are; a name outside of the tree is none.
func TestCopyTreeHardLinks(t *testing.T) {
	dir, _ := rootDir(t)
	tree(t, dir, "from/a/f=one", "from/b/c/", "outside=other", "from/alone=x", "from/s -> a")
	p := func(name string) string { return filepath.Join(dir, "from", name) }
	for _, err := range []error{
		os.Link(p("a/f"), p("b/c/f")), os.Link(p("a/f"), p("z")), os.Link(p("s"), p("b/s")),
		os.Link(filepath.Join(dir, "outside"), p("o")), unix.Mkfifo(p("pipe"), 0o600), os.Link(p("pipe"), p("b/pipe")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	to := copied(t, dir)
	for _, names := range [][]string{{"a/f", "b/c/f", "z"}, {"s", "b/s"}, {"pipe", "b/pipe"}, {"o"}, {"alone"}} {
		first := lstat(t, filepath.Join(to, names[0]))
		if int(first.Nlink) != len(names) {
			t.Errorf("%s: %d names, want %d", names[0], first.Nlink, len(names))
		}
		for _, name := range names[1:] {
			if st := lstat(t, filepath.Join(to, name)); st.Ino != first.Ino {
				t.Errorf("%s is not %s", name, names[0])
			}
		}
		if first.Ino == lstat(t, p(names[0])).Ino {
			t.Errorf("%s is the original", names[0])
		}
	}
}

// A copier that has no room to remember files with several names copies them once for each.
func TestCopyTreeForgets(t *testing.T) {
	dir, _ := rootDir(t)
	tree(t, dir, "from/f=one", "to/")
	if err := os.Link(filepath.Join(dir, "from/f"), filepath.Join(dir, "from/g")); err != nil {
		t.Fatal(err)
	}
	open := func(name string) int {
		fd, err := unix.Open(filepath.Join(dir, name), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(fd) })
		return fd
	}
	from, to := open("from"), open("to")
	c := &copier{to: to, links: map[inode]*linked{}}
	if err := c.directory(from, to, "", 0); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"to/f", "to/g"} {
		if text, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(text) != "one" {
			t.Errorf("%s: %q %v", name, text, err)
		}
	}
}

// Holes stay holes: at the beginning, in the middle, at the end, and where there is nothing else.
func TestCopyTreeHoles(t *testing.T) {
	dir, _ := rootDir(t)
	tree(t, dir, "from/")
	const unit = 1 << 20
	for name, data := range map[string][]int64{"none": {}, "begin": {7}, "middle": {0, 7}, "end": {0}, "all": {0, 1, 2, 3, 4, 5, 6, 7}} {
		f, err := os.Create(filepath.Join(dir, "from", name))
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Truncate(8 * unit); err != nil {
			t.Fatal(err)
		}
		for _, at := range data {
			if _, err := f.WriteAt(bytes.Repeat([]byte(name[:1]), unit), at*unit); err != nil {
				t.Fatal(err)
			}
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	to := copied(t, dir)
	for _, name := range []string{"none", "begin", "middle", "end", "all"} {
		a, errA := os.ReadFile(filepath.Join(dir, "from", name))
		b, errB := os.ReadFile(filepath.Join(to, name))
		if errA != nil || errB != nil || !bytes.Equal(a, b) {
			t.Errorf("%s: other contents: %v %v", name, errA, errB)
		}
		was, is := lstat(t, filepath.Join(dir, "from", name)), lstat(t, filepath.Join(to, name))
		if is.Blocks > was.Blocks+64 {
			t.Errorf("%s: %d blocks, was %d", name, is.Blocks, was.Blocks)
		}
	}
}

func TestCopyTreeTooDeep(t *testing.T) {
	dir, root := rootDir(t)
	fd := root
	if err := unix.Mkdirat(fd, "from", 0o755); err != nil {
		t.Fatal(err)
	}
	for name, i := "from", 0; i < maxDepth+2; name, i = "d", i+1 {
		next, err := openDir(fd, name)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(next) })
		if err := unix.Mkdirat(next, "d", 0o755); err != nil {
			t.Fatal(err)
		}
		fd = next
	}
	from, err := openDir(root, "from")
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(from)
	tree(t, dir, "to/")
	to, err := openDir(root, "to")
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(to)
	if err := CopyTree(from, to); err == nil || !strings.Contains(err.Error(), "nested") || len(err.Error()) > 200 {
		t.Errorf("%.200v", err)
	}
}
