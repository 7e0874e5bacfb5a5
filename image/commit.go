package image

import (
	"fmt"

	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	bolt "go.etcd.io/bbolt"
)

// newImage is an image about to enter the store. Its layers are there, pinned by the lease of who brings it.
type newImage struct {
	id       digest.Digest
	config   []byte
	desc     ocispec.Descriptor // of the manifest
	manifest []byte
	layers   []digest.Digest
	refs     []string // database keys
}

// commit makes images part of the store, all or none. The files are durable before the database names them.
func (s *Local) commit(images []newImage) error {
	s.gc.Lock()
	defer s.gc.Unlock()
	for _, img := range images {
		for _, d := range img.layers {
			if _, ok := s.layers.get(d); !ok {
				return fmt.Errorf("layer %s of image %s is not in the store", d, img.id)
			}
		}
		if err := s.writeFile(s.blobPath(img.id), img.config); err != nil {
			return err
		}
		if err := s.writeFile(s.blobPath(img.desc.Digest), img.manifest); err != nil {
			return err
		}
	}
	for _, dir := range []string{s.layersDir(), s.blobsDir()} {
		if err := syncDir(dir); err != nil {
			return err
		}
	}
	var stale []digest.Digest
	err := s.db.Update(func(tx *bolt.Tx) error {
		stale = nil
		for _, img := range images {
			old, err := s.putImage(tx, img)
			if err != nil {
				return err
			}
			if old != "" && old != img.desc.Digest {
				stale = append(stale, old)
			}
		}
		return nil
	})
	if err != nil {
		return s.diskError("record an image", err)
	}
	s.deleteBlobs(stale)
	return nil
}

// putImage writes an image's rows and returns the manifest it had before, if it was there.
func (s *Local) putImage(tx *bolt.Tx, img newImage) (old digest.Digest, err error) {
	var row imageRow
	if _, err := getJSON(tx, bucketImages, img.id.String(), &row); err != nil {
		return "", err
	}
	old = row.Manifest.Digest
	if err := putJSON(tx, bucketImages, img.id.String(), imageRow{Manifest: img.desc, Layers: img.layers}); err != nil {
		return "", err
	}
	for _, d := range img.layers {
		lr, _ := s.layers.get(d)
		if err := putJSON(tx, bucketLayers, d.String(), lr); err != nil {
			return "", err
		}
	}
	for _, ref := range img.refs {
		if err := tx.Bucket([]byte(bucketRefs)).Put([]byte(ref), []byte(img.id)); err != nil {
			return "", err
		}
	}
	return old, nil
}

// Tag implements Store.
func (s *Local) Tag(source, target string) error {
	named, err := parseTag(target)
	if err != nil {
		return err
	}
	s.gc.Lock()
	defer s.gc.Unlock()
	return s.db.Update(func(tx *bolt.Tx) error {
		id, _, err := lookup(tx, source)
		if err != nil {
			return err
		}
		var row imageRow
		if _, err := getJSON(tx, bucketImages, id, &row); err != nil {
			return err
		}
		if row.Doomed { // it has a name again
			row.Doomed = false
			if err := putJSON(tx, bucketImages, id, row); err != nil {
				return err
			}
		}
		return tx.Bucket([]byte(bucketRefs)).Put([]byte(refKey(named)), []byte(id))
	})
}
