package snapshot

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// digestBlock is what a sparse file is digested in, bytes: a block of zeros counts like a hole.
const digestBlock = 64 << 10

// Digest is a hex sha256 over a file's size and its blocks that are not all zeros, with their offsets: it depends on the
// contents only, and a hole of gigabytes costs nothing.
func Digest(ctx context.Context, path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return "", err
	}
	size := fi.Size()
	sum := sha256.New()
	sum.Write(binary.BigEndian.AppendUint64(nil, uint64(size)))
	buf, zeros := make([]byte, digestBlock), make([]byte, digestBlock)
	for at := int64(0); at < size; {
		if err := ctx.Err(); err != nil {
			return "", err
		}
		data, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
		switch {
		case errors.Is(err, unix.ENXIO):
			data = size
		case errors.Is(err, unix.EINVAL): // holes are not told from data
			data = at
		case err != nil:
			return "", fmt.Errorf("digest %s: %w", path, err)
		}
		if at = max(at, data/digestBlock*digestBlock); at >= size {
			break
		}
		n, err := f.ReadAt(buf[:min(digestBlock, size-at)], at)
		if err != nil && !errors.Is(err, io.EOF) {
			return "", fmt.Errorf("digest %s: %w", path, err)
		}
		if n == 0 {
			return "", fmt.Errorf("digest %s: %w", path, io.ErrUnexpectedEOF)
		}
		if !bytes.Equal(buf[:n], zeros[:n]) {
			sum.Write(binary.BigEndian.AppendUint64(nil, uint64(at)))
			sum.Write(buf[:n])
		}
		at += digestBlock
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}
