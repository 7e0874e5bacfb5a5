package image

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/platforms"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	dockerManifest     = "application/vnd.docker.distribution.manifest.v2+json"
	dockerManifestList = "application/vnd.docker.distribution.manifest.list.v2+json"
	dockerConfig       = "application/vnd.docker.container.image.v1+json"
	dockerLayerPrefix  = "application/vnd.docker.image.rootfs."
	dockerSchema1      = "application/vnd.docker.distribution.manifest.v1+"
	ociLayerPrefix     = "application/vnd.oci.image.layer."
)

// document is a manifest or an index as it came, checked against its digest.
type document struct {
	raw       []byte
	digest    digest.Digest
	mediaType string
}

// parsed is the union of the fields of manifests and indexes.
type parsed struct {
	SchemaVersion int                  `json:"schemaVersion"`
	MediaType     string               `json:"mediaType"`
	Config        *ocispec.Descriptor  `json:"config"`
	Layers        []ocispec.Descriptor `json:"layers"`
	Manifests     []ocispec.Descriptor `json:"manifests"`
}

func (p parsed) isIndex() bool { return p.Manifests != nil && p.Config == nil }

// parse reads a manifest or an index. Which it is follows from its content: claims about its type are not bound by
// its digest. Content that can be read as both is refused.
func (d document) parse() (parsed, error) {
	var p parsed
	if err := json.Unmarshal(d.raw, &p); err != nil {
		return p, faultf(ErrInvalid, "manifest %s is not valid JSON: %w", d.digest, err)
	}
	if p.SchemaVersion == 1 || strings.HasPrefix(d.mediaType, dockerSchema1) {
		return p, faultf(ErrInvalid, "manifest %s has the obsolete Docker schema 1; push the image again with a newer docker", d.digest)
	}
	if p.Manifests != nil && (p.Config != nil || p.Layers != nil) {
		return p, faultf(ErrInvalid, "manifest %s is both manifest and index", d.digest)
	}
	if p.isIndex() {
		for _, m := range p.Manifests {
			if err := checkDescriptor(m); err != nil {
				return p, err
			}
		}
		return p, nil
	}
	if p.Config == nil {
		return p, faultf(ErrInvalid, "manifest %s has no config", d.digest)
	}
	return p, p.checkManifest()
}

func (p parsed) checkManifest() error {
	if err := checkDescriptor(*p.Config); err != nil {
		return err
	}
	switch p.Config.MediaType {
	case dockerConfig, ocispec.MediaTypeImageConfig, "":
	default:
		return faultf(ErrInvalid, "%w: its config is of type %s", errNotImage, quote(p.Config.MediaType))
	}
	for _, l := range p.Layers {
		if err := checkDescriptor(l); err != nil {
			return err
		}
		known := l.MediaType == "" || strings.HasPrefix(l.MediaType, dockerLayerPrefix) || strings.HasPrefix(l.MediaType, ociLayerPrefix)
		if !known || strings.HasSuffix(l.MediaType, "+encrypted") {
			return faultf(ErrInvalid, "layer %s has the unsupported type %s", l.Digest, quote(l.MediaType))
		}
	}
	return nil
}

func checkDescriptor(d ocispec.Descriptor) error {
	if err := sha256Digest(d.Digest); err != nil {
		return err
	}
	if d.Size < 0 {
		return faultf(ErrInvalid, "%s has the size %d", d.Digest, d.Size)
	}
	return nil
}

// descriptor describes the manifest itself.
func (d document) descriptor(p parsed) ocispec.Descriptor {
	mt := p.MediaType
	if mt == "" {
		mt = d.mediaType
	}
	if mt == "" {
		mt = ocispec.MediaTypeImageManifest
	}
	return ocispec.Descriptor{MediaType: mt, Digest: d.digest, Size: int64(len(d.raw))}
}

// defaultPlatform is what runs here: linux, whatever cradle itself was built for.
func defaultPlatform() ocispec.Platform {
	p := platforms.DefaultSpec()
	return ocispec.Platform{OS: "linux", Architecture: p.Architecture, Variant: p.Variant}
}

