package erofs_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/cradlevm/cradle/erofs"
	"github.com/cradlevm/cradle/erofs/erofstest"
)

// script makes a tar of lines: "d NAME", "f NAME DATA", "l NAME TARGET" (symlink), "h NAME TARGET" (hard link),
// "c NAME" (device 1:3).
func script(t testing.TB, s string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, line := range strings.Split(strings.TrimSpace(s), "\n") {
		f := append(strings.Fields(line), "", "")
		h := &tar.Header{Name: f[1], Mode: 0o644, Format: tar.FormatPAX, ModTime: time.Unix(9, 0), Devmajor: 1, Devminor: 3}
		data := ""
		switch f[0] {
		case "d":
			h.Typeflag = tar.TypeDir
		case "f":
			h.Typeflag, data = tar.TypeReg, f[2]
		case "l":
			h.Typeflag, h.Linkname = tar.TypeSymlink, f[2]
		case "h":
			h.Typeflag, h.Linkname = tar.TypeLink, f[2]
		case "c":
			h.Typeflag = tar.TypeChar
		}
		h.Size = int64(len(data))
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestLayers(t *testing.T) {
	for _, c := range []struct{ name, in, want string }{
		{"later replaces", "f a 1\nf a 2", "f a=2"},
		{"directory merges", "d a\nf a/b 1\nd a", "d a, f a/b=1"},
		{"file over directory", "d a\nf a/b 1\nd a/c\nf a 2", "f a=2"},
		{"directory over file", "f a 1\nd a", "d a"},
		{"directory over symlink", "d b\nl a b\nd a\nf a/x 1", "d a, f a/x=1, d b"},
		{"parents are made", "f a/b/c 1", "d a, d a/b, f a/b/c=1"},
		{"names are cleaned", "f ./a//b/../c 1\nf /abs 2\nf /../up 3", "d a, f a/c=1, f abs=2, f up=3"},
		{"hard link", "f a 1\nh b/c a", "f a=1, d b, f b/c=1"},
		{"hard link to absolute", "f x/a 1\nh b /x/a", "f b=1, d x, f x/a=1"},
		{"hard link to symlink", "l a nowhere\nh b a", "l a>nowhere, l b>nowhere"},
		{"hard link to itself", "f a 1\nh a a", "f a=1"},
		{"hard link outlives its target", "f a 1\nh b a\nf a 2", "f a=2, f b=1"},
		{"hard link replaces", "f a 1\nd b\nf b/c 1\nh b a", "f a=1, f b=1"},
		{"whiteout", "d d\nf d/.wh.x", "d d, w d/x"},
		{"whiteout in root", "f .wh.x", "w x"},
		{"whiteout twice", "f .wh.x\nf .wh.x", "w x"},
		{"whiteout as directory", "d .wh.x", "w x"},
		{"whiteout spares this layer's file", "f x 1\nf .wh.x", "f x=1"},
		{"whiteout before this layer's file", "f .wh.x\nf x 1", "f x=1"},
		{"whiteout, then directory", "f .wh.x\nd x\nf x/y 1", "o x, f x/y=1"},
		{"directory, then whiteout", "d x\nf x/y 1\nf .wh.x", "o x, f x/y=1"},
		{"whiteout, then implied directory", "f .wh.x\nf x/y 1", "o x, f x/y=1"},
		{"whiteout, file, directory", "f .wh.x\nf x 1\nd x", "o x"},
		{"opaque", "d d\nf d/.wh..wh..opq\nf d/a 1", "o d, f d/a=1"},
		{"opaque last", "d d\nf d/a 1\nf d/.wh..wh..opq", "o d, f d/a=1"},
		{"opaque implied", "f d/.wh..wh..opq", "o d"},
		{"opaque, replaced and again", "f d/.wh..wh..opq\nf d 1\nd d", "o d"},
		{"opaque root", "f .wh..wh..opq\nf a 1", "f a=1"},
		{"AUFS's files", "d .wh..wh.plnk\nf .wh..wh.plnk/1.2 x\nh a .wh..wh.plnk/1.2\nf .wh..wh.aufs", "f a=x"},
		{"only AUFS's", "d .wh..wh.orph\nf .wh..wh.orph/.wh..wh..opq", ""},
		{"below a symlink", "d usr/lib\nl lib usr/lib\nf lib/x 1", "l lib>usr/lib, d usr, d usr/lib, f usr/lib/x=1"},
		{"below an absolute symlink", "l a /b/c\nf a/x 1", "l a>/b/c, d b, d b/c, f b/c/x=1"},
		{"below a symlink that climbs", "d d\nl d/up ../../..\nf d/up/x 1", "d d, l d/up>../../.., f x=1"},
		{"whiteout below a symlink", "d b\nl a b\nf a/.wh.x", "l a>b, d b, w b/x"},
		{"hard link below a symlink", "d b\nl a b\nf b/f 1\nh g a/f", "l a>b, d b, f b/f=1, f g=1"},
		{"device is no whiteout", "c dev", "w dev"},
		{"root", "d ./\nd /\nf a 1", "f a=1"},
	} {
		for _, f := range forms {
			b, _, err := build(t, bytes.NewReader(script(t, c.in)), erofs.Options{Form: f.form})
			if err != nil {
				t.Errorf("%s: %v", c.name, err)
				continue
			}
			m, paths, err := walkImage(b)
			if err != nil {
				t.Errorf("%s: %v", c.name, err)
			} else if got := list(t, m, paths); got != c.want {
				t.Errorf("%s (%s):\n got %s\nwant %s", c.name, f.name, got, c.want)
			}
		}
	}
}

func TestRefusedLayers(t *testing.T) {
	long := strings.Repeat("n", 256)
	for _, c := range []struct{ in, want string }{
		{"f ../x 1", `entry "../x": path traversal`},
		{"f a/../../x 1", `entry "a/../../x": path traversal`},
		{"f a 1\nh b ../a", `entry "b": hard link to "../a": path traversal`},
		{"h b a", `entry "b": hard link to "a", which is not in this layer`},
		{"d a\nh b a", `entry "b": hard link to "a", a directory`},
		{"d a\nh b /", `entry "b": hard link to "/", a directory`},
		{"f .wh.a\nh b a", `entry "b": hard link to "a", which is not in this layer`},
		{"d d\nf d/f 1\nh d d/f", `entry "d": hard link to "d/f", which is not in this layer`},
		{"f a 1\nf a/b 1", `entry "a/b": parent "a" is not a directory`},
		{"f a 1\nh b a/c", `entry "b": hard link to "a/c": parent "a" is not a directory`},
		{"l a a\nf a/b 1", `entry "a/b": too many symlinks`},
		{"l a b/x\nl b a\nf a/b 1", `too many symlinks`},
		{"f . 1", `entry ".": the root is not a directory`},
		{"f .wh. 1", `entry ".wh.": a whiteout of no name`},
		{"f .wh... 1", `a whiteout of no name`},
		{"f d/.wh... 1", `a whiteout of no name`},
		{"f " + long + " 1", `a name of 256 bytes`},
		{"f " + long + "/x 1", `a name of 256 bytes`},
		{"f " + strings.Repeat("d/", 2100) + "x 1", `path is longer than 4096 bytes`},
		{"l a " + strings.Repeat("x", 4096), `a symlink target of 4096 bytes`},
		{"l a", `a symlink target of 0 bytes`},
	} {
		_, _, err := build(t, bytes.NewReader(script(t, c.in)), erofs.Options{})
		if !errors.Is(err, erofs.ErrInvalid) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%.60q: %v, want %s", c.in, err, c.want)
		}
	}
}

func TestLongestPath(t *testing.T) {
	name := strings.Repeat(strings.Repeat("d", 255)+"/", 15)
	name += strings.Repeat("f", 255) // 4,095 bytes
	b, _, err := build(t, bytes.NewReader(script(t, "f "+name+" deep")), erofs.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, paths, err := walkImage(b); err != nil || paths[name] == nil {
		t.Errorf("the path is missing, %v", err)
	}
}

// TestDeepTree goes far below any path's length by way of symlinks: nothing may recurse.
func TestDeepTree(t *testing.T) {
	var s strings.Builder
	step := strings.Repeat("d/", 1000)
	fmt.Fprintf(&s, "f %sx 1\nl s0 %s\n", step, step)
	for i := range 30 {
		fmt.Fprintf(&s, "f s%d/%sx 1\nl s%d s%d/%s\n", i, step, i+1, i, step)
	}
	_, info, err := build(t, bytes.NewReader(script(t, s.String())), erofs.Options{})
	if err != nil || info.Entries < 31_000 {
		t.Error(info, err)
	}
}

// pieces joins blocks and strings, each padded to 512 bytes, and ends the archive.
func pieces(p ...any) []byte {
	var b []byte
	for _, x := range p {
		switch x := x.(type) {
		case []byte:
			b = append(b, x...)
		case string:
			b = append(b, x...)
		}
		b = append(b, make([]byte, -len(b)&511)...)
	}
	return append(b, make([]byte, 1024)...)
}

// paxed is a file with these pax records.
func paxed(records ...string) []byte {
	all := ""
	for i := 0; i < len(records); i += 2 {
		all += erofstest.Record(records[i], records[i+1])
	}
	return pieces(erofstest.Block("x", 'x', int64(len(all)), nil), all, erofstest.Block("f", '0', 3, nil), "abc")
}

func set(at int, s string) func([]byte) { return func(b []byte) { copy(b[at:], s) } }

func TestRefusedTars(t *testing.T) {
	good := pieces(erofstest.Block("f", '0', 3, nil), "abc")
	broken := append([]byte(nil), good...)
	broken[0]++
	sparse := func(v ...string) []byte {
		return paxed(append([]string{"GNU.sparse.size", "1000", "GNU.sparse.numblocks", "1"}, v...)...)
	}
	old := func(edit func([]byte)) []byte {
		return pieces(erofstest.Block("f", 'S', 3, func(b []byte) {
			copy(b[257:], "ustar  \x00")
			copy(b[386:], "00000000000\x0000000000003\x00")
			copy(b[483:], "00000000005\x00")
			edit(b)
		}), "abc")
	}
	for _, c := range []struct {
		name string
		in   []byte
		want string
	}{
		{"checksum", broken, "bad header checksum"},
		{"cut in header", good[:100], "truncated"},
		{"cut in data", good[:513], "truncated"},
		{"cut in pax", paxed("path", "x")[:520], "truncated"},
		{"cut after pax", paxed("path", "x")[:1024], "truncated"},
		{"end after pax", pieces(paxed("path", "x")[:1024]), "truncated"},
		{"lone zero block", pieces(good[:1024], make([]byte, 512), good), "lone zero block"},
		{"text", bytes.Repeat([]byte("no tar\n"), 1000), "bad header checksum"},
		{"size", pieces(erofstest.Block("f", '0', 0, set(124, "0000000009z\x00"))), "bad number"},
		{"negative size", pieces(erofstest.Block("f", '0', 0, set(124, strings.Repeat("\xff", 12)))), "bad number"},
		{"huge size", pieces(erofstest.Block("f", '0', 0, set(124, "\x80\x00\x00\x00\x7f\xff\xff\xff\xff\xff\xff\xff"))), "truncated"},
		{"beyond 64 bits", pieces(erofstest.Block("f", '0', 0, set(124, "\x80\x00\x00\x01\xff\xff\xff\xff\xff\xff\xff\xff"))), "bad number"},
		{"owner", paxed("uid", "4294967296"), "out of range"},
		{"device", pieces(erofstest.Block("f", '3', 0, set(329, "0010000\x000000000\x00"))), "out of range"},
		{"type", pieces(erofstest.Block("f", 'M', 0, nil)), "entry type"},
		{"pax size", pieces(erofstest.Block("x", 'x', 1<<20+1, nil)), "an extended header of"},
		{"pax record", pieces(erofstest.Block("x", 'x', 9, nil), "99 a=b\n"), "bad pax record"},
		{"pax zero length", pieces(erofstest.Block("x", 'x', 9, nil), "0 a=bcde\n"), "bad pax record"},
		{"pax number", paxed("size", "12x"), "bad pax record"},
		{"pax negative size", paxed("size", "-1"), "bad pax record"},
		{"pax time", paxed("mtime", "1.x"), "bad pax record"},
		{"NUL", paxed("path", "a\x00b"), "a NUL in the name"},
		{"xattr name", paxed("SCHILY.xattr.user."+strings.Repeat("x", 251), "v"), "bad xattr name"},
		{"xattr no name", paxed("SCHILY.xattr.user.", "v"), "bad xattr name"},
		{"xattr value", paxed("SCHILY.xattr.user.x", strings.Repeat("v", 65536)), "has a value of 65536"},
		{"xattrs", paxed("SCHILY.xattr.user.a", strings.Repeat("v", 65535), "SCHILY.xattr.user.b", strings.Repeat("v", 65535),
			"SCHILY.xattr.user.c", strings.Repeat("v", 65535), "SCHILY.xattr.user.d", strings.Repeat("v", 65535)), "bytes of xattrs"},
		{"acl", paxed("SCHILY.xattr.system.posix_acl_access", "acl"), "not an ACL"},
		{"sparse sum", sparse("GNU.sparse.map", "0,4"), "does not match the data"},
		{"sparse overlap", sparse("GNU.sparse.map", "1,2,2,1"), "bad sparse map"},
		{"sparse beyond", sparse("GNU.sparse.map", "998,3"), "bad sparse map"},
		{"sparse negative", sparse("GNU.sparse.map", "-1,3"), "bad sparse map"},
		{"sparse odd", sparse("GNU.sparse.map", "1"), "GNU.sparse.map"},
		{"sparse 0.0", sparse("GNU.sparse.numbytes", "3"), "bad pax sparse map"},
		{"sparse 0.0 open", sparse("GNU.sparse.offset", "3"), "bad pax sparse map"},
		{"sparse 1.0 without map", paxed("GNU.sparse.major", "1", "GNU.sparse.minor", "0", "GNU.sparse.realsize", "3"), "bad sparse map"},
		{"sparse 2.0", paxed("GNU.sparse.major", "2", "GNU.sparse.minor", "0", "GNU.sparse.realsize", "3"), "unknown sparse format"},
		{"sparse huge", sparse("GNU.sparse.map", "1,3", "GNU.sparse.size", "9223372036854775807"), "too long"},
		{"old sparse", old(set(386, "0000000000x")), "bad sparse map"},
		{"old sparse cut", old(set(482, "\x01")), "bad sparse map"},
	} {
		for _, f := range forms {
			_, _, err := build(t, bytes.NewReader(c.in), erofs.Options{Form: f.form})
			if !errors.Is(err, erofs.ErrInvalid) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%s (%s): %v, want %q", c.name, f.name, err, c.want)
			}
		}
	}
}
