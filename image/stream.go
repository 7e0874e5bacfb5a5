package image

import (
	"errors"
	"hash"
	"io"
	"sync"
	"sync/atomic"
)

const (
	chunkSize  = 512 << 10 // large enough to make a channel operation per chunk free
	chunkQueue = 4         // chunks between a relay and the slowest of its taps
)

// errStopped is what a tap reads once its relay was stopped; the true cause is known to whoever stopped it.
var errStopped = errors.New("stream stopped")

// chunk is a piece of a stream, shared by every tap of a relay and given back by the last of them.
type chunk struct {
	buf  []byte
	data []byte
	left atomic.Int32
}

// chunkPool recycles chunks among all streams of a store.
type chunkPool struct{ pool sync.Pool }

func (p *chunkPool) get() *chunk {
	if c, ok := p.pool.Get().(*chunk); ok {
		return c
	}
	return &chunk{buf: make([]byte, chunkSize)}
}

func (p *chunkPool) release(c *chunk) {
	if c.left.Add(-1) == 0 {
		p.pool.Put(c)
	}
}

// relay reads a stream in a goroutine of its own and gives all of it to each of its taps. That is the joint of the
// pipeline: reading, hashing, decompressing and writing each run on a goroutine, one chunk apart.
type relay struct {
	pool  *chunkPool
	src   io.Reader
	limit int64 // bytes that src may have
	over  error // what it is when src has more
	taps  []*tap
	quit  chan struct{}
	once  sync.Once
	done  chan struct{} // closed when src will not be read any more
	n     int64         // bytes read and
	err   error         // how it ended (nil: EOF); valid after done
}

// newRelay starts reading src for n taps. A src of more than limit bytes ends with the error over.
func newRelay(pool *chunkPool, src io.Reader, n int, limit int64, over error) *relay {
	r := &relay{pool: pool, src: src, limit: limit, over: over, quit: make(chan struct{}), done: make(chan struct{})}
	for range n {
		r.taps = append(r.taps, &tap{r: r, ch: make(chan *chunk, chunkQueue)})
	}
	go r.run()
	return r
}

func (r *relay) run() {
	defer close(r.done)
	defer func() {
		for _, t := range r.taps {
			close(t.ch)
		}
	}()
	for {
		c := r.pool.get()
		n, err := fill(r.src, c.buf)
		r.n += int64(n)
		if r.n > r.limit {
			r.err = r.over
			return
		}
		if n > 0 && !r.send(c, n) {
			r.err = errStopped
			return
		}
		if err != nil {
			if err != io.EOF {
				r.err = err
			}
			return
		}
	}
}

func (r *relay) send(c *chunk, n int) bool {
	c.data = c.buf[:n]
	c.left.Store(int32(len(r.taps)))
	for _, t := range r.taps {
		select {
		case t.ch <- c:
		case <-r.quit:
			return false // the chunk is lost to the pool, not to the collector
		}
	}
	return true
}

// fill reads until b is full or the stream ends; unlike io.ReadFull it keeps the stream's own error.
func fill(r io.Reader, b []byte) (n int, err error) {
	for n < len(b) && err == nil {
		var m int
		m, err = r.Read(b[n:])
		n += m
	}
	return n, err
}

// stop makes the relay and its taps end soon: at once, unless src blocks. It may be called more than once.
func (r *relay) stop() { r.once.Do(func() { close(r.quit) }) }

// tap is one reader of a relay's stream.
type tap struct {
	r    *relay
	ch   chan *chunk
	cur  *chunk
	rest []byte
}

// next returns the following chunk, which the caller releases; nil at the end.
func (t *tap) next() (*chunk, error) {
	select {
	case <-t.r.quit:
		return nil, errStopped
	default:
	}
	select {
	case c, ok := <-t.ch:
		if ok {
			return c, nil
		}
		if t.r.err != nil {
			return nil, t.r.err
		}
		return nil, io.EOF
	case <-t.r.quit:
		return nil, errStopped
	}
}

// Read implements io.Reader.
func (t *tap) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for len(t.rest) == 0 {
		if t.cur != nil {
			t.r.pool.release(t.cur)
			t.cur = nil
		}
		c, err := t.next()
		if err != nil {
			return 0, err
		}
		t.cur, t.rest = c, c.data
	}
	n := copy(p, t.rest)
	t.rest = t.rest[n:]
	return n, nil
}

// hashInto feeds the whole stream to h in a goroutine; the channel is closed when h has seen all there will be.
func (t *tap) hashInto(h hash.Hash) <-chan struct{} {
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := t.next()
			if err != nil {
				return
			}
			h.Write(c.data)
			t.r.pool.release(c)
		}
	}()
	return done
}
