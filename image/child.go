package image

import (
	"context"
	"io"
	"slices"
	"time"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// emptyTar is the diff id of a layer with nothing in it.
const emptyTar = digest.Digest("sha256:5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef")

// Commit implements Store. config's history is the step that made the layer; a layer with nothing in it becomes a
// step without one, as docker has it.
func (s *Local) Commit(ctx context.Context, parent Image, layer io.Reader, ref string, config dockerspec.DockerOCIImage) (Image, error) {
	return s.addLayer(ctx, layer, ref, &parent, func(c converted) (dockerspec.DockerOCIImage, []ocispec.Descriptor) {
		return childConfig(parent, c, config)
	})
}

// childConfig puts a layer on top of an image.
func childConfig(parent Image, c converted, config dockerspec.DockerOCIImage) (dockerspec.DockerOCIImage, []ocispec.Descriptor) {
	if config.Created == nil {
		now := time.Now().UTC()
		config.Created = &now
	}
	step := ocispec.History{Created: config.Created}
	if len(config.History) > 0 {
		step = config.History[0]
	}
	var layers []ocispec.Descriptor
	config.RootFS = ocispec.RootFS{Type: "layers"}
	for _, l := range parent.Layers {
		layers = append(layers, plainLayer(digest.Digest(l.DiffID), l.Size))
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, digest.Digest(l.DiffID))
	}
	if step.EmptyLayer = c.diffID == emptyTar; !step.EmptyLayer {
		layers = append(layers, plainLayer(c.diffID, c.info.TarBytes))
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, c.diffID)
	}
	config.History = append(fullHistory(parent), step)
	return config, layers
}

// fullHistory is an image's history with a step for each layer: builders may leave some or all out, and the next step
// would be taken for theirs.
func fullHistory(img Image) []ocispec.History {
	history := slices.Clone(img.Config.History)
	layers := 0
	for _, h := range history {
		if !h.EmptyLayer {
			layers++
		}
	}
	for ; layers < len(img.Layers); layers++ {
		history = append(history, ocispec.History{Created: img.Config.Created})
	}
	return history
}

// Decompress returns the plain bytes of a stream that may be compressed with gzip or zstd; what it reads in other
// compressions that docker knows is ErrInvalid. Close it after use.
func Decompress(r io.Reader) (io.ReadCloser, error) {
	head, r, err := peek(r)
	if err != nil {
		return nil, err
	}
	c, err := codecOf(head)
	if err != nil {
		return nil, err
	}
	if c == plain {
		return io.NopCloser(r), nil
	}
	d, err := decompress(c, r)
	if err != nil {
		return nil, faultf(ErrInvalid, "%w", badStream(c, err))
	}
	return plainStream{d}, nil
}

// plainStream is a decompressor that can be closed.
type plainStream struct{ *decompressor }

func (p plainStream) Close() error {
	p.close()
	return nil
}
