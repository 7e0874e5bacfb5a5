package image

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	bolt "go.etcd.io/bbolt"

	"github.com/cradlevm/cradle/image/imagetest"
)

func emptyConfig() dockerspec.DockerOCIImage { return dockerspec.DockerOCIImage{} }

// stocked is a store with two images that share a layer: app:1 (base, app) and base:1 (base).
func stocked(t testing.TB) (s *Local, app, base Image) {
	s = openStore(t, Options{})
	app = must(load(s, dockerArchive(t, "app:1", testImage(t, "base", "app"))))[0]
	base = must(load(s, dockerArchive(t, "base:1", testImage(t, "base"))))[0]
	return s, app, base
}

func TestGet(t *testing.T) {
	s, app, base := stocked(t)
	must(0, s.Tag("app:1", "other.example/x/app"))
	for _, ref := range []string{"app:1", "docker.io/library/app:1", "index.docker.io/library/app:1", app.ID, app.ID[7:], app.ID[7:19], app.ID[:19], "other.example/x/app:latest"} {
		if got, err := s.Get(ref); err != nil || got.ID != app.ID {
			t.Errorf("%s: %v", ref, err)
		}
	}
	if got := must(s.Get("app:1")); !slices.Equal(got.RepoTags, []string{"app:1", "other.example/x/app:latest"}) {
		t.Errorf("tags %v", got.RepoTags)
	}
	for ref, want := range map[string]error{
		"app": ErrNotFound, "app:2": ErrNotFound, "sha256:" + strings.Repeat("0", 64): ErrNotFound, "NO": ErrBadName, "": ErrBadName, "ffffffffffff1": ErrNotFound,
	} {
		if _, err := s.Get(ref); !errors.Is(err, want) {
			t.Errorf("%q: got %v", ref, err)
		}
	}
	if _, err := s.Get("app:2"); err.Error() != "No such image: app:2" {
		t.Errorf("got %q", err)
	}
	if list := must(s.List()); len(list) != 2 || list[0].ID == list[1].ID {
		t.Errorf("got %v", list)
	}
	if err := s.Tag("app:1", "x@"+base.ID); !errors.Is(err, ErrBadName) {
		t.Errorf("got %v", err)
	}
	if err := s.Tag("nothere", "x"); !errors.Is(err, ErrNotFound) {
		t.Errorf("got %v", err)
	}
}

func TestRemove(t *testing.T) {
	s, app, base := stocked(t)
	must(0, s.Tag("app:1", "app:2"))
	_, _, err := s.Remove(app.ID, false)
	if !errors.Is(err, ErrInUse) || err.Error() != "conflict: unable to delete "+shortID(app.ID)+" (must be forced) - image is referenced in multiple repositories" {
		t.Errorf("got %v", err)
	}
	untagged, deleted, err := s.Remove("app:2", false)
	if err != nil || !slices.Equal(untagged, []string{"app:2"}) || len(deleted) != 0 {
		t.Errorf("got %v %v %v", untagged, deleted, err)
	}
	before := must(s.DiskUsage())
	untagged, deleted, err = s.Remove("app:1", false)
	if err != nil || !slices.Equal(untagged, []string{"app:1"}) || !slices.Equal(deleted, []string{app.ID, app.Layers[1].DiffID}) {
		t.Errorf("got %v %v %v", untagged, deleted, err)
	}
	if after := must(s.DiskUsage()); after >= before || after == 0 {
		t.Errorf("usage %d, then %d", before, after)
	}
	if _, err := os.Stat(base.Layers[0].Path); err != nil {
		t.Errorf("the shared layer went: %v", err)
	}
	if _, _, err := s.Remove("app:1", true); !errors.Is(err, ErrNotFound) {
		t.Errorf("got %v", err)
	}
	if _, deleted, err = s.Remove(base.ID[7:20], false); err != nil || len(deleted) != 2 {
		t.Errorf("got %v %v", deleted, err)
	}
	if n := must(s.DiskUsage()); n != 0 {
		t.Errorf("usage %d", n)
	}
}

