package snapshot_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cradlevm/cradle/snapshot"
)

// sparseFile makes a file of a size with texts at offsets.
func sparseFile(t testing.TB, size int64, texts map[int64]string) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	for at, text := range texts {
		if _, err := f.WriteAt([]byte(text), at); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

// archive has a file "disk" and a stream "words".
func archive(t testing.TB, disk *os.File, words string) []byte {
	t.Helper()
	var b bytes.Buffer
	a, err := snapshot.NewArchiveWriter(&b, note{"head"})
	if err == nil {
		err = a.File(context.Background(), "disk", disk)
	}
	if err == nil {
		err = a.Stream("words", func(w io.Writer) error {
			_, err := io.Copy(struct{ io.Writer }{w}, strings.NewReader(words))
			return err
		})
	}
	if err == nil {
		err = a.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// unpack reads an archive: parts that begin with "w" as streams, the others into files of dir.
func unpack(r io.Reader, dir string, max int64) (words string, err error) {
	var head note
	a, err := snapshot.NewArchiveReader(r, &head)
	if err != nil {
		return "", err
	}
	for {
		part, err := a.Next()
		switch {
		case err == io.EOF:
			return words, nil
		case err != nil:
			return "", err
		case strings.HasPrefix(part, "w"):
			err = a.Stream(func(r io.Reader) error {
				b, err := io.ReadAll(r)
				words = string(b)
				return err
			})
		default:
			err = a.File(context.Background(), filepath.Join(dir, part), max)
		}
		if err != nil {
			return "", err
		}
	}
}

func TestArchive(t *testing.T) {
	words := strings.Repeat("0123456789", 300_000)
	for name, f := range map[string]*os.File{
		"empty":    sparseFile(t, 0, nil),
		"hole":     sparseFile(t, 1<<30, nil),
		"ends":     sparseFile(t, 1<<30+5, map[int64]string{0: "x", 1 << 30: "y", 1<<20 - 1: "zz", 77 << 20: strings.Repeat("run", 1<<20)}),
		"unpadded": sparseFile(t, 3, map[int64]string{0: "abc"}),
		"zeros":    sparseFile(t, 1<<20, map[int64]string{0: strings.Repeat("\x00", 1<<20)}),
	} {
		b, dir := archive(t, f, words), t.TempDir()
		if len(b) > 8<<20 {
			t.Errorf("%s: %d bytes", name, len(b))
		}
		got, err := unpack(bytes.NewReader(b), dir, 1<<30+5)
		if err != nil || got != words {
			t.Errorf("%s: %v, %d bytes of words", name, err, len(got))
		}
		want, err1 := snapshot.Digest(t.Context(), f.Name())
		sum, err2 := snapshot.Digest(t.Context(), filepath.Join(dir, "disk"))
		if err := errors.Join(err1, err2); err != nil || sum != want {
			t.Errorf("%s: another file: %v", name, err)
		}
		if used := snapshot.DiskUse(dir); used > 5<<20 {
			t.Errorf("%s takes %d bytes", name, used)
		}
		if info, err := os.Stat(filepath.Join(dir, "disk")); err == nil && info.Size() > 0 {
			if _, err := unpack(bytes.NewReader(b), t.TempDir(), info.Size()-1); !errors.Is(err, snapshot.ErrArchive) {
				t.Errorf("%s, larger than allowed: %v", name, err)
			}
		}
	}
}

// Whatever is cut off, changed, swapped or left out, the archive is not taken for whole.
func TestDamagedArchive(t *testing.T) {
	whole := archive(t, sparseFile(t, 64<<10, map[int64]string{0: "x", 9000: "y", 40000: "z"}), "words")
	bad := func(what string, b []byte) {
		t.Helper()
		if _, err := unpack(bytes.NewReader(b), t.TempDir(), 1<<20); !errors.Is(err, snapshot.ErrArchive) {
			t.Errorf("%s: %v", what, err)
		}
	}
	members := membersOf(t, whole)
	end := len(whole) - 1024 - 448 // two blocks of zeros, which may be missing, as may what fills the last block before
	for i := 0; i < end; i += 97 {
		bad(fmt.Sprintf("cut at %d", i), whole[:i])
	}
	for i := range members {
		bad("without "+members[i].name, tarOf(t, append(append([]member{}, members[:i]...), members[i+1:]...)))
		for j := range i {
			swapped := append([]member{}, members...)
			swapped[i], swapped[j] = swapped[j], swapped[i]
			bad("swapped "+members[i].name+" and "+members[j].name, tarOf(t, swapped))
			if bytes.Equal(members[i].content, members[j].content) {
				continue
			}
			swapped[i].name, swapped[j].name = swapped[j].name, swapped[i].name
			bad("swapped contents of "+members[i].name+" and "+members[j].name, tarOf(t, swapped))
		}
		for k := range members[i].content {
			flipped := append([]member{}, members...)
			flipped[i].content = bytes.Clone(flipped[i].content)
			flipped[i].content[k] ^= 1
			if k%61 == 0 {
				bad(fmt.Sprintf("flipped %s at %d", members[i].name, k), tarOf(t, flipped))
			}
		}
	}
}

type member struct {
	name    string
	content []byte
	header  tar.Header // what it has beyond
}

func membersOf(t *testing.T, archive []byte) (out []member) {
	t.Helper()
	for r := tar.NewReader(bytes.NewReader(archive)); ; {
		hdr, err := r.Next()
		if err == io.EOF {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, member{name: hdr.Name, content: b})
	}
}

func tarOf(t testing.TB, members []member) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, m := range members {
		hdr := m.header
		hdr.Name, hdr.Mode = m.name, 0o600
		if hdr.Typeflag == 0 {
			hdr.Typeflag, hdr.Size = tar.TypeReg, int64(len(m.content))
		}
		if err := w.WriteHeader(&hdr); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(m.content); err != nil {
			t.Fatal(err)
		}
	}
	w.Flush()
	return b.Bytes()
}

// What tricks there are with names, links and lengths, nothing is made outside, and nothing that is large.
func TestHostileArchive(t *testing.T) {
	head := member{name: "cradle-snapshot", content: []byte(`{"Text":"x"}`)}
	big := bytes.Repeat([]byte("x"), 1<<20+1)
	for what, members := range map[string][]member{
		"path":           {{name: "../disk/0000000000000000", content: []byte("x")}},
		"absolute":       {{name: "/etc/0000000000000000", content: []byte("x")}},
		"deeper":         {{name: "disk/../../0000000000000000", content: []byte("x")}},
		"no offset":      {{name: "disk", content: []byte("x")}},
		"negative":       {{name: "disk/-000000000000001", content: []byte("x")}},
		"far":            {{name: "disk/7ffffffffffff000", content: []byte("x")}},
		"far end":        {{name: "disk/7fffffffffffffff"}},
		"unaligned":      {{name: "disk/0000000000000001", content: []byte("x")}},
		"backwards":      {{name: "disk/0000000000002000", content: []byte("x")}, {name: "disk/0000000000001000", content: []byte("x")}},
		"other part":     {{name: "disk/0000000000000000", content: []byte("x")}, {name: "disk2/0000000000000001"}},
		"hole in stream": {{name: "words/0000000000000000", content: []byte("x")}, {name: "words/0000000000002000", content: []byte("x")}},
		"long":           {{name: "disk/0000000000000000", content: big}},
		"symlink":        {{name: "disk/0000000000000000", header: tar.Header{Typeflag: tar.TypeSymlink, Linkname: "/etc/passwd"}}},
		"hardlink":       {{name: "disk/0000000000000000", header: tar.Header{Typeflag: tar.TypeLink, Linkname: "/etc/passwd"}}},
		"device":         {{name: "disk/0000000000000000", header: tar.Header{Typeflag: tar.TypeChar}}},
		"directory":      {{name: "disk/0000000000000000/", header: tar.Header{Typeflag: tar.TypeDir}}},
		"second head":    {head},
		"sum of another": {{name: "sha256", content: []byte(strings.Repeat("0", 64))}},
	} {
		dir := t.TempDir()
		_, err := unpack(bytes.NewReader(tarOf(t, append([]member{head}, members...))), filepath.Join(dir, "in"), 1<<30)
		if err == nil {
			t.Errorf("%s: taken", what)
		}
		dir = t.TempDir()
		if err := os.Mkdir(filepath.Join(dir, "in"), 0o700); err != nil {
			t.Fatal(err)
		}
		if _, err := unpack(bytes.NewReader(tarOf(t, append([]member{head}, members...))), filepath.Join(dir, "in"), 1<<30); !errors.Is(err, snapshot.ErrArchive) {
			t.Errorf("%s: %v", what, err)
		}
		if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
			t.Errorf("%s: outside there is %v, %v", what, entries, err)
		}
		if used := snapshot.DiskUse(filepath.Join(dir, "in")); used > 1<<20 {
			t.Errorf("%s takes %d bytes", what, used)
		}
	}
}

// A head or member that promises gigabytes costs no memory.
func TestPromisedArchive(t *testing.T) {
	for _, name := range []string{"cradle-snapshot", "disk/0000000000000000"} {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		if name != "cradle-snapshot" {
			w.WriteHeader(&tar.Header{Name: "cradle-snapshot", Mode: 0o600, Size: 2, Typeflag: tar.TypeReg})
			w.Write([]byte("{}"))
		}
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o600, Size: 1 << 40, Typeflag: tar.TypeReg}); err != nil {
			t.Fatal(err)
		}
		if _, err := unpack(&b, t.TempDir(), 1<<50); !errors.Is(err, snapshot.ErrArchive) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// FuzzArchive: whatever an archive says, reading it ends, stays in its directory and within what was allowed; what is taken for
// whole is written again as it was.
func FuzzArchive(f *testing.F) {
	f.Add(archive(f, sparseFile(f, 64<<10, map[int64]string{0: "x", 9000: "y"}), "words"))
	f.Add(archive(f, sparseFile(f, 0, nil), ""))
	f.Add(tarOf(f, []member{{name: "cradle-snapshot", content: []byte("{}")}, {name: "disk/0000000000100000", content: []byte("x")}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		parent := t.TempDir()
		dir := filepath.Join(parent, "in")
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		_, err := unpack(bytes.NewReader(b), dir, 1<<20)
		if entries, e := os.ReadDir(parent); e != nil || len(entries) != 1 {
			t.Errorf("outside: %v, %v", entries, e)
		}
		entries, e := os.ReadDir(dir)
		if e != nil {
			t.Fatal(e)
		}
		for _, entry := range entries {
			if info, e := entry.Info(); e != nil || !info.Mode().IsRegular() || info.Size() > 1<<20 {
				t.Errorf("%v, %v after %v", info, e, err)
			}
		}
	})
}
