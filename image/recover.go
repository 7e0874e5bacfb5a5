package image

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	digest "github.com/opencontainers/go-digest"
	bolt "go.etcd.io/bbolt"
)

// recover brings files and database into agreement when the store opens. Files reach their place before the
// database names them and leave it after, so a crash leaves at most files that nobody names; they go. An image
// whose files are missing (somebody deleted them) goes too: it can be pulled again, and could not run.
func (s *Local) recover() error {
	for _, dir := range []string{s.layersDir(), s.blobsDir()} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	if err := s.db.Update(initSchema); err != nil {
		return err
	}
	if err := os.RemoveAll(s.tmp()); err != nil {
		return err
	}
	if err := os.Mkdir(s.tmp(), 0o700); err != nil {
		return err
	}
	needed, err := s.dropBroken()
	if err != nil {
		return err
	}
	for _, dir := range []string{s.layersDir(), s.blobsDir()} {
		if err := sweep(dir, needed); err != nil {
			return err
		}
	}
	return s.loadLayers()
}

// loadLayers learns which layers are there, and which of them have a plain form.
func (s *Local) loadLayers() error {
	if err := s.db.View(s.layers.load); err != nil {
		return err
	}
	for d := range s.layers.present {
		if fi, err := os.Stat(s.plainPath(d)); err == nil {
			s.layers.plain[d] = fi.Size()
		}
	}
	return nil
}

// dropBroken removes the rows of images that lack a file and of layers that no image has, and returns the paths of
// the files that the remaining rows name.
func (s *Local) dropBroken() (map[string]bool, error) {
	needed := map[string]bool{}
	err := s.db.Update(func(tx *bolt.Tx) error {
		var broken []string
		used := map[string]bool{}
		err := eachImage(tx, func(id string, row imageRow) error {
			files, ok := s.filesOf(tx, id, row)
			if !ok {
				broken = append(broken, id)
				return nil
			}
			for _, f := range files {
				needed[f] = true
			}
			for _, l := range row.Layers {
				used[l.String()] = true
			}
			return nil
		})
		if err != nil {
			return err
		}
		refs := refsByImage(tx)
		for _, id := range broken {
			if err := deleteImageRows(tx, id, refs[id]); err != nil {
				return err
			}
		}
		return deleteOtherLayerRows(tx, used)
	})
	return needed, err
}

// filesOf returns the files an image may keep and whether those it needs are there, the layers in their full length.
func (s *Local) filesOf(tx *bolt.Tx, id string, row imageRow) ([]string, bool) {
	files := []string{s.blobPath(digest.Digest(id)), s.blobPath(row.Manifest.Digest)}
	for _, f := range files {
		if _, err := os.Stat(f); err != nil {
			return nil, false
		}
	}
	for _, l := range row.Layers {
		var lr layerRow
		path := s.layerPath(l)
		fi, err := os.Stat(path)
		if ok, rowErr := getJSON(tx, bucketLayers, l.String(), &lr); err != nil || rowErr != nil || !ok || fi.Size() != lr.Image {
			return nil, false
		}
		files = append(files, path, s.plainPath(l)) // the second may be there: it can be made again
	}
	return files, true
}

func deleteOtherLayerRows(tx *bolt.Tx, used map[string]bool) error {
	var stale []string
	err := tx.Bucket([]byte(bucketLayers)).ForEach(func(k, _ []byte) error {
		if !used[string(k)] {
			stale = append(stale, string(k))
		}
		return nil
	})
	for _, k := range stale {
		if err == nil {
			err = remove(tx, bucketLayers, k)
		}
	}
	return err
}

// sweep deletes the files of dir that are not needed.
func sweep(dir string, needed map[string]bool) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if needed[path] || strings.HasPrefix(e.Name(), ".") {
			continue
		}
		if err := os.RemoveAll(path); err != nil {
			return fmt.Errorf("sweep: %w", err)
		}
	}
	return nil
}