// What is borrowed is held until the store closes. An image that was removed by force meanwhile goes with the last that
// has it, be it under another daemon.
func TestBorrow(t *testing.T) {
	s, app, _ := stocked(t)
	must(0, s.Borrow(app.ID, "a"))
	must(0, s.Borrow(app.ID, "a"))
	must(0, s.Borrow(app.ID, "b"))
	must(0, s.Hold(app.ID, "b"))
	must(0, s.Release("nobody"))
	_, _, err := s.Remove("app:1", false)
	if want := "container a is using its referenced image"; !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), want) {
		t.Errorf("got %v", err)
	}
	if deleted, _, err := s.Prune(true); err != nil || slices.Contains(deleted, app.ID) {
		t.Errorf("pruned %v %v", deleted, err)
	}
	if _, deleted, err := s.Remove("app:1", true); err != nil || len(deleted) != 0 {
		t.Errorf("got %v %v", deleted, err)
	}
	must(0, s.Release("b"))
	must(0, s.Settle())
	s = reopen(t, s)
	must(0, s.Borrow(app.ID, "a"))
	must(0, s.Settle())
	must(s.Get(app.ID))
	s = reopen(t, s)
	must(0, s.Settle()) // "a" was not there again
	if _, err := s.Get(app.ID); !errors.Is(err, ErrNotFound) {
		t.Errorf("outlives its last hold: %v", err)
	}
	checkClean(t, s)
	if err := s.Borrow(app.ID, "a"); !errors.Is(err, ErrNotFound) {
		t.Errorf("got %v", err)
	}
}

func TestHold(t *testing.T) {
	s, app, _ := stocked(t)
	const owner = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	for range 2 {
		must(0, s.Hold(app.ID, owner))
	}
	_, _, err := s.Remove("app:1", false)
	want := `conflict: unable to remove repository reference "app:1" (must force) - container 0123456789ab is using its referenced image ` + shortID(app.ID)
	if !errors.Is(err, ErrInUse) || err.Error() != want {
		t.Errorf("got %v", err)
	}
	if _, _, err := s.Remove(app.ID, false); !errors.Is(err, ErrInUse) {
		t.Errorf("got %v", err)
	}
	if deleted, _, err := s.Prune(true); err != nil || slices.Contains(deleted, app.ID) {
		t.Errorf("pruned %v %v", deleted, err)
	}
	untagged, deleted, err := s.Remove("app:1", true)
	if err != nil || !slices.Equal(untagged, []string{"app:1"}) || len(deleted) != 0 {
		t.Errorf("got %v %v %v", untagged, deleted, err)
	}
	s = reopen(t, s)
	for _, l := range app.Layers {
		if _, err := os.Stat(l.Path); err != nil {
			t.Errorf("a held layer went: %v", err)
		}
	}
	for range 2 {
		must(0, s.Release(owner))
	}
	if _, err := s.Get(app.ID); !errors.Is(err, ErrNotFound) {
		t.Errorf("outlives its last hold: %v", err)
	}
	checkClean(t, s)
	if err := s.Hold(app.ID, owner); !errors.Is(err, ErrNotFound) {
		t.Errorf("got %v", err)
	}
}

func reopen(t testing.TB, s *Local) *Local {
	t.Helper()
	s.Close()
	n, err := Open(s.dir, s.o)
	if err != nil {
		t.Fatal(err)
	}
	*s = Local{dir: n.dir, o: n.o, db: n.db, fromTar: n.fromTar, openTar: n.openTar, downloads: n.downloads, borrowed: n.borrowed}
	must(0, s.loadLayers())
	return s
}

func TestPrune(t *testing.T) {
	s, app, base := stocked(t)
	must(load(s, dockerArchive(t, "app:1", testImage(t, "base", "newer")))) // takes the name away
	usage := must(s.DiskUsage())
	deleted, reclaimed, err := s.Prune(false)
	if err != nil || !slices.Equal(deleted, []string{app.ID, app.Layers[1].DiffID}) || reclaimed == 0 {
		t.Errorf("got %v %d %v", deleted, reclaimed, err)
	}
	if now := must(s.DiskUsage()); now != usage-reclaimed {
		t.Errorf("%d - %d is not %d", usage, reclaimed, now)
	}
	if deleted, _, err = s.Prune(true); err != nil || len(deleted) != 4 || !slices.Contains(deleted, base.ID) {
		t.Errorf("got %v %v", deleted, err)
	}
	if list := must(s.List()); len(list) != 0 {
		t.Errorf("left %v", list)
	}
}

