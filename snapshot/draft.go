// Package snapshot owns the form in which saved machines lie on disk, whatever they are for: the pool's templates,
// hibernated containers, named snapshots, warm images; and in which they travel (ArchiveWriter, ArchiveReader).
//
// A snapshot is a directory of files and a manifest beside them. The manifest names the digests of the files and what
// they can be used with; it is signed with the installation's key. A snapshot comes into being under another name (a
// Draft) and gets its own when all of it is on the disk: what a crash leaves is removed by whoever finds it (Sweep), and
// what has its name is whole. What is in a manifest is its owner's business.
package snapshot

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// unfinished begins the name of a directory that is being made.
const unfinished = ".new-"

// Draft is a snapshot in the making.
type Draft struct {
	Dir string // empty at first
}

// NewDraft makes a draft below parent, where the snapshot is to be. Parent must exist.
func NewDraft(parent string) (*Draft, error) {
	dir, err := os.MkdirTemp(parent, unfinished)
	if err != nil {
		return nil, fmt.Errorf("begin snapshot: %w", err)
	}
	return &Draft{Dir: dir}, nil
}

// Discard removes the draft; of no effect once it is published.
func (d *Draft) Discard() error {
	if d.Dir == "" {
		return nil
	}
	return os.RemoveAll(d.Dir)
}

// Publish signs the manifest and gives the draft its name, a path beside it, in the place of what is there.
func (d *Draft) Publish(key Key, manifest any, path string) error {
	if err := key.Sign(d.Dir, manifest); err != nil {
		return err
	}
	if err := syncDir(d.Dir); err != nil {
		return fmt.Errorf("publish snapshot: %w", err)
	}
	if err := os.RemoveAll(path); err != nil {
		return fmt.Errorf("publish snapshot: %w", err)
	}
	if err := os.Rename(d.Dir, path); err != nil {
		return fmt.Errorf("publish snapshot: %w", err)
	}
	d.Dir = ""
	if err := syncDir(filepath.Dir(path)); err != nil {
		return fmt.Errorf("publish snapshot: %w", err)
	}
	return nil
}

// Sweep removes the drafts below parent that an earlier process has left. Nobody must be making one.
func Sweep(parent string) error {
	entries, err := os.ReadDir(parent)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("sweep snapshots: %w", err)
	}
	var errs []error
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), unfinished) {
			errs = append(errs, os.RemoveAll(filepath.Join(parent, e.Name())))
		}
	}
	return errors.Join(errs...)
}

// IsDraft reports whether a directory of this name is one in the making.
func IsDraft(name string) bool { return strings.HasPrefix(name, unfinished) }

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
