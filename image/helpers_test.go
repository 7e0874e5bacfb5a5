package image

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	digest "github.com/opencontainers/go-digest"

	"github.com/cradlevm/cradle/image/imagetest"
)

// openStore opens a store in a new directory and, at the end of the test, checks that nothing is half-made in it.
func openStore(t testing.TB, o Options) *Local {
	t.Helper()
	if o.Keychain == nil {
		o.Keychain = noKeychain{}
	}
	s, err := Open(t.TempDir(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		checkClean(t, s)
		s.Close()
	})
	return s
}

// checkClean compares the files with the database: none too many, none too few, no pin left.
func checkClean(t testing.TB, s *Local) {
	t.Helper()
	tmp, _ := filepath.Glob(filepath.Join(s.tmp(), "*"))
	if len(tmp) > 0 {
		t.Errorf("left in tmp: %v", tmp)
	}
	list, err := s.List()
	if err != nil {
		t.Fatal(err)
	}
	layers, blobs := map[string]bool{}, map[string]bool{}
	for _, img := range list {
		for _, l := range img.Layers {
			layers[l.Path] = true
			if d := digest.Digest(l.DiffID); s.hasPlain(d) {
				layers[s.plainPath(d)] = true
			}
		}
		blobs[filepath.Join(s.blobsDir(), img.ID[7:])] = true
		blobs[s.blobPath(img.Descriptor.Digest)] = true
	}
	same := func(dir string, want map[string]bool) {
		have, _ := filepath.Glob(filepath.Join(dir, "*"))
		if len(have) != len(want) {
			t.Errorf("%s has %d files, the images need %d", dir, len(have), len(want))
		}
		for _, p := range have {
			if !want[p] {
				t.Errorf("orphan: %s", p)
			}
		}
	}
	same(s.layersDir(), layers)
	same(s.blobsDir(), blobs)
	if len(s.layers.pins) != 0 {
		t.Errorf("pins left: %v", s.layers.pins)
	}
}

// must unwraps what tests cannot go on without.
func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// testTar is a small layer that differs by name.
func testTar(name string) []byte {
	return imagetest.Tar(imagetest.File{Name: "etc/"}, imagetest.File{Name: "etc/" + name, Body: bytes.Repeat([]byte(name), 3000)})
}

func testImage(t testing.TB, layers ...string) v1.Image {
	t.Helper()
	var tars [][]byte
	for _, l := range layers {
		tars = append(tars, testTar(l))
	}
	img, err := imagetest.Image(v1.Config{Cmd: []string{"/bin/true"}, Labels: map[string]string{"a": "b"}}, tars...)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func idOf(t testing.TB, img v1.Image) string {
	t.Helper()
	h, err := img.ConfigName()
	if err != nil {
		t.Fatal(err)
	}
	return h.String()
}

func dockerArchive(t testing.TB, tag string, img v1.Image) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := imagetest.WriteDockerArchive(&b, tag, img); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func load(s *Local, archive []byte) ([]Image, error) {
	return s.Load(context.Background(), onlyReader{bytes.NewReader(archive)}, nil)
}

// onlyReader hides every method but Read, as a network stream does.
type onlyReader struct{ io.Reader }

// layerTar reads a layer back out of the store.
func layerTar(t testing.TB, s *Local, l Layer) []byte {
	t.Helper()
	f, err := os.Open(l.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r, err := s.openTar(f)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// statuses collects progress.
type statuses struct {
	mu   sync.Mutex
	list []Status
}

func (s *statuses) add(st Status) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.list = append(s.list, st)
}

func (s *statuses) count(status string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, st := range s.list {
		if st.Status == status {
			n++
		}
	}
	return n
}

func within(t testing.TB, d time.Duration, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(d); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s", d, what)
		}
	}
}
