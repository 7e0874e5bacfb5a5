package image

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"path"
	"slices"
	"strings"

	"github.com/distribution/reference"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Load implements Store. All images of the archive enter the store, or none.
func (s *Local) Load(ctx context.Context, r io.Reader, progress func(Status)) ([]Image, error) {
	found, err := s.loadArchive(ctx, r, progress, nil)
	if err != nil {
		return nil, err
	}
	var list []Image
	for _, f := range found {
		img, err := s.Get(f.id.String())
		if err != nil {
			return nil, err
		}
		img.RepoTags = nil
		for _, ref := range f.refs {
			if !strings.Contains(ref, "@") {
				img.RepoTags = append(img.RepoTags, familiar(ref))
			}
		}
		list = append(list, img)
	}
	return list, nil
}

// LoadUnnamed implements Store.
func (s *Local) LoadUnnamed(ctx context.Context, r io.Reader, id string) (Image, error) {
	_, err := s.loadArchive(ctx, r, nil, func(found []newImage) error {
		if len(found) != 1 || found[0].id.String() != id {
			return faultf(ErrInvalid, "the archive is not that of image %s", shortID(id))
		}
		found[0].refs = nil
		return nil
	})
	if err != nil {
		return Image{}, err
	}
	return s.Get(id)
}

// loadArchive stores the images of an archive that check, when not nil, has nothing against; it may change what it is given.
func (s *Local) loadArchive(ctx context.Context, r io.Reader, progress func(Status), check func([]newImage) error) ([]newImage, error) {
	rep := newReporter(progress)
	defer rep.close()
	lease := s.newLease()
	defer lease.end()
	a, err := s.readArchive(ctx, r, lease, rep.report)
	if err != nil {
		return nil, err
	}
	found, err := a.images()
	if err != nil {
		return nil, err
	}
	if check != nil {
		if err := check(found); err != nil {
			return nil, err
		}
	}
	return found, s.commit(found)
}

// savedImage is an element of a docker-archive's manifest.json.
type savedImage struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// images matches the documents with the layers. Where an archive is both docker-archive and OCI layout the former
// says which images there are and how they are called, the latter adds their manifests.
func (a *archive) images() ([]newImage, error) {
	_, isDocker := a.docs["manifest.json"]
	_, isOCI := a.docs["index.json"]
	var found []newImage
	var err error
	switch {
	case isDocker:
		found, err = a.dockerImages()
	case isOCI:
		found, err = a.ociImages()
	default:
		return nil, faultf(ErrInvalid, "not an image archive: it has neither manifest.json nor index.json")
	}
	if err != nil {
		return nil, err
	}
	if len(found) == 0 {
		return nil, faultf(ErrInvalid, "archive has no image")
	}
	return mergeImages(found), nil
}

// mergeImages gives an image that is there under several names all of them.
func mergeImages(found []newImage) []newImage {
	var merged []newImage
	for _, img := range found {
		if i := slices.IndexFunc(merged, func(m newImage) bool { return m.id == img.id }); i >= 0 {
			merged[i].refs = append(merged[i].refs, img.refs...)
		} else {
			merged = append(merged, img)
		}
	}
	return merged
}

func (a *archive) dockerImages() ([]newImage, error) {
	var saved []savedImage
	if err := json.Unmarshal(a.docs["manifest.json"], &saved); err != nil {
		return nil, faultf(ErrInvalid, "manifest.json of the archive is not valid: %w", err)
	}
	manifests := a.manifestsByConfig()
	var found []newImage
	for _, sv := range saved {
		img, err := a.dockerImage(sv, manifests)
		if err != nil {
			return nil, err
		}
		found = append(found, img)
	}
	return found, nil
}

func (a *archive) dockerImage(sv savedImage, manifests map[digest.Digest]document) (img newImage, err error) {
	config, err := a.doc(sv.Config)
	if err != nil {
		return img, err
	}
	id := digest.FromBytes(config)
	if named, ok := isID(strings.TrimSuffix(path.Base(sv.Config), ".json")); ok && named != id.String() {
		return img, faultf(ErrInvalid, "image config %s has the digest %s", quote(sv.Config), id)
	}
	c, err := parseConfig(config)
	if err != nil {
		return img, err
	}
	if len(sv.Layers) != len(c.RootFS.DiffIDs) {
		return img, faultf(ErrInvalid, "manifest.json lists %d layers of image %s, its config %d", len(sv.Layers), id, len(c.RootFS.DiffIDs))
	}
	var layers []ocispec.Descriptor
	for i, d := range c.RootFS.DiffIDs {
		if _, err := a.wantLayer(sv.Layers[i], d); err != nil {
			return img, err
		}
		row, _ := a.s.layers.get(d)
		layers = append(layers, plainLayer(d, row.Size))
	}
	doc, ok := manifests[id]
	if !ok {
		if doc, err = plainManifest(id, int64(len(config)), layers); err != nil {
			return img, err
		}
	}
	p, err := doc.parse()
	if err != nil {
		return img, err
	}
	if img, _, err = imageOf(doc, p, config); err != nil {
		return img, err
	}
	for _, t := range sv.RepoTags {
		named, err := parseTag(t)
		if err != nil {
			return img, faultf(ErrInvalid, "manifest.json has an invalid tag %s: %w", quote(t), err)
		}
		img.refs = append(img.refs, refKey(named))
	}
	return img, nil
}

