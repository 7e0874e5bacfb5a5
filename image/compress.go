package image

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"strconv"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// sniffLen is how many bytes tell a compression, a tar or a document apart: one tar header.
const sniffLen = 512

// codec is how a stream is compressed.
type codec string

const (
	plain     codec = ""
	gzipCodec codec = "gzip"
	zstdCodec codec = "zstd"
)

// codecOf looks at the first bytes of a stream. What docker reads and we do not has an error of its own, instead
// of the riddle "not a tar".
func codecOf(head []byte) (codec, error) {
	switch {
	case isTar(head): // first: a tar begins with a file's name, which may be anything
		return plain, nil
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b, 0x08}):
		return gzipCodec, nil
	case bytes.HasPrefix(head, []byte{0x28, 0xb5, 0x2f, 0xfd}),
		len(head) >= 4 && head[0]&0xf0 == 0x50 && bytes.Equal(head[1:4], []byte{0x2a, 0x4d, 0x18}):
		return zstdCodec, nil
	case bytes.HasPrefix(head, []byte("BZh")):
		return plain, faultf(ErrInvalid, "bzip2 compression is not supported; gzip and zstd are")
	case bytes.HasPrefix(head, []byte{0xfd, '7', 'z', 'X', 'Z', 0}):
		return plain, faultf(ErrInvalid, "xz compression is not supported; gzip and zstd are")
	}
	return plain, nil
}

// isTar tells whether head is a tar header, by its checksum, or the zeros that end an empty tar.
func isTar(head []byte) bool {
	if len(head) < sniffLen {
		return false
	}
	var sum int64
	zero := true
	for i, b := range head[:sniffLen] {
		zero = zero && b == 0
		if i >= 148 && i < 156 {
			b = ' ' // the checksum is taken with its own field blank
		}
		sum += int64(b)
	}
	if zero {
		return true
	}
	field := bytes.Trim(head[148:156], " \x00")
	want, err := strconv.ParseInt(string(field), 8, 64)
	return err == nil && want == sum
}

// peek reads up to sniffLen bytes of r and returns them with a reader that still has them.
func peek(r io.Reader) ([]byte, io.Reader, error) {
	head := make([]byte, sniffLen)
	n, err := fill(r, head)
	head = head[:n]
	if err == io.EOF {
		return head, bytes.NewReader(head), nil
	}
	return head, io.MultiReader(bytes.NewReader(head), r), err
}

// decompressor reads the plain bytes of a compressed stream. Its end means that the compressed stream has been read
// to its end too, so that whoever hashes that one has seen it all.
type decompressor struct {
	from  io.Reader
	plain io.Reader
	close func()
}

// decompress opens a stream that codecOf recognised; it reads the header.
func decompress(c codec, r io.Reader) (*decompressor, error) {
	if c == gzipCodec {
		z, err := gzip.NewReader(bufio.NewReaderSize(r, 64<<10))
		if err != nil {
			return nil, err
		}
		return &decompressor{from: r, plain: z, close: func() { z.Close() }}, nil
	}
	// One decoding goroutine: layers run in parallel already. The window bound is the memory a stream may claim.
	z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(128<<20))
	if err != nil {
		return nil, err
	}
	return &decompressor{from: r, plain: z, close: z.Close}, nil
}

func (d *decompressor) Read(p []byte) (int, error) {
	n, err := d.plain.Read(p)
	if err == io.EOF {
		if _, err := io.Copy(io.Discard, d.from); err != nil {
			return n, err
		}
	}
	return n, err
}

// lazyDecompressor opens its stream at the first Read, which may block: on the goroutine that reads it.
type lazyDecompressor struct {
	codec codec
	from  io.Reader
	d     *decompressor
}

func (l *lazyDecompressor) Read(p []byte) (int, error) {
	if l.d == nil {
		d, err := decompress(l.codec, l.from)
		if err != nil {
			return 0, badStream(l.codec, err)
		}
		l.d = d
	}
	n, err := l.d.Read(p)
	if err != nil && err != io.EOF {
		err = badStream(l.codec, err)
	}
	return n, err
}

func (l *lazyDecompressor) Close() {
	if l.d != nil {
		l.d.close()
	}
}

// badStream names the codec in an error that came out of it; the end of the input in its midst has no better name
// in either codec.
func badStream(c codec, err error) error {
	if err == io.ErrUnexpectedEOF {
		return fmt.Errorf("%w: %s stream is truncated", errDecompress, c)
	}
	return fmt.Errorf("%w: %s: %w", errDecompress, c, err)
}
