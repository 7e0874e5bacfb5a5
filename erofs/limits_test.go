package erofs_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/cradlevm/cradle/erofs"
	"github.com/cradlevm/cradle/erofs/erofstest"
)

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// TestMaxBytes feeds endless streams: they must end at the limit, in little memory.
func TestMaxBytes(t *testing.T) {
	const limit = 256 << 20
	for name, in := range map[string]io.Reader{
		"zeros":         zeros{},
		"a file":        io.MultiReader(bytes.NewReader(erofstest.Block("f", '0', 1<<33-1, nil)), zeros{}),
		"empty entries": &repeat{b: erofstest.Block("f", '0', 0, nil)},
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, _, err := build(t, in, erofs.Options{MaxBytes: limit, Form: erofs.Full})
		runtime.ReadMemStats(&after)
		if !errors.Is(err, erofs.ErrInvalid) || !strings.Contains(err.Error(), "longer than") {
			t.Errorf("%s: %v", name, err)
		}
		if n := int64(after.HeapInuse) - int64(before.HeapInuse); n > limit/2 {
			t.Errorf("%s: %d MiB of heap", name, n>>20)
		}
	}
	hard := hardTar(t)
	if _, _, err := build(t, bytes.NewReader(hard), erofs.Options{MaxBytes: int64(len(hard))}); err != nil {
		t.Errorf("a tar of just MaxBytes: %v", err)
	}
	if _, _, err := build(t, bytes.NewReader(hard), erofs.Options{MaxBytes: int64(len(hard)) - 1}); !errors.Is(err, erofs.ErrInvalid) {
		t.Errorf("a tar of MaxBytes+1: %v", err)
	}
}

type repeat struct {
	b   []byte
	off int
}

func (r *repeat) Read(p []byte) (n int, err error) {
	for n < len(p) {
		k := copy(p[n:], r.b[r.off:])
		n, r.off = n+k, (r.off+k)%len(r.b)
	}
	return n, nil
}

func TestMaxEntries(t *testing.T) {
	deep := "f " + strings.Repeat("d/", 100) + "x 1"
	for _, c := range []struct {
		in string
		ok bool
	}{{strings.Repeat("f a 1\n", 50), true}, {strings.Repeat("f a 1\n", 51), false}, {deep, false}} {
		if _, _, err := build(t, bytes.NewReader(script(t, c.in)), erofs.Options{MaxEntries: 51}); (err == nil) != c.ok {
			t.Errorf("%.20q: %v", c.in, err)
		}
	}
}

// TestSparseBombs: a kilobyte of tar must not become an image of terabytes, nor a chunk table of gigabytes.
func TestSparseBombs(t *testing.T) {
	file := func(name, size, m string) []byte {
		all := erofstest.Record("GNU.sparse.size", size) + erofstest.Record("GNU.sparse.map", m)
		b := pieces(erofstest.Block(name, 'x', int64(len(all)), nil), all, erofstest.Block(name, '0', 512, nil), strings.Repeat("x", 512))
		return b[:len(b)-1024]
	}
	var many []byte
	for i := range 300 {
		many = append(many, file(fmt.Sprint(i), "536870912", "512,512")...)
	}
	for name, in := range map[string][]byte{"one": file("f", "1099511627776", "1,512"), "many": many} {
		for _, f := range forms {
			b, info, err := build(t, bytes.NewReader(pieces(in)), erofs.Options{Form: f.form, MaxBytes: 1 << 20})
			switch {
			case name == "many" && f.form == erofs.TarIndex: // 4 MiB of table each, and over the limit for metadata
				if !errors.Is(err, erofs.ErrInvalid) || !strings.Contains(err.Error(), "of metadata") {
					t.Errorf("%s %s: %v, %d bytes", name, f.name, err, len(b))
				}
			case !errors.Is(err, erofs.ErrInvalid):
				t.Errorf("%s %s: %v, %+v", name, f.name, err, info)
			}
		}
	}
}

// TestSymlinkBomb: entries below long chains of symlinks are refused before they cost minutes.
func TestSymlinkBomb(t *testing.T) {
	var s strings.Builder
	climb := strings.Repeat("a/../", 800)
	fmt.Fprintf(&s, "d a\n")
	for i := range 39 {
		fmt.Fprintf(&s, "l s%d %ss%d\n", i, climb, i+1)
	}
	fmt.Fprintf(&s, "d s39\n")
	for i := range 8_000 {
		fmt.Fprintf(&s, "f s0/%d 1\nf x%d 1\n", i, i) // the second makes the writer forget the first's parent
	}
	_, _, err := build(t, bytes.NewReader(script(t, s.String())), erofs.Options{})
	if !errors.Is(err, erofs.ErrInvalid) || !strings.Contains(err.Error(), "too many symlinks") {
		t.Error(err)
	}
}

func TestErrorsThatAreNotTheTars(t *testing.T) {
	broken := errors.New("broken")
	_, _, err := build(t, io.MultiReader(bytes.NewReader(hardTar(t)[:5000]), &fails{broken}), erofs.Options{})
	if !errors.Is(err, broken) || errors.Is(err, erofs.ErrInvalid) {
		t.Errorf("reader's error: %v", err)
	}
	name := filepath.Join(t.TempDir(), "x")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	for _, form := range forms {
		if _, err := erofs.FromTar(f, bytes.NewReader(hardTar(t)), erofs.Options{Form: form.form}); err == nil || errors.Is(err, erofs.ErrInvalid) {
			t.Errorf("writer's error: %v", err)
		}
	}
	if _, err := erofs.FromTar(f, bytes.NewReader(nil), erofs.Options{Form: 7}); err == nil {
		t.Error("form 7 is taken")
	}
}

type fails struct{ err error }

func (f *fails) Read([]byte) (int, error) { return 0, f.err }

// TestEmpty: docker takes a stream without a single block as an empty layer.
func TestEmpty(t *testing.T) {
	for _, in := range [][]byte{nil, make([]byte, 512), make([]byte, 1024), make([]byte, 10240)} {
		for _, f := range forms {
			b, info, err := build(t, bytes.NewReader(in), erofs.Options{Form: f.form})
			if err != nil {
				t.Fatal(err)
			}
			if _, paths, err := walkImage(b); err != nil || len(paths) != 1 || info.Entries != 1 {
				t.Errorf("%d bytes: %v, %v", len(in), paths, err)
			}
		}
	}
}