// manifestsByConfig finds the OCI manifests among the documents.
func (a *archive) manifestsByConfig() map[digest.Digest]document {
	found := map[digest.Digest]document{}
	for name, raw := range a.docs {
		d, ok := blobName(name)
		if !ok {
			continue
		}
		doc := document{raw: raw, digest: d}
		if p, err := doc.parse(); err == nil && !p.isIndex() {
			// Of several the one with the least digest: an archive must always load to the same store.
			if old, ok := found[p.Config.Digest]; !ok || d < old.digest {
				found[p.Config.Digest] = doc
			}
		}
	}
	return found
}

// ociImages follows index.json. Entries of one name for several platforms are one image.
func (a *archive) ociImages() ([]newImage, error) {
	top := document{raw: a.docs["index.json"], digest: digest.FromBytes(a.docs["index.json"])}
	p, err := top.parse()
	if err != nil {
		return nil, err
	}
	if !p.isIndex() {
		return nil, faultf(ErrInvalid, "index.json of the archive is not an index")
	}
	var found []newImage
	var skipped error
	for _, group := range groupByName(p.Manifests) {
		img, err := a.ociImage(group, 0)
		if errors.Is(err, errNotImage) {
			skipped = err // a signature or the like, beside images
			continue
		}
		if err != nil {
			return nil, err
		}
		if name := ociName(group[0]); name != "" {
			named, err := parseTag(name)
			if err != nil {
				return nil, faultf(ErrInvalid, "index.json has an invalid name %s: %w", quote(name), err)
			}
			img.refs = append(img.refs, refKey(named))
		}
		found = append(found, img)
	}
	if len(found) == 0 {
		return nil, skipped
	}
	return found, nil
}

// ociName is the reference an index entry gives its image. A bare tag names nothing: there is no repository.
func ociName(d ocispec.Descriptor) string {
	if n := d.Annotations["io.containerd.image.name"]; n != "" {
		return n
	}
	n := d.Annotations[ocispec.AnnotationRefName]
	if !strings.ContainsAny(n, ":/") {
		return ""
	}
	if _, err := reference.ParseNormalizedNamed(n); err != nil {
		return "" // the specification lets it be anything
	}
	return n
}

func groupByName(entries []ocispec.Descriptor) [][]ocispec.Descriptor {
	var groups [][]ocispec.Descriptor
	byName := map[string]int{}
	for _, e := range entries {
		name := ociName(e)
		if i, ok := byName[name]; ok && name != "" && e.Platform != nil {
			groups[i] = append(groups[i], e)
			continue
		}
		byName[name] = len(groups)
		groups = append(groups, []ocispec.Descriptor{e})
	}
	return groups
}

// ociImage finds the image that one of the entries leads to: the only one, or that for this machine's platform
// among those that the archive has.
func (a *archive) ociImage(entries []ocispec.Descriptor, depth int) (img newImage, err error) {
	entry := entries[0]
	if len(entries) > 1 {
		if entry, err = choosePlatform("the archive", entries, defaultPlatform()); err != nil {
			return img, err
		}
	}
	doc, p, err := a.ociDocument(entry)
	if err != nil {
		return img, err
	}
	if !p.isIndex() {
		return a.ociManifest(doc, p)
	}
	if depth >= 4 {
		return img, faultf(ErrInvalid, "indexes of the archive are nested too deeply")
	}
	var present []ocispec.Descriptor
	for _, m := range p.Manifests {
		if _, ok := a.docs[blobPathOf(m.Digest)]; ok {
			present = append(present, m)
		}
	}
	if len(present) == 0 && len(p.Manifests) > 0 {
		return img, faultf(ErrInvalid, "archive lacks %s", quote(blobPathOf(p.Manifests[0].Digest)))
	}
	if len(present) != 1 || present[0].Platform != nil {
		chosen, err := choosePlatform("the archive", present, defaultPlatform())
		if err != nil {
			return img, err
		}
		present = []ocispec.Descriptor{chosen}
	}
	return a.ociImage(present, depth+1)
}

func blobPathOf(d digest.Digest) string { return "blobs/sha256/" + d.Encoded() }

func (a *archive) ociDocument(d ocispec.Descriptor) (document, parsed, error) {
	raw, err := a.doc(blobPathOf(d.Digest))
	if err != nil {
		return document{}, parsed{}, err
	}
	if err := checkDocument("manifest", raw, d); err != nil {
		return document{}, parsed{}, err
	}
	doc := document{raw: raw, digest: d.Digest, mediaType: d.MediaType}
	p, err := doc.parse()
	return doc, p, err
}

func (a *archive) ociManifest(doc document, p parsed) (newImage, error) {
	config, err := a.doc(blobPathOf(p.Config.Digest))
	if err != nil {
		return newImage{}, err
	}
	if err := checkDocument("config", config, *p.Config); err != nil {
		return newImage{}, err
	}
	img, _, err := imageOf(doc, p, config)
	if err != nil {
		return img, err
	}
	for i, blob := range p.Layers {
		l, err := a.wantLayer(blobPathOf(blob.Digest), img.layers[i])
		if err != nil {
			return img, err
		}
		if l.blob != blob.Digest || l.size != blob.Size {
			return img, faultf(ErrInvalid, "layer %s is %d bytes long, not %d", blob.Digest, l.size, blob.Size)
		}
	}
	return img, nil
}
