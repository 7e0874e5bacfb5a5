package image

import (
	"context"
	"fmt"
	"os"

	digest "github.com/opencontainers/go-digest"

	"github.com/cradlevm/cradle/erofs"
)

// Plain implements Store. The database does not know plain forms: one is whole when its file has its name, and an
// image without them lacks nothing.
func (s *Local) Plain(ctx context.Context, img Image) (Image, error) {
	lease := s.newLease()
	defer lease.end()
	layers := make([]Layer, len(img.Layers))
	for i, l := range img.Layers {
		d := digest.Digest(l.DiffID)
		if !lease.pin(d) {
			return Image{}, noSuchImage(img.ID)
		}
		if err := s.makePlain(ctx, d); err != nil {
			return Image{}, fmt.Errorf("layer %s of image %s for an old kernel: %w", d, shortID(img.ID), err)
		}
		layers[i] = Layer{DiffID: l.DiffID, Path: s.plainPath(d), Size: l.Size}
	}
	img.Layers = layers
	return img, nil
}

// makePlain makes the plain form of a layer that the caller has pinned, unless it is there.
func (s *Local) makePlain(ctx context.Context, d digest.Digest) error {
	if s.hasPlain(d) {
		return nil
	}
	return s.flights.do(ctx, "plain:"+d, func(Status) {}, func(ctx context.Context, _ func(Status)) error {
		if s.hasPlain(d) { // since the caller looked
			return nil
		}
		path, size, err := s.convertPlain(ctx, d)
		if err != nil {
			return err
		}
		if err := os.Rename(path, s.plainPath(d)); err != nil {
			os.Remove(path)
			return s.diskError("install a layer", err)
		}
		s.layers.mu.Lock()
		s.layers.plain[d] = size
		s.layers.mu.Unlock()
		return syncDir(s.layersDir())
	})
}

func (s *Local) hasPlain(d digest.Digest) bool {
	s.layers.mu.Lock()
	defer s.layers.mu.Unlock()
	_, ok := s.layers.plain[d]
	return ok
}

// convertPlain writes the plain form of a layer into tmp/.
func (s *Local) convertPlain(ctx context.Context, d digest.Digest) (path string, size int64, err error) {
	src, err := os.Open(s.layerPath(d))
	if err != nil {
		return "", 0, err
	}
	defer src.Close()
	content, err := s.openTar(src)
	if err != nil {
		return "", 0, err
	}
	f, err := os.CreateTemp(s.tmp(), "plain-")
	if err != nil {
		return "", 0, s.diskError("write a layer", err)
	}
	defer func() {
		f.Close()
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	stop := writeBack(f)
	// The layer was within the limits of the day it came; today's may be others.
	info, err := s.fromTar(f, ctxReader{ctx, content}, erofs.Options{Form: erofs.Full, MaxBytes: content.Size()})
	stop()
	if err == nil {
		err = f.Chmod(0o444)
	}
	if err == nil {
		err = f.Sync()
	}
	if err != nil {
		return "", 0, s.diskError("write a layer", err)
	}
	return f.Name(), info.ImageBytes, nil
}