func TestSave(t *testing.T) {
	s, app, base := stocked(t)
	must(0, s.Tag("app:1", "app:2"))
	for _, c := range []struct {
		refs []string
		tags map[string][]string
	}{
		{[]string{"app:1"}, map[string][]string{app.ID: {"app:1"}}},
		{[]string{"app", "base:1", "base:1"}, map[string][]string{app.ID: {"app:1", "app:2"}, base.ID: {"base:1"}}},
		{[]string{app.ID[7:20]}, map[string][]string{app.ID: nil}},
	} {
		var b, b2 bytes.Buffer
		must(0, s.Save(t.Context(), c.refs, &b))
		must(0, s.Save(t.Context(), c.refs, &b2))
		if !bytes.Equal(b.Bytes(), b2.Bytes()) {
			t.Errorf("%v: not the same twice", c.refs)
		}
		s2 := openStore(t, Options{})
		got, err := load(s2, b.Bytes())
		if err != nil || len(got) != len(c.tags) {
			t.Fatalf("%v: %v %v", c.refs, got, err)
		}
		for _, img := range got {
			if tags, ok := c.tags[img.ID]; !ok || !slices.Equal(tags, img.RepoTags) {
				t.Errorf("%v: %s has %v", c.refs, img.ID, img.RepoTags)
			}
		}
		// Either half of the archive alone does as well.
		for _, half := range []string{"manifest.json", "index.json"} {
			s := openStore(t, Options{})
			got, err := load(s, without(t, b.Bytes(), half))
			if err != nil || len(got) != len(c.tags) {
				t.Fatalf("%v without %s: %v %v", c.refs, half, got, err)
			}
			for _, img := range got {
				if tags, ok := c.tags[img.ID]; !ok || !slices.Equal(tags, img.RepoTags) {
					t.Errorf("%v without %s: %s has %v", c.refs, half, img.ID, img.RepoTags)
				}
			}
		}
	}
	if err := s.Save(t.Context(), []string{"app:1", "nothere"}, &bytes.Buffer{}); !errors.Is(err, ErrNotFound) {
		t.Errorf("got %v", err)
	}
}

// without drops an entry from an archive.
func without(t testing.TB, archive []byte, name string) []byte {
	t.Helper()
	var b bytes.Buffer
	tr, tw := tar.NewReader(bytes.NewReader(archive)), tar.NewWriter(&b)
	for {
		h, err := tr.Next()
		if err == io.EOF {
			must(0, tw.Close())
			return b.Bytes()
		}
		if h.Name != name {
			must(0, tw.WriteHeader(h))
			must(io.Copy(tw, tr))
		}
	}
}

func TestImport(t *testing.T) {
	s := openStore(t, Options{})
	c := emptyConfig()
	c.Config.Cmd = []string{"/bin/sh"}
	img, err := s.Import(t.Context(), bytes.NewReader(imagetest.Gzip(testTar("x"))), "imported", c)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(img.RepoTags, []string{"imported:latest"}) || img.Config.OS != "linux" || img.Config.Config.Cmd[0] != "/bin/sh" ||
		len(img.Config.History) != 1 || time.Since(img.Created) > time.Minute {
		t.Errorf("got %+v", img)
	}
	for _, bad := range []string{"no tar at all", "\x1f\x8b\x08garbage"} {
		if _, err := s.Import(t.Context(), strings.NewReader(bad), "bad", c); !errors.Is(err, ErrInvalid) {
			t.Errorf("got %v", err)
		}
	}
}

