package image

import (
	"context"
	"encoding/json"
	"io"
	"time"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Import implements Store. What config leaves open is filled in as docker does: now, this machine's platform, and a
// line of history.
func (s *Local) Import(ctx context.Context, r io.Reader, ref string, config dockerspec.DockerOCIImage) (Image, error) {
	var refs []string
	if ref != "" {
		named, err := parseTag(ref)
		if err != nil {
			return Image{}, err
		}
		refs = []string{refKey(named)}
	}
	lease := s.newLease()
	defer lease.end()
	c, err := s.importLayer(ctx, r)
	if err != nil {
		return Image{}, err
	}
	lease.pin(c.diffID)
	if err := s.install(c); err != nil {
		return Image{}, err
	}
	img, err := importedImage(c, config)
	if err != nil {
		return Image{}, err
	}
	img.refs = refs
	if err := s.commit([]newImage{img}); err != nil {
		return Image{}, err
	}
	return s.Get(img.id.String())
}

// importLayer converts r, and gives up when ctx ends even while r blocks: then r may still be read.
func (s *Local) importLayer(ctx context.Context, r io.Reader) (converted, error) {
	outer := newRelay(&s.chunks, ctxReader{ctx, r}, 1, s.o.MaxLayerBytes, s.tooLarge())
	defer context.AfterFunc(ctx, outer.stop)()
	c, err := s.convert(outer.taps[0], outer.stop)
	outer.stop()
	if ctx.Err() == nil {
		<-outer.done
	}
	switch {
	case err == nil:
		return c, nil
	case ctx.Err() != nil:
		return c, ctx.Err()
	case outer.err != nil && outer.err != errStopped:
		return c, outer.err
	}
	return c, err
}

func importedImage(c converted, config dockerspec.DockerOCIImage) (newImage, error) {
	platform := defaultPlatform()
	if config.OS == "" {
		config.OS = platform.OS
	}
	if config.Architecture == "" {
		config.Architecture, config.Variant = platform.Architecture, platform.Variant
	}
	if config.Created == nil {
		now := time.Now().UTC()
		config.Created = &now
	}
	if len(config.History) == 0 {
		config.History = []ocispec.History{{Created: config.Created, Comment: "Imported from -"}}
	}
	config.RootFS = ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{c.diffID}}
	raw, err := json.Marshal(config)
	if err != nil {
		return newImage{}, err
	}
	if _, err := parseConfig(raw); err != nil {
		return newImage{}, err
	}
	id := digest.FromBytes(raw)
	doc, err := plainManifest(id, int64(len(raw)), []ocispec.Descriptor{plainLayer(c.diffID, c.info.TarBytes)})
	if err != nil {
		return newImage{}, err
	}
	p, err := doc.parse()
	if err != nil {
		return newImage{}, err
	}
	img, _, err := imageOf(doc, p, raw)
	return img, err
}
