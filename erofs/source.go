package erofs

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

const (
	blockSize  = 512     // of tar
	bufferSize = 1 << 20 // of reads and writes
)

// source reads the tar stream in big pieces and hands each piece to tee, whole and in order, before anything of it is
// looked at: what tee has seen at the end is the stream.
type source struct {
	r     io.Reader
	tee   func([]byte) error // may be nil
	limit int64

	buf      []byte
	pos, end int   // unread part of buf
	base     int64 // offset in the stream of buf[0]
	eof      bool
	crc      uint32 // of everything read
}

func newSource(r io.Reader, limit int64, tee func([]byte) error) *source {
	return &source{r: r, tee: tee, limit: limit, buf: make([]byte, bufferSize)}
}

// offset is the stream's offset of the next byte.
func (s *source) offset() int64 { return s.base + int64(s.pos) }

// fill replaces the used-up buffer by the next one; io.EOF when there is none. All but the last buffer are full, so
// that a 512-byte block never lies across two.
func (s *source) fill() error {
	s.base += int64(s.end)
	s.pos, s.end = 0, 0
	if s.eof {
		return io.EOF
	}
	for idle := 0; s.end < len(s.buf) && !s.eof; {
		n, err := s.r.Read(s.buf[s.end:])
		if n < 0 || n > len(s.buf)-s.end {
			return errors.New("read layer: reader returned an impossible count")
		}
		s.end += n
		switch {
		case err == io.EOF:
			s.eof = true
		case err != nil:
			return fmt.Errorf("read layer: %w", err)
		case n > 0:
			idle = 0
		default:
			if idle++; idle == 100 {
				return fmt.Errorf("read layer: %w", io.ErrNoProgress)
			}
		}
	}
	if s.base+int64(s.end) > s.limit {
		return invalidf("tar is longer than %d bytes", s.limit)
	}
	if s.end == 0 {
		return io.EOF
	}
	s.crc = crc32.Update(s.crc, castagnoli, s.buf[:s.end])
	if s.tee != nil {
		return s.tee(s.buf[:s.end])
	}
	return nil
}

// block returns the next 512 bytes, valid until the next call; io.EOF at a clean end.
func (s *source) block() ([]byte, error) {
	if s.pos == s.end {
		if err := s.fill(); err != nil {
			return nil, err
		}
	}
	if s.end-s.pos < blockSize {
		return nil, errTruncated
	}
	b := s.buf[s.pos : s.pos+blockSize]
	s.pos += blockSize
	return b, nil
}

// each passes the next n bytes to f (nil: drops them) in pieces.
func (s *source) each(n int64, f func([]byte) error) error {
	for n > 0 {
		if s.pos == s.end {
			if err := s.fill(); err == io.EOF {
				return errTruncated
			} else if err != nil {
				return err
			}
		}
		piece := s.buf[s.pos:s.end]
		if int64(len(piece)) > n {
			piece = piece[:n]
		}
		s.pos += len(piece)
		n -= int64(len(piece))
		if f != nil {
			if err := f(piece); err != nil {
				return err
			}
		}
	}
	return nil
}

// pad skips to the next block. Padding that is missing at the very end of the stream is forgiven, as Go's archive/tar
// and so docker do.
func (s *source) pad() error {
	n := -s.offset() & (blockSize - 1)
	err := s.each(n, nil)
	if errors.Is(err, errTruncated) {
		return nil
	}
	return err
}

// payload appends the next n bytes to b and skips their padding.
func (s *source) payload(b []byte, n int64) ([]byte, error) {
	err := s.each(n, func(p []byte) error { b = append(b, p...); return nil })
	if err != nil {
		return nil, err
	}
	return b, s.pad()
}

// drain reads on to the end of the stream.
func (s *source) drain() error {
	s.pos = s.end
	for {
		if err := s.fill(); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		s.pos = s.end
	}
}

var zeroBlock [blockSize]byte

func isZero(b []byte) bool { return bytes.Equal(b, zeroBlock[:len(b)]) }
