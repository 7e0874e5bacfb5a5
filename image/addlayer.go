package image

import (
	"context"
	"encoding/json"
	"io"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// addLayer stores the layer in r and the image that compose makes with it, under ref unless that is empty. The layers of
// parent, if there is one, stay in the store meanwhile.
func (s *Local) addLayer(
	ctx context.Context, r io.Reader, ref string, parent *Image,
	compose func(converted) (dockerspec.DockerOCIImage, []ocispec.Descriptor),
) (Image, error) {
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
	if parent != nil {
		for _, l := range parent.Layers {
			if !lease.pin(digest.Digest(l.DiffID)) {
				return Image{}, noSuchImage(parent.ID)
			}
		}
	}
	c, err := s.importLayer(ctx, r)
	if err != nil {
		return Image{}, err
	}
	lease.pin(c.diffID)
	if err := s.install(c); err != nil {
		return Image{}, err
	}
	img, err := composed(compose(c))
	if err != nil {
		return Image{}, err
	}
	img.refs = refs
	if err := s.commit([]newImage{img}); err != nil {
		return Image{}, err
	}
	return s.Get(img.id.String())
}

// composed is the image of a config and the layers it names.
func composed(config dockerspec.DockerOCIImage, layers []ocispec.Descriptor) (newImage, error) {
	raw, err := json.Marshal(config)
	if err != nil {
		return newImage{}, err
	}
	if _, err := parseConfig(raw); err != nil {
		return newImage{}, err
	}
	doc, err := plainManifest(digest.FromBytes(raw), int64(len(raw)), layers)
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
