package erofs

import (
	"fmt"
	"os"
)

// output writes a file from front to back in big pieces. The error of a write is kept and comes out of flush.
type output struct {
	f   *os.File
	off int64 // where buf goes
	buf []byte
	err error
}

func newOutput(f *os.File, off int64) *output {
	return &output{f: f, off: off, buf: make([]byte, 0, bufferSize)}
}

func (o *output) pos() int64 { return o.off + int64(len(o.buf)) }

func (o *output) write(p []byte) error {
	for len(p) > 0 && o.err == nil {
		if len(o.buf) == 0 && len(p) >= cap(o.buf) {
			o.put(p)
			break
		}
		n := min(len(p), cap(o.buf)-len(o.buf))
		o.buf = append(o.buf, p[:n]...)
		p = p[n:]
		if len(o.buf) == cap(o.buf) {
			o.flush()
		}
	}
	return o.err
}

func (o *output) put(p []byte) {
	if o.err == nil {
		if _, err := o.f.WriteAt(p, o.off); err != nil {
			o.err = fmt.Errorf("write image: %w", err)
		}
	}
	o.off += int64(len(p))
}

func (o *output) flush() error {
	o.put(o.buf)
	o.buf = o.buf[:0]
	return o.err
}

// seek moves forward to pos; what is skipped reads as zeros, and takes no room when it is much.
func (o *output) seek(pos int64) error {
	if n := pos - o.pos(); n > int64(cap(o.buf)-len(o.buf)) {
		o.flush()
		o.off = pos
	} else {
		k := len(o.buf)
		o.buf = o.buf[:k+int(n)]
		clear(o.buf[k:])
	}
	return o.err
}

// align moves forward to a multiple of n, a power of two.
func (o *output) align(n int64) error { return o.seek((o.pos() + n - 1) &^ (n - 1)) }
