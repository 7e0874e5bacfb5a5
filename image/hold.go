package image

import (
	"bytes"
	"slices"

	bolt "go.etcd.io/bbolt"
)

// Hold implements Store.
func (s *Local) Hold(id, owner string) error {
	s.gc.Lock()
	defer s.gc.Unlock()
	return s.db.Update(func(tx *bolt.Tx) error {
		id, _, err := lookup(tx, id)
		if err != nil {
			return err
		}
		return tx.Bucket([]byte(bucketHolds)).Put(holdKey(id, owner), nil)
	})
}

// Borrow implements Store.
func (s *Local) Borrow(id, owner string) error {
	s.gc.Lock()
	defer s.gc.Unlock()
	return s.db.View(func(tx *bolt.Tx) error {
		id, _, err := lookup(tx, id)
		if err == nil && !slices.Contains(s.borrowed[owner], id) {
			s.borrowed[owner] = append(s.borrowed[owner], id)
		}
		return err
	})
}

// Release implements Store. Most owners have only borrowed, and what they had is not doomed: nothing is written then.
func (s *Local) Release(owner string) error {
	s.gc.Lock()
	defer s.gc.Unlock()
	ids, write := s.borrowed[owner], false
	err := s.db.View(func(tx *bolt.Tx) (err error) {
		write, err = releaseWrites(tx, ids, owner)
		return err
	})
	if err != nil {
		return err
	}
	delete(s.borrowed, owner)
	if write {
		if err = s.settle(owner); err != nil && len(ids) > 0 {
			s.borrowed[owner] = ids
		}
	}
	return err
}

// Settle implements Store.
func (s *Local) Settle() error {
	s.gc.Lock()
	defer s.gc.Unlock()
	doomed := false
	err := s.db.View(func(tx *bolt.Tx) error {
		return eachImage(tx, func(_ string, row imageRow) error {
			doomed = doomed || row.Doomed
			return nil
		})
	})
	if err != nil || !doomed {
		return err
	}
	return s.settle("")
}

// releaseWrites tells whether the end of an owner's holds changes the database: it has lasting ones, or an image that it has
// borrowed is doomed.
func releaseWrites(tx *bolt.Tx, borrowed []string, owner string) (bool, error) {
	for _, id := range borrowed {
		var row imageRow
		if _, err := getJSON(tx, bucketImages, id, &row); err != nil || row.Doomed {
			return true, err
		}
	}
	suffix := holdKey("", owner)
	c := tx.Bucket([]byte(bucketHolds)).Cursor()
	for k, _ := c.First(); k != nil; k, _ = c.Next() {
		if bytes.HasSuffix(k, suffix) {
			return true, nil
		}
	}
	return false, nil
}

// settle ends the lasting holds of an owner, and deletes what is doomed and nobody's. gc is held.
func (s *Local) settle(owner string) error {
	_, _, err := s.changeLocked(func(tx *bolt.Tx, rm *removal) error {
		var ids []string
		err := eachImage(tx, func(id string, row imageRow) error {
			if err := tx.Bucket([]byte(bucketHolds)).Delete(holdKey(id, owner)); err != nil {
				return err
			}
			if row.Doomed && len(rm.holders(id)) == 0 {
				ids = append(ids, id)
			}
			return nil
		})
		if err != nil {
			return err
		}
		return rm.deleteImages(tx, ids, refsByImage(tx))
	})
	return err
}

// holders returns who holds or has borrowed an image, sorted. gc is held.
func (s *Local) holders(tx *bolt.Tx, id string) []string {
	owners := lastingHolders(tx, id)
	for owner, ids := range s.borrowed {
		if slices.Contains(ids, id) {
			owners = append(owners, owner)
		}
	}
	slices.Sort(owners)
	return slices.Compact(owners)
}

// lastingHolders returns who holds an image, but for those who have borrowed it.
func lastingHolders(tx *bolt.Tx, id string) []string {
	var owners []string
	prefix := holdKey(id, "")
	c := tx.Bucket([]byte(bucketHolds)).Cursor()
	for k, _ := c.Seek(prefix); bytes.HasPrefix(k, prefix); k, _ = c.Next() {
		owners = append(owners, string(k[len(prefix):]))
	}
	return owners
}

func holdKey(id, owner string) []byte { return []byte(id + "\x00" + owner) }
