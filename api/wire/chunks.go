package wire

import (
	"encoding/binary"
	"errors"
	"io"

	"github.com/cradlevm/cradle/api"
)

// A stream of chunks is bytes whose end is said: each chunk is a 4-byte big-endian length and that many bytes, 1 to
// maxChunk; a length of zero is followed by a frame like a call's response, which says whether all went well.
const maxChunk = 64 << 10

// ChunkWriter sends bytes in chunks. It buffers; End flushes.
type ChunkWriter struct {
	w   io.Writer
	buf []byte // a header's room, then bytes
}

// NewChunkWriter returns a writer of chunks to w.
func NewChunkWriter(w io.Writer) *ChunkWriter {
	return &ChunkWriter{w: w, buf: make([]byte, 4, 4+maxChunk)}
}

func (c *ChunkWriter) Write(p []byte) (n int, err error) {
	for len(p) > 0 {
		k := min(len(p), cap(c.buf)-len(c.buf))
		c.buf = append(c.buf, p[:k]...)
		p, n = p[k:], n+k
		if len(c.buf) == cap(c.buf) {
			if err := c.flush(); err != nil {
				return n, err
			}
		}
	}
	return n, nil
}

func (c *ChunkWriter) flush() error {
	if len(c.buf) == 4 {
		return nil
	}
	binary.BigEndian.PutUint32(c.buf, uint32(len(c.buf)-4))
	_, err := c.w.Write(c.buf)
	c.buf = c.buf[:4]
	return err
}

// End says that this was all or, with an error, that there will be no more.
func (c *ChunkWriter) End(failure error) error {
	if failure == nil {
		if err := c.flush(); err != nil {
			return err
		}
	}
	if _, err := c.w.Write(make([]byte, 4)); err != nil {
		return err
	}
	var resp response
	if failure != nil {
		if !errors.As(failure, &resp.Error) {
			resp.Error = api.Errorf(api.CodeInternal, "%w", failure)
		}
	}
	return writeFrame(c.w, resp)
}

// ChunkReader reads what a ChunkWriter sends: io.EOF after its End, the *api.Error of an End with one, and
// io.ErrUnexpectedEOF when the stream ends without.
type ChunkReader struct {
	r    io.Reader
	left uint32
	err  error
}

// NewChunkReader returns a reader of the chunks that r brings.
func NewChunkReader(r io.Reader) *ChunkReader { return &ChunkReader{r: r} }

func (c *ChunkReader) Read(p []byte) (int, error) {
	if len(p) == 0 || c.err != nil {
		return 0, c.err
	}
	if c.left == 0 {
		if c.err = c.next(); c.err != nil {
			return 0, c.err
		}
	}
	n, err := c.r.Read(p[:min(len(p), int(c.left))])
	c.left -= uint32(n)
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	c.err = err
	return n, err
}

// next reads a chunk's header, and what follows the last one.
func (c *ChunkReader) next() error {
	var head [4]byte
	if _, err := io.ReadFull(c.r, head[:]); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return err
	}
	c.left = binary.BigEndian.Uint32(head[:])
	if c.left > maxChunk {
		return errors.New("a chunk that is too long")
	}
	if c.left > 0 {
		return nil
	}
	var resp response
	if err := readFrame(c.r, &resp); err != nil {
		return io.ErrUnexpectedEOF
	}
	if resp.Error != nil {
		resp.Error.Message = resp.Error.Message[:min(len(resp.Error.Message), maxErrorText)]
		return resp.Error
	}
	return io.EOF
}
