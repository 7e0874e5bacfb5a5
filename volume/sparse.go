package volume

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// copyChunk is how much is copied in one step, bytes; zeroBlock is what is left a hole when it is all zeros.
const (
	copyChunk = 128 << 10
	zeroBlock = 4 << 10
)

// copySparse makes dst, which is empty, the same as src: a reflink where the file system has them, else a copy of the
// parts that hold data.
func copySparse(ctx context.Context, dst, src *os.File) error {
	if err := unix.IoctlFileClone(int(dst.Fd()), int(src.Fd())); err == nil {
		return nil
	} else if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return err
	}
	fi, err := src.Stat()
	if err != nil {
		return err
	}
	if err := dst.Truncate(fi.Size()); err != nil {
		return err
	}
	buf := make([]byte, copyChunk)
	for at := int64(0); at < fi.Size(); {
		from, to, err := nextData(src, at, fi.Size())
		if err != nil {
			return err
		}
		if err := copyRange(ctx, dst, src, from, to, buf); err != nil {
			return err
		}
		at = to
	}
	return nil
}

// nextData finds the first part of f at or after at that holds data; an empty one at size when there is none.
func nextData(f *os.File, at, size int64) (from, to int64, err error) {
	from, err = unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO):
		return size, size, nil
	case errors.Is(err, unix.EINVAL):
		// The file system does not tell holes from data: everything is data, and zeros are looked for.
		return at, size, nil
	case err != nil:
		return 0, 0, err
	}
	to, err = unix.Seek(int(f.Fd()), from, unix.SEEK_HOLE)
	if err != nil {
		return 0, 0, err
	}
	return from, min(to, size), nil
}

// copyRange copies src's bytes from ... to, but not blocks of zeros.
func copyRange(ctx context.Context, dst, src *os.File, from, to int64, buf []byte) error {
	zeros := make([]byte, zeroBlock)
	for from < to {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := src.ReadAt(buf[:min(int64(len(buf)), to-from)], from)
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if n == 0 {
			return io.ErrUnexpectedEOF
		}
		for i := 0; i < n; {
			end := min(i+zeroBlock, n)
			if bytes.Equal(buf[i:end], zeros[:end-i]) {
				i = end
				continue
			}
			// As many blocks as follow without a zero one, in one write.
			for end < n && !bytes.Equal(buf[end:min(end+zeroBlock, n)], zeros[:min(zeroBlock, n-end)]) {
				end = min(end+zeroBlock, n)
			}
			if _, err := dst.WriteAt(buf[i:end], from+int64(i)); err != nil {
				return err
			}
			i = end
		}
		from += int64(n)
	}
	return nil
}
