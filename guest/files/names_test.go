package files

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// headers reads the headers of an archive, by name.
func headers(t *testing.T, b []byte) map[string]*tar.Header {
	t.Helper()
	all := map[string]*tar.Header{}
	for tr := tar.NewReader(bytes.NewReader(b)); ; {
		h, err := tr.Next()
		if err == io.EOF {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		all[h.Name] = h
	}
}

// The headers of a container's archive, field by field, are those that Debian's dockerd 20.10 writes for the same
// files: names of owners from the container's files, the kind in the mode.
func TestArchiveHeaders(t *testing.T) {
	dir, root := rootDir(t)
	tree(t, dir, "t/f=x", "t/d/", "t/suid=y", "t/www=z", "t/sym -> f",
		"etc/passwd=alice:x:0:0::/:\n# c\nbob:x:1234:9::/:\nlater:x:1234:9::/:\nbad:x:y:1::/:\nshort:x:5\n", "etc/group=grp:x:0:\n")
	p := func(name string) string { return filepath.Join(dir, "t", name) }
	for _, err := range []error{
		os.Chown(p("f"), 1234, 4321), os.Link(p("f"), p("hard")), os.Chmod(p("d"), 0o777|os.ModeSticky),
		os.Chown(p("suid"), 5, 5), unix.Chmod(p("suid"), 0o6755), os.Chown(p("www"), 33, 33),
		unix.Mkfifo(p("p"), 0o644), unix.Mknod(p("c"), unix.S_IFCHR|0o644, int(unix.Mkdev(1, 3))),
		unix.Mknod(p("b"), unix.S_IFBLK|0o644, int(unix.Mkdev(7, 0))),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	want := map[string]string{
		"t/":     `5 40755 0:0 "root" "grp"  0,0`,
		"t/f":    `0 100644 1234:4321 "bob" ""  0,0`,
		"t/hard": `1 100644 1234:4321 "bob" "" t/f 0,0`,
		"t/sym":  `2 120777 0:0 "root" "grp" f 0,0`,
		"t/d/":   `5 41777 0:0 "root" "grp"  0,0`,
		"t/suid": `0 106755 5:5 "" ""  0,0`,
		"t/www":  `0 100644 33:33 "" ""  0,0`,
		"t/p":    `6 10644 0:0 "root" "grp"  0,0`,
		"t/c":    `3 20644 0:0 "root" "grp"  1,3`,
		"t/b":    `4 60644 0:0 "root" "grp"  7,0`,
	}
	got := headers(t, archive(t, root, "/t"))
	for name, h := range got {
		s := fmt.Sprintf("%c %o %d:%d %q %q %s %d,%d", h.Typeflag, h.Mode, h.Uid, h.Gid, h.Uname, h.Gname, h.Linkname, h.Devmajor, h.Devminor)
		if s != want[name] || h.ModTime.Nanosecond() != 0 || !h.AccessTime.IsZero() || !h.ChangeTime.IsZero() {
			t.Errorf("%s: %s, want %s; %v", name, s, want[name], h)
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d entries, want %d", len(got), len(want))
	}
	var b bytes.Buffer
	if err := Export(root, &b); err != nil {
		t.Fatal(err)
	}
	if h := headers(t, b.Bytes())["t/f"]; h == nil || h.Uname != "bob" || h.Mode != 0o100644 {
		t.Errorf("exported: %+v", h)
	}
}

// A container's passwd file can be anything.
func TestNamesAreHostile(t *testing.T) {
	dir, root := rootDir(t)
	tree(t, dir, "etc/", "f=x")
	passwd := filepath.Join(dir, "etc/passwd")
	for name, make := range map[string]func() error{
		"a pipe":       func() error { return unix.Mkfifo(passwd, 0o666) },
		"a directory":  func() error { return os.Mkdir(passwd, 0o755) },
		"a link out":   func() error { return os.Symlink("../../../../../../../../etc/passwd", passwd) },
		"a loop":       func() error { return os.Symlink("passwd", passwd) },
		"a hole":       func() error { f, err := os.Create(passwd); _ = f.Truncate(1 << 40); return err },
		"many names":   func() error { return os.WriteFile(passwd, manyNames(), 0o644) },
		"a long name":  func() error { return os.WriteFile(passwd, []byte(strings.Repeat("x", 1000)+":x:1:1:::\n"), 0o644) },
		"no text":      func() error { return os.WriteFile(passwd, []byte("\xff\xfe:x:1:1:::\na\x00b:x:1:1:::\n"), 0o644) },
		"nis":          func() error { return os.WriteFile(passwd, []byte("+evil:x:1:1:::\n-no:x:1:1:::\n"), 0o644) },
		"what is over": func() error { return os.WriteFile(passwd, []byte("over:x:4294967296:1:::\nneg:x:-1:1:::\n"), 0o644) },
	} {
		if err := os.RemoveAll(passwd); err != nil {
			t.Fatal(err)
		}
		if err := make(); err != nil {
			t.Fatal(name, err)
		}
		o := ownersOf(root)
		if len(o.users) > maxNames+1 || o.users[1] != "" && name != "many names" {
			t.Errorf("%s: %d names, 1 is %q", name, len(o.users), o.users[1])
		}
		if got := strings.Join(list(t, archive(t, root, "/f")), ","); got != "f=x" {
			t.Errorf("%s: %s", name, got)
		}
	}
}

func manyNames() []byte {
	var b bytes.Buffer
	for i := range maxNames + 1000 {
		fmt.Fprintf(&b, "u%d:x:%d:0:::\n", i, i)
	}
	return b.Bytes()
}
