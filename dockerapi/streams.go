package dockerapi

import (
	"encoding/binary"
	"io"
	"net"
	"sync"

	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/api/types"
)

// output writes one of a process's output streams to a client: in frames, where stdout and stderr share a
// connection, or plain.
type output struct {
	to    io.Writer
	mu    *sync.Mutex // of all outputs to the same place: frames must not mix
	kind  stdcopy.StdType
	frame bool
	after func(error) // called after each write with its error
}

// outputs makes the two streams of a client.
func outputs(to io.Writer, tty bool, after func(error)) (stdout, stderr io.Writer) {
	mu := new(sync.Mutex)
	return &output{to, mu, stdcopy.Stdout, !tty, after}, &output{to, mu, stdcopy.Stderr, !tty, after}
}

// Write sends p as one frame: stream, three zeros, length, data.
func (o *output) Write(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	head := [8]byte{0: byte(o.kind)}
	binary.BigEndian.PutUint32(head[4:], uint32(len(p)))

	o.mu.Lock()
	defer o.mu.Unlock()
	var n int
	var err error
	if o.frame {
		buffers := net.Buffers{head[:], p} // one system call on a connection
		var sent int64
		sent, err = buffers.WriteTo(o.to)
		n = int(max(0, sent-int64(len(head))))
	} else {
		n, err = o.to.Write(p)
	}
	o.after(err)
	return n, err
}

// streamType is the content type of a process's output. Before 1.42 clients knew one name for both forms.
func (c *call) streamType(tty bool) string {
	if !tty && c.version.atLeast(42) {
		return types.MediaTypeMultiplexedStream
	}
	return types.MediaTypeRawStream
}
