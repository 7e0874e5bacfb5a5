package files

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cradlevm/cradle/api"
	"golang.org/x/sys/unix"
)

// rootDir makes a directory to be a root, and opens it.
func rootDir(t *testing.T) (string, int) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: owners, devices and trusted attributes")
	}
	dir := t.TempDir()
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return dir, fd
}

// tree makes files: "d/" is a directory, "l -> x" a link, "f=text" a file.
func tree(t *testing.T, dir string, entries ...string) {
	t.Helper()
	for _, e := range entries {
		var err error
		if name, to, ok := strings.Cut(e, " -> "); ok {
			err = os.Symlink(to, filepath.Join(dir, name))
		} else if name, text, ok := strings.Cut(e, "="); ok {
			if err = os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err == nil {
				err = os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644)
			}
		} else {
			err = os.MkdirAll(filepath.Join(dir, e), 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func code(err error) api.ErrorCode {
	var e *api.Error
	if errors.As(err, &e) {
		return e.Code
	}
	return ""
}

func TestStat(t *testing.T) {
	dir, root := rootDir(t)
	tree(t, dir, "a/b/f=hi", "abs -> /a/b", "rel -> a/b/f", "up -> ../../../../a", "broken -> /no/where", "loop -> loop", "chain -> up/b")
	for _, c := range []struct {
		path, name, target string
		kind               uint32
		fails              api.ErrorCode
	}{
		{path: "/a/b/f", name: "f", kind: unix.S_IFREG},
		{path: "a/b", name: "b", kind: unix.S_IFDIR},
		{path: "/", name: "/", kind: unix.S_IFDIR},
		{path: "../../a", name: "a", kind: unix.S_IFDIR},
		{path: "/abs", name: "abs", kind: unix.S_IFLNK, target: "/a/b"},
		{path: "/abs/", name: "abs", kind: unix.S_IFDIR},
		{path: "/abs/.", name: ".", kind: unix.S_IFDIR},
		{path: "/abs/f", name: "f", kind: unix.S_IFREG},
		{path: "/rel", name: "rel", kind: unix.S_IFLNK, target: "/a/b/f"},
		{path: "/up", name: "up", kind: unix.S_IFLNK, target: "/a"},
		{path: "/chain", name: "chain", kind: unix.S_IFLNK, target: "/a/b"},
		{path: "/broken", name: "broken", kind: unix.S_IFLNK, target: "/no/where"},
		{path: "/broken/", fails: api.CodeNotFound},
		{path: "/nope", fails: api.CodeNotFound},
		{path: "/a/b/f/", fails: api.CodeInvalid},
		{path: "/a/b/f/x", fails: api.CodeInvalid},
		{path: "/loop", fails: api.CodeInvalid},
		{path: "/" + strings.Repeat("x", 300), fails: api.CodeInvalid},
	} {
		s, err := Stat(root, c.path)
		if code(err) != c.fails || s.Name != c.name && c.fails == "" || s.Mode&unix.S_IFMT != c.kind || s.LinkTarget != c.target {
			t.Errorf("%s: %+v %v", c.path, s, err)
		}
	}
}

// list reads an archive: names with what follows from their kind.
func list(t *testing.T, b []byte) (names []string) {
	t.Helper()
	for tr := tar.NewReader(bytes.NewReader(b)); ; {
		h, err := tr.Next()
		if err == io.EOF {
			return names
		}
		if err != nil {
			t.Fatal(err)
		}
		s := h.Name
		switch h.Typeflag {
		case tar.TypeSymlink:
			s += " -> " + h.Linkname
		case tar.TypeLink:
			s += " == " + h.Linkname
		case tar.TypeReg:
			text, err := io.ReadAll(tr)
			if err != nil {
				t.Fatal(err)
			}
			s += "=" + string(text)
		case tar.TypeChar:
			s += fmt.Sprintf(" c %d,%d", h.Devmajor, h.Devminor)
		case tar.TypeFifo:
			s += " p"
		}
		names = append(names, s)
	}
}

func archive(t *testing.T, root int, p string) []byte {
	t.Helper()
	s, err := Open(root, p)
	if err != nil {
		t.Fatal(p, err)
	}
	defer s.Close()
	var b bytes.Buffer
	if err := s.WriteTar(&b); err != nil {
		t.Fatal(p, err)
	}
	return b.Bytes()
}

func TestArchiveNames(t *testing.T) {
	dir, root := rootDir(t)
	tree(t, dir, "d/s/f=hi", "l -> d", "out -> /etc")
	for p, want := range map[string]string{
		"/d":     "d/,d/s/,d/s/f=hi",
		"/d/":    "d/,d/s/,d/s/f=hi",
		"d/.":    "./,./s/,./s/f=hi",
		"/l":     "l -> d",
		"/l/":    "l/,l/s/,l/s/f=hi",
		"/l/.":   "./,./s/,./s/f=hi",
		"/l/s/f": "f=hi",
		"/out":   "out -> /etc",
		"/":      "/,/d/,/d/s/,/d/s/f=hi,/l -> d,/out -> /etc",
		"/.":     "./,./d/,./d/s/,./d/s/f=hi,./l -> d,./out -> /etc",
	} {
		if got := strings.Join(list(t, archive(t, root, p)), ","); got != want {
			t.Errorf("%s: %s, want %s", p, got, want)
		}
	}
	if _, err := Open(root, "/out/"); code(err) != api.CodeNotFound {
		t.Errorf("a link to the host's /etc opened: %v", err)
	}
}

// What goes out comes in again the same: kinds, owners, modes, times, attributes.
func TestRoundTrip(t *testing.T) {
	dir, root := rootDir(t)
	tree(t, dir, "in/f=text", "in/d/", "in/l -> /x", "in/"+strings.Repeat("long", 40)+"=long", "out/")
	p := func(name string) string { return filepath.Join(dir, "in", name) }
	for _, err := range []error{
		os.Link(p("f"), p("hard")), unix.Mknod(p("null"), unix.S_IFCHR|0o640, int(unix.Mkdev(1, 3))), unix.Mkfifo(p("pipe"), 0o600),
		os.Lchown(p("l"), 7, 8), os.Chown(p("f"), 1000, 70000), os.Chmod(p("f"), 0o4751|os.ModeSetuid), os.Chmod(p("d"), 0o700),
		os.Chtimes(p("f"), time.Unix(5, 0), time.Unix(1e9, 0)), os.Chtimes(p("d"), time.Unix(5, 0), time.Unix(2e9, 0)),
		unix.Mknod(p("socket"), unix.S_IFSOCK|0o600, 0),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	hasXattr := unix.Setxattr(p("f"), "user.k", []byte("v\x00w"), 0) == nil
	one := archive(t, root, "/in/.")
	if err := Extract(root, "/out", ExtractOptions{}, bytes.NewReader(one)); err != nil {
		t.Fatal(err)
	}
	two := archive(t, root, "/out/.")
	if a, b := strings.Join(list(t, one), "\n"), strings.Join(list(t, two), "\n"); a != b || strings.Contains(a, "socket") || !strings.Contains(a, "hard == ") && !strings.Contains(a, "f == ") {
		t.Errorf("went\n%s\ncame\n%s", a, b)
	}
	for _, name := range []string{"f", "d", "l", "null", "pipe"} {
		var a, b unix.Stat_t
		if unix.Lstat(p(name), &a) != nil || unix.Lstat(filepath.Join(dir, "out", name), &b) != nil {
			t.Fatal(name)
		}
		if a.Mode != b.Mode || a.Uid != b.Uid || a.Gid != b.Gid || a.Rdev != b.Rdev || a.Mtim.Sec != b.Mtim.Sec {
			t.Errorf("%s: %+v, was %+v", name, b, a)
		}
	}
	if got, _ := unix.Getxattr(filepath.Join(dir, "out/f"), "user.k", make([]byte, 9)); hasXattr && got != 3 {
		t.Error("the attribute is gone")
	}
	if err := Extract(root, "/out", ExtractOptions{Owner: &Owner{5, 6}}, bytes.NewReader(one)); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if unix.Lstat(filepath.Join(dir, "out/f"), &st); st.Uid != 5 || st.Gid != 6 || st.Mode&0o7777 != 0o4751 {
		t.Errorf("with an owner: %d:%d %o", st.Uid, st.Gid, st.Mode)
	}
}

// tarOf makes an archive of headers; the body of a file is its name.
func tarOf(t *testing.T, headers ...tar.Header) io.Reader {
	t.Helper()
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	for _, h := range headers {
		body := ""
		if h.Typeflag == tar.TypeReg {
			body = h.Name
			h.Size = int64(len(body))
		}
		if h.Mode == 0 {
			h.Mode = 0o755
		}
		if err := tw.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		io.WriteString(tw, body)
	}
	tw.Close()
	return &b
}

// Whatever an archive says and whatever links lie in the way, nothing is written outside of the target.
func TestExtractStaysInside(t *testing.T) {
	const reg, link, sym, directory = tar.TypeReg, tar.TypeLink, tar.TypeSymlink, tar.TypeDir
	for name, c := range map[string]struct {
		headers []tar.Header
		inside  string // what is made, below t
		fails   string
	}{
		"up":            {[]tar.Header{{Typeflag: reg, Name: "../evil"}}, "", `"../evil" is outside of "/t"`},
		"up and down":   {[]tar.Header{{Typeflag: reg, Name: "a/../../evil"}}, "", "is outside of"},
		"absolute":      {[]tar.Header{{Typeflag: reg, Name: "/evil"}}, "evil", ""},
		"old link up":   {[]tar.Header{{Typeflag: reg, Name: "up/evil"}}, "", `"up" is outside of "/t"`},
		"old link abs":  {[]tar.Header{{Typeflag: reg, Name: "abs/evil"}}, "", "is outside of"},
		"old link in":   {[]tar.Header{{Typeflag: reg, Name: "in/evil"}}, "d/evil", ""},
		"new link":      {[]tar.Header{{Typeflag: sym, Name: "n", Linkname: ".."}, {Typeflag: reg, Name: "n/evil"}}, "", "is outside of"},
		"new link abs":  {[]tar.Header{{Typeflag: sym, Name: "n", Linkname: "/etc"}, {Typeflag: reg, Name: "n/evil"}}, "", "is outside of"},
		"through link":  {[]tar.Header{{Typeflag: sym, Name: "n", Linkname: "../victim"}, {Typeflag: reg, Name: "n"}}, "n", ""},
		"hard link up":  {[]tar.Header{{Typeflag: link, Name: "h", Linkname: "../victim"}}, "", "is outside of"},
		"hard link via": {[]tar.Header{{Typeflag: link, Name: "h", Linkname: "up/victim"}}, "", "link /t/up"},
		"hard to link":  {[]tar.Header{{Typeflag: sym, Name: "s", Linkname: "../victim"}, {Typeflag: link, Name: "h", Linkname: "s"}, {Typeflag: reg, Name: "h"}}, "h", ""},
		"dir over link": {[]tar.Header{{Typeflag: directory, Name: "up", Mode: 0o700}, {Typeflag: reg, Name: "up/evil"}}, "up/evil", ""},
		"itself":        {[]tar.Header{{Typeflag: reg, Name: "."}}, "", "cannot overwrite directory"},
		"itself, dir":   {[]tar.Header{{Typeflag: directory, Name: "./"}}, "", ""},
		"implied":       {[]tar.Header{{Typeflag: reg, Name: "x/y/z"}}, "x/y/z", ""},
		"odd type":      {[]tar.Header{{Typeflag: 'Z', Name: "z"}}, "", "unhandled tar header type"},
	} {
		t.Run(name, func(t *testing.T) {
			dir, root := rootDir(t)
			tree(t, dir, "victim=safe", "t/d/", "t/up -> ..", "t/abs -> /t/../victim", "t/in -> d")
			err := Extract(root, "/t", ExtractOptions{}, tarOf(t, c.headers...))
			if (err == nil) != (c.fails == "") || err != nil && !strings.Contains(err.Error(), c.fails) {
				t.Errorf("%v, want %q", err, c.fails)
			}
			if c.inside != "" {
				if _, err := os.Lstat(filepath.Join(dir, "t", c.inside)); err != nil {
					t.Error(err)
				}
			}
			if text, _ := os.ReadFile(filepath.Join(dir, "victim")); string(text) != "safe" {
				t.Errorf("the victim says %q", text)
			}
			if all, _ := os.ReadDir(dir); len(all) != 2 {
				t.Errorf("outside: %v", all)
			}
		})
	}
}

func TestExtractOverwrites(t *testing.T) {
	file, directory := tar.Header{Typeflag: tar.TypeReg, Name: "x"}, tar.Header{Typeflag: tar.TypeDir, Name: "x"}
	for _, c := range []struct {
		there string
		h     tar.Header
		no    bool
		fails string
	}{
		{"t/x/y/z=deep", file, false, ""},
		{"t/x/y/z=deep", file, true, `cannot overwrite directory "/t/x" with non-directory "/t"`},
		{"t/x=file", directory, false, ""},
		{"t/x=file", directory, true, `cannot overwrite non-directory "/t/x" with directory "/t"`},
		{"t/x=file", file, true, ""},
		{"t/x/y=file", directory, true, ""},
		{"t=file", file, false, "extraction point is not a directory"},
		{"u/", file, false, "lstat /t"},
	} {
		dir, root := rootDir(t)
		tree(t, dir, c.there)
		err := Extract(root, "/t", ExtractOptions{NoOverwriteDirNonDir: c.no}, tarOf(t, c.h))
		if (err == nil) != (c.fails == "") || err != nil && !strings.Contains(err.Error(), c.fails) {
			t.Errorf("%+v: %v", c, err)
		}
	}
	dir, root := rootDir(t)
	tree(t, dir, "t/")
	cut, _ := io.ReadAll(tarOf(t, file))
	for _, r := range []io.Reader{strings.NewReader(strings.Repeat("garbage ", 200)), bytes.NewReader(cut[:512])} {
		if err := Extract(root, "/t", ExtractOptions{}, r); code(err) != api.CodeInvalid {
			t.Errorf("a broken archive: %v", err)
		}
	}
}

// overlay mounts one and returns upper, merged and lower.
func overlay(t *testing.T, lower string) (upper, merged string) {
	t.Helper()
	top := t.TempDir() // may itself lie on an overlay, which cannot be an upper
	if err := unix.Mount("t", top, "tmpfs", 0, ""); err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { unix.Unmount(top, unix.MNT_DETACH) })
	tree(t, top, "u/", "w/", "m/")
	upper, merged = filepath.Join(top, "u"), filepath.Join(top, "m")
	if err := unix.Mount("overlay", merged, "overlay", 0, "lowerdir="+lower+",upperdir="+upper+",workdir="+filepath.Join(top, "w")); err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { unix.Unmount(merged, unix.MNT_DETACH) })
	return upper, merged
}

func TestChanges(t *testing.T) {
	lower, lowerFD := rootDir(t)
	tree(t, lower, "same/f=1", "mod/f=1", "del/f=1", "del/g=1", "swap/f=1", "swap/old=1", "touched/f=1", "kind=file", "mnt/f=1", "deep/er/f=1")
	upper, m := overlay(t, lower)
	do := func(name string, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(name, err)
		}
	}
	tree(t, m, "mod/f=2", "new/d/f=1")
	do("rm", os.Remove(filepath.Join(m, "del/f")))
	do("rm -r", os.RemoveAll(filepath.Join(m, "swap")))
	tree(t, m, "swap/f=2")
	do("chmod", os.Chmod(filepath.Join(m, "touched"), 0o700))
	do("rm", os.Remove(filepath.Join(m, "kind")))
	tree(t, m, "kind/f=1")
	do("rm", os.Remove(filepath.Join(m, "deep/er/f")))
	// Mount points, made without a trace; into one of them somebody has written.
	var before unix.Stat_t
	do("stat", unix.Stat(filepath.Join(m, "mnt"), &before))
	tree(t, m, "mnt/point=", "run/empty/", "run/used/")
	for _, p := range []string{"mnt/point", "run", "run/empty", "run/used"} {
		Mark(filepath.Join(m, p))
	}
	tree(t, m, "run/used/f=1")
	do("utimes", unix.UtimesNanoAt(unix.AT_FDCWD, filepath.Join(m, "mnt"), []unix.Timespec{before.Atim, before.Mtim}, 0))

	fd, err := unix.Open(upper, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	do("open", err)
	defer unix.Close(fd)
	var got []string
	do("changes", Changes(fd, lowerFD, func(kind byte, p string) error {
		got = append(got, string(kind)+" "+p)
		return nil
	}))
	want := "C /deep/er,D /deep/er/f,C /del,D /del/f,C /kind,A /kind/f,C /mod/f,A /new,A /new/d,A /new/d/f," +
		"A /run,A /run/used,A /run/used/f,C /swap,C /swap/f,D /swap/old,C /touched"
	if s := strings.Join(got, ","); s != want {
		t.Errorf("\n%s, want\n%s", s, want)
	}

	var b bytes.Buffer
	do("layer", Layer(fd, lowerFD, &b))
	want = "deep/,deep/er/,deep/er/.wh.f=,del/,del/.wh.f=,kind/,kind/f=1,mod/,mod/f=2,new/,new/d/,new/d/f=1," +
		"run/,run/used/,run/used/f=1,swap/,swap/f=2,swap/.wh.old=,touched/"
	if s := strings.Join(list(t, b.Bytes()), ","); s != want {
		t.Errorf("layer\n%s, want\n%s", s, want)
	}
}

// An archive of a directory that somebody changes all the while is whole, and what is in it is bounded.
func TestArchiveOfWhatChanges(t *testing.T) {
	dir, root := rootDir(t)
	tree(t, dir, "d/")
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		name := filepath.Join(dir, "d/x")
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			os.RemoveAll(name)
			switch i % 4 {
			case 0:
				os.WriteFile(name, make([]byte, i%100000), 0o600)
			case 1:
				os.MkdirAll(name+"/sub", 0o700)
			case 2:
				os.Symlink("/etc", name)
			case 3:
				unix.Mkfifo(name, 0o600)
			}
		}
	}()
	for range 300 {
		list(t, archive(t, root, "/d"))
	}
	close(stop)
	<-stopped
}
