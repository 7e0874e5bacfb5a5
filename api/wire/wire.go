// Package wire carries the agent protocol of package api over one byte stream that may know no connections.
//
// # Sessions
//
// A virtio-serial port is a pair of byte queues: when a host process goes and another comes, neither side gets
// a clean start, and half-read bytes of the old conversation lie in the queues. So each session opens with
//
//	host → guest   hello: magic (8) version (4) token (16) nonce (16)
//	guest → host   magic (8) version (4) nonce (16)
//
// The token is a secret of this VM: made by the host before it starts the VM, kept in the VM's state, learnt
// by the agent from the first hello; a call may give the agent another one (Listener.SetToken). The agent watches the whole stream for magic, version and token; when they
// pass, it drops the session it had and starts a new one. Nothing else that passes through the port can contain the
// token, for no container is ever told it. The host throws away what it reads until it sees its own fresh nonce.
//
// # Streams
//
// A session is multiplexed by yamux; the host opens a stream for each call. See package api for what is said on it.
package wire

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/cradlevm/cradle/api"
	"github.com/hashicorp/yamux"
)

var magic = [8]byte{0xc7, 'c', 'r', 'a', 'd', 'l', 'e', 0xd5}

const (
	tokenSize  = 16
	nonceSize  = 16
	helloSize  = 8 + 4 + tokenSize + nonceSize
	answerSize = 8 + 4 + nonceSize
	sureSize   = 8 + 4 // what of a hello is no secret
)

// Token is the secret that lets a host process take over a VM's agent.
type Token [tokenSize]byte

// ErrSession means that the session has ended under a stream; io.EOF is an end that the peer wanted.
var ErrSession = errors.New("agent session ended")

// ErrVersion means that the agent speaks another version of the protocol.
var ErrVersion = errors.New("agent speaks another protocol version")

// response is the frame that answers a request, JSON as a whole.
type response struct {
	Error  *api.Error      `json:"error,omitempty"`
	Result json.RawMessage `json:"result,omitempty"`
}

// frame makes one frame of v.
func frame(v any) ([]byte, error) {
	body, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	if len(body) > api.MaxMessage {
		return nil, fmt.Errorf("message of %d bytes is longer than the %d allowed", len(body), api.MaxMessage)
	}
	buf := make([]byte, 4, 4+len(body))
	binary.BigEndian.PutUint32(buf, uint32(len(body)))
	return append(buf, body...), nil
}

// writeFrame sends v as one frame in one write.
func writeFrame(w io.Writer, v any) error {
	b, err := frame(v)
	if err == nil {
		_, err = w.Write(b)
	}
	return err
}

// atOnce is how long a frame may be for its memory to be taken at once, in bytes; that of a longer one grows as the bytes
// arrive, for its length is only a claim.
const atOnce = 64 << 10

// readBody reads one frame's body.
func readBody(r io.Reader) ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > api.MaxMessage {
		return nil, fmt.Errorf("message of %d bytes is longer than the %d allowed", n, api.MaxMessage)
	}
	if n <= atOnce {
		body := make([]byte, n)
		_, err := io.ReadFull(r, body)
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return body, err
	}
	body, err := io.ReadAll(io.LimitReader(r, int64(n)))
	if err == nil && len(body) != int(n) {
		err = io.ErrUnexpectedEOF
	}
	return body, err
}

// readFrame reads one frame of JSON into v.
func readFrame(r io.Reader, v any) error {
	body, err := readBody(r)
	if err != nil {
		return err
	}
	return json.Unmarshal(body, v)
}

// muxConfig is yamux's on both sides. Keep-alives are off: a paused VM is silent, and rightly so.
func muxConfig() *yamux.Config {
	c := yamux.DefaultConfig()
	c.EnableKeepAlive = false
	c.ConnectionWriteTimeout = 10 * time.Minute // a paused guest reads nothing; its VM's end breaks the write
	c.StreamOpenTimeout = 0
	c.StreamCloseTimeout = 0 // a half-closed standard input may wait for its reader for as long as that likes
	c.LogOutput = io.Discard
	return c
}
