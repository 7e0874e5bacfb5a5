package image

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	digest "github.com/opencontainers/go-digest"

	"github.com/cradlevm/cradle/erofs"
)

func TestPlain(t *testing.T) {
	s, app, base := stocked(t)
	usage := must(s.DiskUsage())
	got, err := s.Plain(t.Context(), app)
	if err != nil || len(got.Layers) != 2 || got.ID != app.ID || got.Size != app.Size {
		t.Fatalf("got %+v %v", got, err)
	}
	var more int64
	for i, l := range got.Layers {
		if l.DiffID != app.Layers[i].DiffID || l.Size != app.Layers[i].Size || l.Path == app.Layers[i].Path {
			t.Errorf("layer %d is %+v, was %+v", i, l, app.Layers[i])
		}
		b := must(os.ReadFile(l.Path))
		more += int64(len(b))
		if !bytes.Equal(b, fullForm(t, s, app.Layers[i])) {
			t.Errorf("layer %d is not erofs.Full of its tar", i)
		}
		if fi := must(os.Stat(l.Path)); fi.Mode() != 0o444 {
			t.Errorf("layer %d is %v", i, fi.Mode())
		}
	}
	if now := must(s.DiskUsage()); now != usage+more {
		t.Errorf("usage %d, want %d + %d", now, usage, more)
	}
	// What is there is not made again, neither for another image nor by the next process, nor from its own outcome.
	before := must(os.Stat(got.Layers[0].Path))
	s = reopen(t, s)
	for _, img := range []Image{app, base, got} {
		again := must(s.Plain(t.Context(), img))
		if !os.SameFile(before, must(os.Stat(again.Layers[0].Path))) {
			t.Error("made twice")
		}
	}
	if now := must(s.DiskUsage()); now != usage+more {
		t.Errorf("reopened: usage %d, want %d", now, usage+more)
	}
	// It goes with its layer, and no sooner.
	must2(s.Remove("app:1", false))
	if _, err := os.Stat(got.Layers[0].Path); err != nil {
		t.Errorf("the shared layer's went: %v", err)
	}
	if _, err := os.Stat(got.Layers[1].Path); !os.IsNotExist(err) {
		t.Errorf("outlives its layer: %v", err)
	}
	if _, err := s.Plain(t.Context(), app); !errors.Is(err, ErrNotFound) {
		t.Errorf("got %v", err)
	}
	left := must(s.DiskUsage())
	if _, reclaimed, err := s.Prune(true); err != nil || reclaimed != left || must(s.DiskUsage()) != 0 {
		t.Errorf("reclaimed %d of %d, %v", reclaimed, left, err)
	}
}

// fullForm makes the plain image from the layer's tar anew.
func fullForm(t testing.TB, s *Local, l Layer) []byte {
	t.Helper()
	f := must(os.Create(filepath.Join(t.TempDir(), "full")))
	defer f.Close()
	must(erofs.FromTar(f, bytes.NewReader(layerTar(t, s, l)), erofs.Options{Form: erofs.Full}))
	return must(os.ReadFile(f.Name()))
}

func TestPlainOnce(t *testing.T) {
	s, app, _ := stocked(t)
	var made atomic.Int32
	fromTar := s.fromTar
	s.fromTar = func(f *os.File, r io.Reader, o erofs.Options) (erofs.Info, error) {
		made.Add(1)
		return fromTar(f, r, o)
	}
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if _, err := s.Plain(t.Context(), app); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := made.Load(); n != 2 {
		t.Errorf("%d conversions of 2 layers", n)
	}
}

// A failure leaves nothing, and the next one to ask is not the worse for it.
func TestPlainFails(t *testing.T) {
	s, app, _ := stocked(t)
	fromTar, usage := s.fromTar, must(s.DiskUsage())
	boom := errors.New("boom")
	s.fromTar = func(f *os.File, _ io.Reader, _ erofs.Options) (erofs.Info, error) {
		must(f.WriteString("half"))
		return erofs.Info{}, boom
	}
	if _, err := s.Plain(t.Context(), app); !errors.Is(err, boom) || !strings.Contains(err.Error(), app.Layers[0].DiffID) {
		t.Errorf("got %v", err)
	}
	if now := must(s.DiskUsage()); now != usage {
		t.Errorf("usage %d, want %d", now, usage)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	s.fromTar = func(f *os.File, r io.Reader, o erofs.Options) (erofs.Info, error) {
		cancel()
		return fromTar(f, r, o)
	}
	if _, err := s.Plain(ctx, app); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	checkClean(t, s)
	s.fromTar = fromTar
	must(s.Plain(t.Context(), app))
}

// An image that goes while its plain form is made takes it along.
func TestPlainOfGoneImage(t *testing.T) {
	s, app, _ := stocked(t)
	fromTar := s.fromTar
	s.fromTar = func(f *os.File, r io.Reader, o erofs.Options) (erofs.Info, error) {
		if _, err := s.Get("app:1"); err == nil {
			must2(s.Remove("app:1", false))
		}
		return fromTar(f, r, o)
	}
	if _, err := s.Plain(t.Context(), app); err != nil && !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
	if s.hasPlain(digest.Digest(app.Layers[1].DiffID)) {
		t.Error("the plain form of a layer that went is still there")
	}
	checkClean(t, s)
}

func TestPlainCrash(t *testing.T) {
	s, app, base := stocked(t)
	plain := must(s.Plain(t.Context(), app))
	for _, p := range []string{
		filepath.Join(s.tmp(), "plain-123"), filepath.Join(s.layersDir(), strings.Repeat("a", 64)+".full.erofs"),
	} {
		must(0, os.WriteFile(p, []byte("half"), 0o600))
	}
	// Somebody deletes one; another's layer goes, and all its images with it.
	must(0, os.Remove(plain.Layers[0].Path))
	must(0, os.Remove(app.Layers[1].Path))
	s = reopen(t, s)
	checkClean(t, s)
	if _, err := os.Stat(plain.Layers[1].Path); !os.IsNotExist(err) {
		t.Errorf("orphan: %v", err)
	}
	again := must(s.Plain(t.Context(), base))
	if _, err := os.Stat(again.Layers[0].Path); err != nil {
		t.Error(err)
	}
}
