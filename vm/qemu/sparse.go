package qemu

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"hash"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// sparsePage is the size of the smallest hole that copySparse makes, sparseRun how much it reads at once; bytes.
const (
	sparsePage = 4 << 10
	sparseRun  = 256 << 10
)

// copySparse copies src, as long as it is now, to the empty file dst, leaving out pages of zeros; nowhere when dst is nil. sum, when not nil,
// takes the length and then each page that is not zeros, its place before it: the same whatever holes src has.
func copySparse(ctx context.Context, dst, src *os.File, sum hash.Hash) error {
	size, err := src.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	if dst != nil {
		if err := dst.Truncate(size); err != nil {
			return err
		}
	}
	if sum != nil {
		sum.Write(binary.BigEndian.AppendUint64(nil, uint64(size)))
	}
	buf := make([]byte, sparseRun)
	for at := int64(0); at < size; {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		data, err := unix.Seek(int(src.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil // nothing but a hole is left
		}
		if err != nil {
			return err
		}
		at = data &^ (sparsePage - 1)
		n, err := src.ReadAt(buf[:min(sparseRun, size-at)], at)
		if n == 0 && err != nil {
			return err
		}
		if err := copyPages(dst, buf[:n], at, sum); err != nil {
			return err
		}
		at += int64(n)
	}
	return nil
}

// copyPages writes the pages of data that are not zeros, those that follow one another at once.
func copyPages(dst *os.File, data []byte, at int64, sum hash.Hash) error {
	var zeros [sparsePage]byte
	begin := 0 // of the run of pages to be written
	flush := func(end int) (err error) {
		if begin < end && dst != nil {
			_, err = dst.WriteAt(data[begin:end], at+int64(begin))
		}
		return err
	}
	for i := 0; i < len(data); i += sparsePage {
		end := min(i+sparsePage, len(data))
		if bytes.Equal(data[i:end], zeros[:end-i]) {
			if err := flush(i); err != nil {
				return err
			}
			begin = end
		} else if sum != nil {
			sum.Write(binary.BigEndian.AppendUint64(nil, uint64(at)+uint64(i)))
			sum.Write(data[i:end])
		}
	}
	return flush(len(data))
}
