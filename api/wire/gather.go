package wire

import (
	"encoding/binary"
	"net"
)

// gatherer makes one write of what yamux writes in pieces: a frame's header and its body, and the opening of a stream with
// the request that always follows it. Each write wakes the other side, and a guest that is emulated pays for every one.
// Only yamux's sending goroutine calls Write.
type gatherer struct {
	net.Conn
	held []byte // not yet written; what completes it comes with the next write
	body int    // how many bytes of body the next write is; 0: it is a header
}

// The parts of a yamux header that matter here: version, type, flags (2), stream (4), length (4).
const (
	muxHeaderSize   = 12
	muxData         = 0
	muxWindowUpdate = 1
	muxFlagSYN      = 1
)

// gatherLimit is up to what size, in bytes, a body is worth being copied behind its header.
const gatherLimit = 16 << 10

// Write claims to have written what it holds back: it is either completed by yamux's very next write, or never of use to
// anyone, because the session ends.
func (g *gatherer) Write(p []byte) (int, error) {
	header := g.body == 0 && len(p) == muxHeaderSize
	g.body = 0
	if header {
		kind, flags, length := p[1], binary.BigEndian.Uint16(p[2:]), binary.BigEndian.Uint32(p[8:])
		if kind == muxData && length <= gatherLimit {
			g.body = int(length)
		}
		if g.body > 0 || kind == muxWindowUpdate && flags == muxFlagSYN {
			g.held = append(g.held, p...)
			return len(p), nil
		}
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
