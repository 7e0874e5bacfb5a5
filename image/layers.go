package image

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"sync"

	digest "github.com/opencontainers/go-digest"
	bolt "go.etcd.io/bbolt"
)

// layerSet is what the process knows of the layers on disk: which are there, and which a running operation needs.
// Its lock is held for no longer than a rename.
type layerSet struct {
	mu      sync.Mutex
	present map[digest.Digest]layerRow      // by diff id
	plain   map[digest.Digest]int64         // bytes of the plain form, by diff id, of those that have one
	byBlob  map[digest.Digest]digest.Digest // compressed form → diff id
	pins    map[digest.Digest]int           // by diff id, of layers that are there or still to come
}

// load fills the set from the database.
func (ls *layerSet) load(tx *bolt.Tx) error {
	ls.present = map[digest.Digest]layerRow{}
	ls.plain = map[digest.Digest]int64{}
	ls.byBlob = map[digest.Digest]digest.Digest{}
	ls.pins = map[digest.Digest]int{}
	return tx.Bucket([]byte(bucketLayers)).ForEach(func(k, v []byte) error {
		var row layerRow
		if err := json.Unmarshal(v, &row); err != nil {
			return err
		}
		ls.put(digest.Digest(k), row)
		return nil
	})
}

func (ls *layerSet) put(diffID digest.Digest, row layerRow) {
	ls.present[diffID] = row
	for _, b := range row.Blobs {
		ls.byBlob[b] = diffID
	}
}

func (ls *layerSet) get(diffID digest.Digest) (layerRow, bool) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	row, ok := ls.present[diffID]
	return row, ok
}

// install puts a converted layer in its place, or drops it when the layer is there already. The caller has pinned
// the diff id, so the layer stays.
func (s *Local) install(c converted) error {
	ls := &s.layers
	ls.mu.Lock()
	defer ls.mu.Unlock()
	row, ok := ls.present[c.diffID]
	if ok {
		os.Remove(c.path)
	} else {
		if err := os.Rename(c.path, s.layerPath(c.diffID)); err != nil {
			os.Remove(c.path)
			return s.diskError("install a layer", err)
		}
		row = layerRow{Size: c.info.TarBytes, Image: c.info.ImageBytes}
	}
	// A handful of compressed forms is plenty; the list must not grow with every rebuild of somebody's image.
	if c.blob != c.diffID && !slices.Contains(row.Blobs, c.blob) && len(row.Blobs) < 8 {
		row.Blobs = append(slices.Clone(row.Blobs), c.blob)
	}
	ls.put(c.diffID, row)
	return nil
}

// takeAway moves an unpinned layer's files into tmp/ and forgets the layer. It returns the files to delete, and the
// bytes they take.
func (s *Local) takeAway(diffID digest.Digest) (trash []string, size int64) {
	ls := &s.layers
	ls.mu.Lock()
	defer ls.mu.Unlock()
	row, ok := ls.present[diffID]
	if !ok || ls.pins[diffID] > 0 {
		return nil, 0
	}
	trash = []string{filepath.Join(s.tmp(), "dead-"+diffID.Encoded())}
	if err := os.Rename(s.layerPath(diffID), trash[0]); err != nil && !os.IsNotExist(err) {
		return nil, 0 // it stays, unreferenced, until the store opens next
	}
	size = row.Image
	if n, ok := ls.plain[diffID]; ok {
		dead := trash[0] + ".full"
		if err := os.Rename(s.plainPath(diffID), dead); err == nil {
			trash, size = append(trash, dead), size+n
		}
	}
	delete(ls.present, diffID)
	delete(ls.plain, diffID)
	for _, b := range row.Blobs {
		if ls.byBlob[b] == diffID {
			delete(ls.byBlob, b)
		}
	}
	return trash, size
}

// discard deletes those of the layers that nobody needs: neither an image nor a running operation. The caller holds
// gc, and the transaction that made them unneeded is committed. It returns what went.
func (s *Local) discard(diffIDs []digest.Digest) (gone []string, reclaimed int64) {
	for _, d := range diffIDs {
		trash, size := s.takeAway(d)
		if len(trash) == 0 {
			continue
		}
		for _, path := range trash {
			os.Remove(path)
		}
		gone = append(gone, d.String())
		reclaimed += size
	}
	return gone, reclaimed
}

// lease keeps layers for one running operation. Between the check that a layer is there and the commit of the image
// that needs it, no removal can take it.
type lease struct {
	s      *Local
	mu     sync.Mutex
	pinned map[digest.Digest]bool
}

func (s *Local) newLease() *lease { return &lease{s: s, pinned: map[digest.Digest]bool{}} }

// pin keeps the layer, now if it is there and from the moment it will be, and tells which.
func (l *lease) pin(diffID digest.Digest) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	ls := &l.s.layers
	ls.mu.Lock()
	defer ls.mu.Unlock()
	if !l.pinned[diffID] {
		l.pinned[diffID] = true
		ls.pins[diffID]++
	}
	_, ok := ls.present[diffID]
	return ok
}

// pinBlob is pin for a layer known by either digest: its diff id or that of a compressed form.
func (l *lease) pinBlob(d digest.Digest) (diffID digest.Digest, ok bool) {
	ls := &l.s.layers
	ls.mu.Lock()
	diffID, ok = ls.byBlob[d]
	if _, plain := ls.present[d]; plain {
		diffID, ok = d, true
	}
	ls.mu.Unlock()
	return diffID, ok && l.pin(diffID)
}

// end gives everything back and deletes the layers that were made for nothing.
func (l *lease) end() {
	s := l.s
	s.gc.Lock()
	defer s.gc.Unlock()
	var maybe []digest.Digest
	l.mu.Lock()
	s.layers.mu.Lock()
	for d := range l.pinned {
		if s.layers.pins[d]--; s.layers.pins[d] == 0 {
			delete(s.layers.pins, d)
			maybe = append(maybe, d)
		}
	}
	clear(l.pinned)
	s.layers.mu.Unlock()
	l.mu.Unlock()
	var unneeded []digest.Digest
	err := s.db.View(func(tx *bolt.Tx) error {
		for _, d := range maybe {
			if tx.Bucket([]byte(bucketLayers)).Get([]byte(d)) == nil {
				unneeded = append(unneeded, d)
			}
		}
		return nil
	})
	if err == nil {
		s.discard(unneeded)
	}
}

// DiskUsage implements Store.
func (s *Local) DiskUsage() (int64, error) {
	s.layers.mu.Lock()
	defer s.layers.mu.Unlock()
	var n int64
	for _, row := range s.layers.present {
		n += row.Image
	}
	for _, size := range s.layers.plain {
		n += size
	}
	return n, nil
}
