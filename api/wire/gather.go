package wire

import (
	"encoding/binary"
	"net"
	"sync"
)

// gatherer makes one write of what yamux writes in pieces: a frame's header and its body; the opening of a stream with
// the request that always follows it, and the word that it has been seen with the answer; the last word of a stream with
// its end. Each write wakes the other side, and a guest that is emulated pays for every one.
// Only yamux's sending goroutine calls Write.
type gatherer struct {
	net.Conn
	held []byte // not yet written; what completes it comes with a later write
	body int    // how many bytes of body the next write is; 0: it is a header
	last bool   // that body is the last of its stream, whose end follows

	mu   sync.Mutex
	ends map[uint32]int // streams whose next frame, if it is of so many bytes, is their last
}

// The parts of a yamux header that matter here: version, type, flags (2), stream (4), length (4).
const (
	muxHeaderSize   = 12
	muxData         = 0
	muxWindowUpdate = 1
	muxFlagSYN      = 1
	muxFlagACK      = 2
)

// gatherLimit is up to what size, in bytes, a body is worth being copied behind its header.
const gatherLimit = 16 << 10

// expectEnd says that stream's next frame, when it has size bytes, is followed by the stream's end.
func (g *gatherer) expectEnd(stream uint32, size int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.ends == nil {
		g.ends = map[uint32]int{}
	}
	g.ends[stream] = size
}

// endOf tells whether a frame is the last of its stream. A frame of another size is the first of several that the
// stream's window makes of one write, and the other side has to see it before there can be more.
func (g *gatherer) endOf(stream uint32, size int) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	want, expected := g.ends[stream]
	delete(g.ends, stream)
	return expected && want == size
}

// Write claims to have written what it holds back: it is completed by a later write of yamux's, or never of use to
// anyone, because the session ends. Only the word that a stream has been seen may have to wait for the answer: nobody
// waits for it alone.
func (g *gatherer) Write(p []byte) (int, error) {
	header, hold := g.body == 0 && len(p) == muxHeaderSize, g.last
	g.body, g.last = 0, false
	if header {
		kind, flags, length := p[1], binary.BigEndian.Uint16(p[2:]), binary.BigEndian.Uint32(p[8:])
		if kind == muxData && length <= gatherLimit {
			g.body = int(length)
			g.last = g.endOf(binary.BigEndian.Uint32(p[4:]), g.body)
		}
		hold = g.body > 0 || kind == muxWindowUpdate && (flags == muxFlagSYN || flags == muxFlagACK && length == 0)
	}
	if hold {
		g.held = append(g.held, p...)
		return len(p), nil
	}
	if len(g.held) == 0 {
		return g.Conn.Write(p)
	}
	held := len(g.held)
	g.held = append(g.held, p...)
	n, err := g.Conn.Write(g.held)
	g.held = g.held[:0]
	return max(0, n-held), err
}
