package image

import (
	"errors"
	"fmt"
	"syscall"

	"github.com/cradlevm/cradle/erofs"
)

var (
	errNotImage   = errors.New("not a container image") // but some other artifact
	errDecompress = errors.New("cannot decompress")
)

// fault is an error whose text is complete in itself (docker's words, where docker has some) and whose kind is one
// of the sentinels. Wrapping the sentinel with %w would put its text into the sentence as well.
type fault struct {
	kind error
	err  error
}

func faultf(kind error, format string, args ...any) error {
	return &fault{kind: kind, err: fmt.Errorf(format, args...)}
}

func (f *fault) Error() string        { return f.err.Error() }
func (f *fault) Is(target error) bool { return target == f.kind }
func (f *fault) Unwrap() error        { return f.err }

func noSuchImage(ref string) error { return faultf(ErrNotFound, "No such image: %s", ref) }

// diskError says in one sentence what a full disk prevented, and makes package erofs's complaint about a layer ours;
// other errors only gain the name of the work.
func (s *Local) diskError(what string, err error) error {
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return fmt.Errorf("not enough disk space in %s to %s: %w", s.dir, what, err)
	case errors.Is(err, erofs.ErrInvalid) && !errors.Is(err, ErrInvalid):
		return faultf(ErrInvalid, "%w", err)
	}
	return fmt.Errorf("%s: %w", what, err)
}