// choosePlatform picks the entry of an index that suits want best: its variant or the next lower one. Another
// architecture never does, although a CPU might run it: the guest's kernel does not.
func choosePlatform(ref string, entries []ocispec.Descriptor, want ocispec.Platform) (ocispec.Descriptor, error) {
	want = platforms.Normalize(want)
	match := platforms.Only(want)
	var best *ocispec.Descriptor
	var bestPlatform ocispec.Platform
	var have []string
	for i, e := range entries {
		p, ok := imagePlatform(e)
		if !ok {
			continue
		}
		if name := platforms.Format(p); !slices.Contains(have, name) {
			have = append(have, name)
		}
		if p.Architecture != want.Architecture || !match.Match(p) {
			continue
		}
		if best == nil || match.Less(p, bestPlatform) {
			best, bestPlatform = &entries[i], p
		}
	}
	if best != nil {
		return *best, nil
	}
	if len(have) == 0 {
		return ocispec.Descriptor{}, faultf(ErrNotFound, "%s is an index without images", ref)
	}
	return ocispec.Descriptor{}, faultf(ErrNotFound, "no matching manifest for %s in the manifest list entries of %s: it has %s",
		platforms.Format(want), ref, strings.Join(have, ", "))
}

// imagePlatform returns an index entry's platform; attestations and other things that are no images have none.
func imagePlatform(e ocispec.Descriptor) (ocispec.Platform, bool) {
	if e.Platform == nil || e.Platform.OS == "unknown" || e.Annotations["vnd.docker.reference.type"] != "" {
		return ocispec.Platform{}, false
	}
	switch e.MediaType {
	case "", dockerManifest, dockerManifestList, ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageIndex:
		return platforms.Normalize(*e.Platform), true
	}
	return ocispec.Platform{}, false
}

// checkPlatform complains when an image that is not part of an index is for another platform than asked for.
func checkPlatform(ref string, c dockerspec.DockerOCIImage, want *ocispec.Platform) error {
	if want == nil || c.Architecture == "" {
		return nil
	}
	have, asked := platforms.Normalize(c.Platform), platforms.Normalize(*want)
	if have.Architecture == asked.Architecture && platforms.Only(asked).Match(have) {
		return nil
	}
	return faultf(ErrNotFound, "image with reference %s was found but its platform (%s) does not match the specified platform (%s)",
		ref, platforms.Format(have), platforms.Format(asked))
}

// imageOf checks a manifest against its config and returns the image they make, without references.
func imageOf(doc document, p parsed, config []byte) (newImage, dockerspec.DockerOCIImage, error) {
	c, err := parseConfig(config)
	if err != nil {
		return newImage{}, c, err
	}
	if len(c.RootFS.DiffIDs) != len(p.Layers) {
		return newImage{}, c, faultf(ErrInvalid, "manifest %s has %d layers, its config %d", doc.digest, len(p.Layers), len(c.RootFS.DiffIDs))
	}
	return newImage{
		id: p.Config.Digest, config: config, desc: doc.descriptor(p), manifest: doc.raw, layers: c.RootFS.DiffIDs,
	}, c, nil
}

// plainManifest makes the manifest of an image whose layers are plain tars: what an image without one is stored
// with, and what Save writes.
func plainManifest(id digest.Digest, configSize int64, layers []ocispec.Descriptor) (document, error) {
	m := ocispec.Manifest{
		MediaType: ocispec.MediaTypeImageManifest,
		Config:    ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: id, Size: configSize},
		Layers:    layers,
	}
	m.SchemaVersion = 2
	if m.Layers == nil {
		m.Layers = []ocispec.Descriptor{}
	}
	raw, err := json.Marshal(m)
	if err != nil {
		return document{}, fmt.Errorf("make manifest: %w", err)
	}
	return document{raw: raw, digest: digest.FromBytes(raw), mediaType: m.MediaType}, nil
}

func plainLayer(diffID digest.Digest, size int64) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: diffID, Size: size}
}
