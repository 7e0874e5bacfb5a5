package image

import (
	"context"
	"io"
	"time"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Import implements Store. What config leaves open is filled in as docker does: now, this machine's platform, and a
// line of history.
func (s *Local) Import(ctx context.Context, r io.Reader, ref string, config dockerspec.DockerOCIImage) (Image, error) {
	return s.addLayer(ctx, r, ref, nil, func(c converted) (dockerspec.DockerOCIImage, []ocispec.Descriptor) {
		return importedConfig(c, config)
	})
}

// importedConfig makes a layer an image of its own.
func importedConfig(c converted, config dockerspec.DockerOCIImage) (dockerspec.DockerOCIImage, []ocispec.Descriptor) {
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
	return config, []ocispec.Descriptor{plainLayer(c.diffID, c.info.TarBytes)}
}