// A crash leaves files that the database does not know; the next Open sweeps them.
func TestCrash(t *testing.T) {
	s, app, _ := stocked(t)
	for _, p := range []string{
		filepath.Join(s.tmp(), "layer-123"), filepath.Join(s.layersDir(), strings.Repeat("a", 64)+".erofs"), filepath.Join(s.blobsDir(), strings.Repeat("b", 64)),
	} {
		must(0, os.WriteFile(p, []byte("half"), 0o600))
	}
	s = reopen(t, s)
	checkClean(t, s)
	if got, err := s.Get("app:1"); err != nil || got.ID != app.ID {
		t.Fatal(err)
	}
	// Somebody deletes a layer: its images go, the others stay, and a load heals.
	must(0, os.Remove(app.Layers[1].Path))
	s = reopen(t, s)
	if _, err := s.Get("app:1"); !errors.Is(err, ErrNotFound) {
		t.Errorf("got %v", err)
	}
	must(s.Get("base:1"))
	must(load(s, dockerArchive(t, "app:1", testImage(t, "base", "app"))))
	must(s.Get("app:1"))
}

// Between the commit of a removal and the deletion of its files, and before any commit, a crash must do no harm.
func TestCrashInRemoval(t *testing.T) {
	s, app, _ := stocked(t)
	var rm removal
	must(0, s.db.Update(func(tx *bolt.Tx) error {
		if err := rm.deleteImages(tx, []string{app.ID}, refsByImage(tx)); err != nil {
			return err
		}
		return rm.unneededLayers(tx)
	}))
	s = reopen(t, s)
	if _, err := os.Stat(app.Layers[1].Path); !os.IsNotExist(err) {
		t.Errorf("orphan is left: %v", err)
	}
	must(s.Get("base:1"))
}

func TestOpenRefuses(t *testing.T) {
	s := openStore(t, Options{})
	start := time.Now()
	_, err := Open(s.dir, Options{})
	if err == nil || !strings.Contains(err.Error(), "in use by another process") || time.Since(start) > 3*time.Second {
		t.Errorf("got %v after %v", err, time.Since(start))
	}
	must(0, s.db.Update(func(tx *bolt.Tx) error { return tx.Bucket([]byte(bucketMeta)).Put([]byte("schema"), []byte("99")) }))
	s.Close()
	if _, err := Open(s.dir, Options{}); err == nil || !strings.Contains(err.Error(), "written by a newer cradle") {
		t.Errorf("got %v", err)
	}
	db := must(bolt.Open(filepath.Join(s.dir, "db"), 0o600, nil))
	must(0, db.Update(func(tx *bolt.Tx) error { return tx.Bucket([]byte(bucketMeta)).Put([]byte("schema"), []byte("1")) }))
	db.Close()
	reopen(t, s)
}

// Everything at once, for the race detector and for checkClean.
func TestConcurrency(t *testing.T) {
	s := openStore(t, Options{})
	host := imagetest.ServeRegistry(t)
	var archives [][]byte
	for _, layers := range [][]string{{"base", "a"}, {"base", "b"}, {"base"}, {"a", "b", "base"}} {
		img := testImage(t, layers...)
		name := strings.Join(layers, "-")
		must(0, imagetest.Push(t.Context(), host+"/"+name+":1", img))
		archives = append(archives, dockerArchive(t, name+":1", img))
	}
	names := []string{"base-a:1", "base-b:1", "base:1", "a-b-base:1"}
	var wg sync.WaitGroup
	for w := range 12 {
		wg.Go(func() {
			for i := range 10 {
				n := (w + i) % 4
				switch w % 4 {
				case 0:
					if _, err := load(s, archives[n]); err != nil && !errors.Is(err, ErrNotFound) {
						t.Error(err)
					}
				case 1:
					if _, err := s.Pull(t.Context(), host+"/"+names[n], PullOptions{}); err != nil && !errors.Is(err, ErrNotFound) {
						t.Error(err)
					}
				case 2:
					if _, _, err := s.Remove(names[n], true); err != nil && !errors.Is(err, ErrNotFound) {
						t.Error(err)
					}
					if _, _, err := s.Prune(i%2 == 0); err != nil {
						t.Error(err)
					}
				case 3:
					if img, err := s.Get(names[n]); err == nil {
						if s.Hold(img.ID, "c") == nil {
							for _, l := range img.Layers {
								if _, err := os.Stat(l.Path); err != nil {
									t.Error(err)
								}
							}
						}
					}
					s.List()
					must(0, s.Release("c"))
				}
			}
		})
	}
	wg.Wait()
}
