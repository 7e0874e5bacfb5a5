package image

import (
	"bytes"
	"errors"
	"slices"
	"testing"

	"github.com/cradlevm/cradle/image/imagetest"
)

// FuzzLoad: whatever an archive says, Load either stores images that are what they claim to be, or says ErrInvalid
// (ErrNotFound for another platform's), and leaves nothing behind.
//
// Goroutines make the coverage of one input vary, and minimizing then takes all the time: run it with
// -fuzzminimizetime 5x and, against the fsyncs, TMPDIR on a tmpfs.
func FuzzLoad(f *testing.F) {
	s := openStore(f, Options{MaxLayerBytes: 8 << 20, MaxArchiveBytes: 16 << 20})
	layer := imagetest.Tar(imagetest.File{Name: "x", Body: []byte("y")})
	config := configOf(layer)
	plain := imagetest.Tar(
		imagetest.File{Name: "manifest.json", Body: manifestJSON("c.json", []string{"a:1"}, "l.tar")},
		imagetest.File{Name: "c.json", Body: config}, imagetest.File{Name: "k.tar", Body: layer}, imagetest.File{Name: "l.tar", Link: "k.tar"})
	f.Add(plain)
	f.Add(imagetest.Gzip(plain))
	must(load(s, plain))
	var saved bytes.Buffer
	must(0, s.Save(f.Context(), []string{"a:1"}, &saved))
	f.Add(saved.Bytes())
	f.Add(without(f, saved.Bytes(), "manifest.json"))
	must2(s.Remove("a:1", true))
	f.Fuzz(func(t *testing.T, archive []byte) {
		images, err := load(s, archive)
		if err != nil {
			if !errors.Is(err, ErrInvalid) && !errors.Is(err, ErrNotFound) {
				t.Errorf("got %v", err)
			}
		}
		for _, img := range images {
			for _, l := range img.Layers {
				layerTar(t, s, l)
			}
			var b bytes.Buffer
			if err := s.Save(t.Context(), []string{img.ID}, &b); err != nil {
				t.Error(err)
			}
		}
		list := must(s.List())
		if len(list) != len(images) {
			t.Errorf("%d images loaded, %d stored", len(images), len(list))
		}
		deleted, _, err := s.Prune(true)
		if err != nil || len(images) > 0 && !slices.Contains(deleted, images[0].ID) {
			t.Errorf("prune: %v %v", deleted, err)
		}
		checkClean(t, s)
	})
}
