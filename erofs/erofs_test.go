package erofs_test

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"testing"

	"github.com/cradlevm/cradle/erofs"
	"github.com/cradlevm/cradle/erofs/erofstest"
)

var forms = []struct {
	name string
	form erofs.Form
}{{"TarIndex", erofs.TarIndex}, {"Full", erofs.Full}}

// build makes an image of the tar and returns its bytes.
func build(t testing.TB, stream io.Reader, o erofs.Options) ([]byte, erofs.Info, error) {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "image"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := erofs.FromTar(f, stream, o)
	if err != nil {
		return nil, info, err
	}
	b, err := os.ReadFile(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	if int64(len(b)) != info.ImageBytes {
		t.Errorf("Info.ImageBytes %d, file has %d", info.ImageBytes, len(b))
	}
	return b, info, nil
}

func hardTar(t testing.TB) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := erofstest.HardTar(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestHardTarIsDeterministic(t *testing.T) {
	if !bytes.Equal(hardTar(t), hardTar(t)) {
		t.Error("two calls, two tars")
	}
}

// TestAgainstArchiveTar reads the image back and compares it with what Go's own tar reader says.
func TestAgainstArchiveTar(t *testing.T) {
	hard := hardTar(t)
	for _, f := range forms {
		t.Run(f.name, func(t *testing.T) {
			b, info, err := build(t, bytes.NewReader(hard), erofs.Options{Form: f.form})
			if err != nil {
				t.Fatal(err)
			}
			m, paths, err := walkImage(b)
			if err != nil {
				t.Fatal(err)
			}
			if info.Entries != len(m.inodes) || info.TarBytes != int64(len(hard)) {
				t.Errorf("%+v, want %d inodes, %d bytes", info, len(m.inodes), len(hard))
			}
			want := readTar(t, hard)
			compareTar(t, m, paths, want)
			if n := paths[erofstest.Whiteout]; n == nil || n.mode != 0o020000 || n.rdev != 0 {
				t.Errorf("whiteout is %+v", n)
			}
			if n := paths[erofstest.OpaqueDir]; n == nil || n.xattrs["trusted.overlay.opaque"] != "y" {
				t.Errorf("opaque directory is %+v", n)
			}
			for p := range paths {
				if strings.Contains(p, ".wh.") {
					t.Errorf("marker file %q is in the image", p)
				}
			}
			if a, b := paths["links/a"], paths["files/c"]; a != b || a.nlink != 3 {
				t.Error("hard links are not one inode with three names")
			}
			if len(paths) != len(want)+1 { // the whiteout
				t.Errorf("%d paths, want %d", len(paths), len(want)+1)
			}
		})
	}
}

type tarFile struct {
	*tar.Header
	sum [32]byte
}

// readTar is the tree of a tar without its whiteouts.
func readTar(t *testing.T, b []byte) map[string]tarFile {
	t.Helper()
	want := map[string]tarFile{}
	for r := tar.NewReader(bytes.NewReader(b)); ; {
		h, err := r.Next()
		if err == io.EOF {
			return want
		}
		if err != nil {
			t.Fatal(err)
		}
		sum := sha256.New()
		if _, err := io.Copy(sum, r); err != nil {
			t.Fatalf("%s: %v", h.Name, err)
		}
		name := filepath.Clean(h.Name)
		if name == "." {
			name = ""
		}
		if !strings.HasPrefix(filepath.Base(name), ".wh.") {
			want[name] = tarFile{h, [32]byte(sum.Sum(nil))}
		}
	}
}

func compareTar(t *testing.T, m *image, paths map[string]*node, want map[string]tarFile) {
	t.Helper()
	for p, w := range want {
		n := paths[p]
		if n == nil {
			t.Errorf("%.100q is missing", p)
			continue
		}
		if w.Typeflag == tar.TypeLink {
			if n != paths[w.Linkname] {
				t.Errorf("%q is not %q", p, w.Linkname)
			}
			continue
		}
		if int64(n.mode&0o7777) != w.Mode || int(n.uid) != w.Uid || int(n.gid) != w.Gid {
			t.Errorf("%.100q: mode %o owner %d:%d, want %o %d:%d", p, n.mode, n.uid, n.gid, w.Mode, w.Uid, w.Gid)
		}
		if n.mtime != w.ModTime.Unix() || int(n.nsec) != w.ModTime.Nanosecond() {
			t.Errorf("%.100q: mtime %d.%d, want %v", p, n.mtime, n.nsec, w.ModTime)
		}
		if n.target != w.Linkname {
			t.Errorf("%.100q: target %.100q, want %.100q", p, n.target, w.Linkname)
		}
		for k, v := range w.PAXRecords {
			if k, ok := strings.CutPrefix(k, "SCHILY.xattr."); ok && n.xattrs[k] != v {
				t.Errorf("%.100q: xattr %s is %q, want %q", p, k, n.xattrs[k], v)
			}
		}
		if n.kind() == 0o100000 {
			sum := sha256.New()
			if err := m.copyData(sum, n); err != nil || [32]byte(sum.Sum(nil)) != w.sum || n.size != w.Size {
				t.Errorf("%.100q: data differs (size %d, want %d, %v)", p, n.size, w.Size, err)
			}
		}
	}
}

func TestReproducible(t *testing.T) {
	hard := hardTar(t)
	for _, f := range forms {
		one, _, err1 := build(t, bytes.NewReader(hard), erofs.Options{Form: f.form})
		two, _, err2 := build(t, &dribble{b: hard}, erofs.Options{Form: f.form})
		if err1 != nil || err2 != nil || !bytes.Equal(one, two) {
			t.Errorf("%s: two images of one tar differ (%v, %v)", f.name, err1, err2)
		}
	}
}

// dribble returns uneven, small and empty reads.
type dribble struct {
	b []byte
	n int
}

func (d *dribble) Read(p []byte) (int, error) {
	if d.n++; d.n%5 == 0 {
		return 0, nil
	}
	if len(d.b) == 0 {
		return 0, io.EOF
	}
	n := copy(p, d.b[:min(len(d.b), d.n%70_000)])
	d.b = d.b[n:]
	return n, nil
}

func TestTar(t *testing.T) {
	hard := hardTar(t)
	for _, garbage := range []string{"", "x", strings.Repeat("garbage", 3<<20/7)} {
		in := append(append([]byte(nil), hard...), garbage...)
		b, info, err := build(t, bytes.NewReader(in), erofs.Options{})
		if err != nil {
			t.Fatal(err)
		}
		r, err := erofs.Tar(bytes.NewReader(b))
		if err != nil {
			t.Fatal(err)
		}
		out, err := io.ReadAll(r)
		if err != nil || !bytes.Equal(out, in) || r.Size() != info.TarBytes {
			t.Errorf("the tar comes back changed: %d bytes, want %d, %v", len(out), len(in), err)
		}
	}
	full, _, err := build(t, bytes.NewReader(hard), erofs.Options{Form: erofs.Full})
	if err != nil {
		t.Fatal(err)
	}
	index, _, _ := build(t, bytes.NewReader(hard), erofs.Options{})
	flipped := append([]byte(nil), index...)
	flipped[17]++
	for name, b := range map[string][]byte{"full": full, "empty": nil, "zeros": make([]byte, 8192), "cut": index[:len(hard)], "flipped": flipped} {
		if _, err := erofs.Tar(bytes.NewReader(b)); !errors.Is(err, erofs.ErrInvalid) {
			t.Errorf("Tar of %s: %v", name, err)
		}
	}
}

// list shows a tree in few words: "d dir", "f file=content", "l link>target", "w whiteout", "o opaque dir".
func list(t testing.TB, m *image, paths map[string]*node) string {
	var out []string
	for p, n := range paths {
		s := ""
		switch n.kind() {
		case 0o040000:
			s = "d " + p
			if n.xattrs["trusted.overlay.opaque"] == "y" {
				s = "o " + p
			}
		case 0o120000:
			s = "l " + p + ">" + n.target
		case 0o020000:
			s = "w " + p
		default:
			b, err := m.data(n)
			if err != nil {
				t.Error(err)
			}
			s = fmt.Sprintf("f %s=%s", p, b)
		}
		if p != "" {
			out = append(out, s)
		}
	}
	sort.Slice(out, func(i, j int) bool { return out[i][2:] < out[j][2:] })
	return strings.Join(out, ", ")
}
