package image

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/distribution/reference"
	digest "github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	bolt "go.etcd.io/bbolt"
)

// Save implements Store. A repository's name without a tag means all its tags, as with docker save. The documents
// come first in the archive, so that a reader can know early what it will find.
func (s *Local) Save(ctx context.Context, refs []string, w io.Writer) error {
	lease := s.newLease()
	defer lease.end()
	list, err := s.toSave(refs, lease)
	if err != nil {
		return err
	}
	sv := saver{s: s, ctx: ctx, tw: tar.NewWriter(w), written: map[digest.Digest]bool{}}
	if err := sv.documents(list); err != nil {
		return err
	}
	for _, img := range list {
		for _, l := range img.layers {
			if err := sv.layer(l.Digest); err != nil {
				return fmt.Errorf("save layer %s: %w", l.Digest, err)
			}
		}
	}
	return sv.tw.Close()
}

// imageToSave is an image and the names it goes by in the archive.
type imageToSave struct {
	id     digest.Digest
	config []byte
	doc    document
	layers []ocispec.Descriptor
	tags   []string // database keys
}

// toSave finds the images and pins their layers.
func (s *Local) toSave(refs []string, l *lease) ([]imageToSave, error) {
	var list []imageToSave
	err := s.db.View(func(tx *bolt.Tx) error {
		for _, ref := range refs {
			tags, id, err := expand(tx, ref)
			if err != nil {
				return err
			}
			if id != "" {
				tags = map[string][]string{id: nil}
			}
			for id, keys := range tags {
				i := slices.IndexFunc(list, func(m imageToSave) bool { return m.id.String() == id })
				if i < 0 {
					img, err := s.prepare(tx, id, l)
					if err != nil {
						return err
					}
					i, list = len(list), append(list, img)
				}
				list[i].tags = append(list[i].tags, keys...)
			}
		}
		return nil
	})
	for i := range list {
		slices.Sort(list[i].tags)
		list[i].tags = slices.Compact(list[i].tags)
	}
	slices.SortFunc(list, func(a, b imageToSave) int { return strings.Compare(a.id.String(), b.id.String()) })
	return list, err
}

// expand returns the tags that a reference stands for, by image, or the id it is.
func expand(tx *bolt.Tx, ref string) (tags map[string][]string, id string, err error) {
	if named, err := reference.ParseNormalizedNamed(ref); err == nil && reference.IsNameOnly(named) {
		tags = map[string][]string{}
		prefix := []byte(named.Name() + ":")
		c := tx.Bucket([]byte(bucketRefs)).Cursor()
		for k, v := c.Seek(prefix); bytes.HasPrefix(k, prefix); k, v = c.Next() {
			tags[string(v)] = append(tags[string(v)], string(k))
		}
		if len(tags) > 0 {
			return tags, "", nil
		}
	}
	id, key, err := lookup(tx, ref)
	if errors.Is(err, ErrNotFound) {
		err = noSuchImage(ref) // as it was said: all tags were looked for
	}
	if err != nil || key == "" || isDigestKey(key) {
		return nil, id, err
	}
	return map[string][]string{id: {key}}, "", nil
}

// prepare pins an image's layers and makes the manifest it has in the archive, where layers are plain tars.
func (s *Local) prepare(tx *bolt.Tx, id string, l *lease) (imageToSave, error) {
	img := imageToSave{id: digest.Digest(id)}
	var row imageRow
	if ok, err := getJSON(tx, bucketImages, id, &row); err != nil || !ok {
		return img, noSuchImage(id)
	}
	var err error
	if img.config, err = os.ReadFile(s.blobPath(img.id)); err != nil {
		return img, noSuchImage(id)
	}
	for _, d := range row.Layers {
		if !l.pin(d) {
			return img, noSuchImage(id) // it is being removed
		}
		lr, _ := s.layers.get(d)
		img.layers = append(img.layers, plainLayer(d, lr.Size))
	}
	img.doc, err = plainManifest(img.id, int64(len(img.config)), img.layers)
	return img, err
}

// saver writes one archive.
type saver struct {
	s       *Local
	ctx     context.Context
	tw      *tar.Writer
	written map[digest.Digest]bool
}

func (sv *saver) documents(list []imageToSave) error {
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{}}
	saved := []savedImage{}
	for _, img := range list {
		saved = append(saved, savedImageOf(img))
		index.Manifests = append(index.Manifests, indexEntries(img)...)
	}
	if err := sv.json(ocispec.ImageLayoutFile, ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion}); err != nil {
		return err
	}
	if err := sv.json(ocispec.ImageIndexFile, index); err != nil {
		return err
	}
	if err := sv.json("manifest.json", saved); err != nil {
		return err
	}
	for _, img := range list {
		if err := sv.file(blobPathOf(img.doc.digest), img.doc.raw); err != nil {
			return err
		}
		if err := sv.file(blobPathOf(img.id), img.config); err != nil {
			return err
		}
	}
	return nil
}

func savedImageOf(img imageToSave) savedImage {
	sv := savedImage{Config: blobPathOf(img.id), Layers: []string{}}
	for _, t := range img.tags {
		sv.RepoTags = append(sv.RepoTags, familiar(t))
	}
	for _, l := range img.layers {
		sv.Layers = append(sv.Layers, blobPathOf(l.Digest))
	}
	return sv
}

// indexEntries lists an image once for each of its names, the way containerd does.
func indexEntries(img imageToSave) []ocispec.Descriptor {
	desc := ocispec.Descriptor{MediaType: img.doc.mediaType, Digest: img.doc.digest, Size: int64(len(img.doc.raw))}
	if len(img.tags) == 0 {
		return []ocispec.Descriptor{desc}
	}
	var entries []ocispec.Descriptor
	for _, t := range img.tags {
		d := desc
		d.Annotations = map[string]string{
			"io.containerd.image.name": t,
			ocispec.AnnotationRefName:  t[strings.LastIndex(t, ":")+1:],
		}
		entries = append(entries, d)
	}
	return entries
}

func (sv *saver) json(name string, v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return sv.file(name, raw)
}

func (sv *saver) header(name string, size int64) error {
	return sv.tw.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: size, ModTime: time.Unix(0, 0)})
}

func (sv *saver) file(name string, content []byte) error {
	if err := sv.header(name, int64(len(content))); err != nil {
		return err
	}
	_, err := sv.tw.Write(content)
	return err
}

// layer writes a layer's tar, once.
func (sv *saver) layer(diffID digest.Digest) error {
	if sv.written[diffID] {
		return nil
	}
	sv.written[diffID] = true
	f, err := os.Open(sv.s.layerPath(diffID))
	if err != nil {
		return err
	}
	defer f.Close()
	content, err := sv.s.openTar(f)
	if err != nil {
		return err
	}
	if err := sv.header(blobPathOf(diffID), content.Size()); err != nil {
		return err
	}
	_, err = io.CopyBuffer(struct{ io.Writer }{sv.tw}, ctxReader{sv.ctx, content}, make([]byte, chunkSize))
	return err
}
