package volume

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// Copy makes path a copy of the disk at from, to which nobody may write meanwhile: a reflink where the file system has
// them, which takes no time and no space, else a copy of the parts that hold data. Like New it does not wait for the
// disk's own cache. On error nothing is left. Errors: ErrNoSpace, os.ErrExist when path is there, ctx's.
func Copy(ctx context.Context, from, path string) error {
	if _, err := os.Lstat(path); err == nil {
		return fmt.Errorf("copy scratch disk: %w", &os.PathError{Op: "create", Path: path, Err: os.ErrExist})
	}
	if err := copyInto(ctx, from, path); err != nil {
		return fmt.Errorf("copy scratch disk: %w", spaceError(filepath.Dir(path), err))
	}
	return nil
}

// Sync waits until the disk at path, and its name, are where a power failure leaves them.
func Sync(path string) error {
	for _, p := range []string{path, filepath.Dir(path)} {
		if err := syncFile(p); err != nil {
			return fmt.Errorf("sync scratch disk: %w", err)
		}
	}
	return nil
}

// syncFile waits until a file, or a directory's entries, are where a power failure leaves them.
func syncFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
