package image

import (
	"os"
	"slices"

	digest "github.com/opencontainers/go-digest"
	bolt "go.etcd.io/bbolt"
)

// removal is what a transaction took out of the database, for deletion from the disk once it is committed.
type removal struct {
	holders  func(id string) []string // who keeps an image
	untagged []string                 // familiar
	images   []string                 // ids
	blobs    []digest.Digest
	layers   []digest.Digest
}

// Remove implements Store. deleted has the image's id, then the diff ids of the layers that went with it. An image
// that a container holds loses its names to force, and goes with its last hold.
func (s *Local) Remove(ref string, force bool) (untagged, deleted []string, err error) {
	gone, _, err := s.change(func(tx *bolt.Tx, rm *removal) error {
		id, key, err := lookup(tx, ref)
		if err != nil {
			return err
		}
		refs := refsByImage(tx)[id]
		if key != "" {
			return rm.byName(tx, id, key, refs, force)
		}
		return rm.byID(tx, id, refs, force)
	})
	return gone.untagged, gone.images, err
}

// Prune implements Store. deleted has the images' ids, then the diff ids of the layers that went with them.
func (s *Local) Prune(all bool) (deleted []string, reclaimed int64, err error) {
	gone, reclaimed, err := s.change(func(tx *bolt.Tx, rm *removal) error {
		refs := refsByImage(tx)
		var ids []string
		err := eachImage(tx, func(id string, _ imageRow) error {
			tags, _ := splitRefs(refs[id])
			if (all || len(tags) == 0) && len(rm.holders(id)) == 0 {
				ids = append(ids, id)
			}
			return nil
		})
		if err != nil {
			return err
		}
		return rm.deleteImages(tx, ids, refs)
	})
	return gone.images, reclaimed, err
}

// change runs a transaction that takes things away and, once it is committed, deletes the files nobody needs.
func (s *Local) change(fn func(*bolt.Tx, *removal) error) (gone removal, reclaimed int64, err error) {
	s.gc.Lock()
	defer s.gc.Unlock()
	return s.changeLocked(fn)
}

// changeLocked is change for who holds gc.
func (s *Local) changeLocked(fn func(*bolt.Tx, *removal) error) (gone removal, reclaimed int64, err error) {
	err = s.db.Update(func(tx *bolt.Tx) error {
		gone = removal{holders: func(id string) []string { return s.holders(tx, id) }}
		if err := fn(tx, &gone); err != nil {
			return err
		}
		return gone.unneededLayers(tx)
	})
	if err != nil {
		return removal{}, 0, err
	}
	s.deleteBlobs(gone.blobs)
	layers, reclaimed := s.discard(gone.layers)
	gone.images = append(gone.images, layers...)
	return gone, reclaimed, nil
}

// deleteBlobs deletes manifests and configs that the database has forgotten. One that resists is swept when the
// store opens next.
func (s *Local) deleteBlobs(blobs []digest.Digest) {
	for _, b := range blobs {
		os.Remove(s.blobPath(b))
	}
}

// byName untags; the last name takes the image along.
func (rm *removal) byName(tx *bolt.Tx, id, key string, refs []string, force bool) error {
	gone := append([]string{key}, companions(key, refs)...)
	if len(gone) < len(refs) {
		return rm.untag(tx, gone)
	}
	if owners := rm.holders(id); len(owners) > 0 {
		if !force {
			return faultf(ErrInUse, "conflict: unable to remove repository reference %q (must force) - container %s is using its referenced image %s",
				familiar(key), shortID(owners[0]), shortID(id))
		}
		return rm.doom(tx, id, refs)
	}
	return rm.deleteImages(tx, []string{id}, map[string][]string{id: refs})
}

// companions are the digest references that go when key, the last tag of their repository, goes.
func companions(key string, refs []string) []string {
	var digests []string
	for _, r := range refs {
		switch {
		case r == key || repoOf(r) != repoOf(key):
		case isDigestKey(r):
			digests = append(digests, r)
		default:
			return nil // another tag of the repository remains
		}
	}
	if isDigestKey(key) {
		return nil
	}
	return digests
}

// byID deletes the image with its names, unless more than one would be surprised.
func (rm *removal) byID(tx *bolt.Tx, id string, refs []string, force bool) error {
	tags, _ := splitRefs(refs)
	sameRepo := !slices.ContainsFunc(refs, func(r string) bool { return repoOf(r) != repoOf(refs[0]) })
	single := len(refs) <= 1 || sameRepo && len(tags) <= 1
	if !single && !force {
		return faultf(ErrInUse, "conflict: unable to delete %s (must be forced) - image is referenced in multiple repositories", shortID(id))
	}
	if owners := rm.holders(id); len(owners) > 0 {
		if !force {
			return faultf(ErrInUse, "conflict: unable to delete %s (must be forced) - image is being used by container %s",
				shortID(id), shortID(owners[0]))
		}
		return rm.doom(tx, id, refs)
	}
	return rm.deleteImages(tx, []string{id}, map[string][]string{id: refs})
}

func (rm *removal) untag(tx *bolt.Tx, keys []string) error {
	for _, k := range keys {
		if err := remove(tx, bucketRefs, k); err != nil {
			return err
		}
		rm.untagged = append(rm.untagged, familiar(k))
	}
	return nil
}

// doom takes the names of an image that is held.
func (rm *removal) doom(tx *bolt.Tx, id string, refs []string) error {
	var row imageRow
	if _, err := getJSON(tx, bucketImages, id, &row); err != nil {
		return err
	}
	row.Doomed = true
	if err := putJSON(tx, bucketImages, id, row); err != nil {
		return err
	}
	return rm.untag(tx, refs)
}

func (rm *removal) deleteImages(tx *bolt.Tx, ids []string, refs map[string][]string) error {
	for _, id := range ids {
		var row imageRow
		if _, err := getJSON(tx, bucketImages, id, &row); err != nil {
			return err
		}
		for _, r := range refs[id] {
			rm.untagged = append(rm.untagged, familiar(r))
		}
		if err := deleteImageRows(tx, id, refs[id]); err != nil {
			return err
		}
		rm.images = append(rm.images, id)
		rm.blobs = append(rm.blobs, digest.Digest(id), row.Manifest.Digest)
		rm.layers = append(rm.layers, row.Layers...)
	}
	return nil
}

// unneededLayers narrows layers down to those that no remaining image has, and deletes their rows.
func (rm *removal) unneededLayers(tx *bolt.Tx) error {
	if len(rm.layers) == 0 {
		return nil
	}
	used := map[digest.Digest]bool{}
	err := eachImage(tx, func(_ string, row imageRow) error {
		for _, d := range row.Layers {
			used[d] = true
		}
		return nil
	})
	if err != nil {
		return err
	}
	var unneeded []digest.Digest
	for _, d := range rm.layers {
		if !used[d] && !slices.Contains(unneeded, d) {
			unneeded = append(unneeded, d)
			if err := remove(tx, bucketLayers, d.String()); err != nil {
				return err
			}
		}
	}
	rm.layers = unneeded
	return nil
}

// deleteImageRows deletes an image, its references and its holds from the database; layers are another matter.
func deleteImageRows(tx *bolt.Tx, id string, refs []string) error {
	for _, r := range refs {
		if err := remove(tx, bucketRefs, r); err != nil {
			return err
		}
	}
	for _, owner := range lastingHolders(tx, id) {
		if err := tx.Bucket([]byte(bucketHolds)).Delete(holdKey(id, owner)); err != nil {
			return err
		}
	}
	return remove(tx, bucketImages, id)
}
