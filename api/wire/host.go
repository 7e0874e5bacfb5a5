package wire

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/cradlevm/cradle/api"
	"github.com/hashicorp/yamux"
)

// maxStale bounds what Dial throws away while it waits for the agent's answer, in bytes: the port's queues hold far less.
const maxStale = 64 << 20

// Client is the host's side of a session. All methods may be called from any goroutine.
type Client struct {
	mux *yamux.Session
}

// Dial opens a session on conn, which then belongs to the client. It waits for the agent as long as ctx allows:
// a guest that still boots answers late, and one that never answers ends the call with ctx's error.
func Dial(ctx context.Context, conn net.Conn, token Token) (*Client, error) {
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	err := handshake(conn, token)
	if !stop() {
		err = context.Cause(ctx)
	}
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("open agent session: %w", err)
	}
	mux, err := yamux.Client(conn, muxConfig())
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("open agent session: %w", err)
	}
	return &Client{mux: mux}, nil
}

func handshake(conn io.ReadWriter, token Token) error {
	hello := make([]byte, 0, helloSize)
	hello = append(hello, magic[:]...)
	hello = binary.BigEndian.AppendUint32(hello, api.ProtocolVersion)
	hello = append(hello, token[:]...)
	nonce := make([]byte, nonceSize)
	rand.Read(nonce)
	hello = append(hello, nonce...)
	if _, err := conn.Write(hello); err != nil {
		return err
	}
	// The answer ends where our nonce ends; whatever comes before is of an older session. Bytes are read
	// one window at a time so that none of what follows the answer is swallowed.
	window := make([]byte, answerSize)
	if _, err := io.ReadFull(conn, window); err != nil {
		return err
	}
	for read := answerSize; ; {
		if bytes.Equal(window[12:], nonce) && bytes.Equal(window[:8], magic[:]) {
			break
		}
		// Skip to the next place where the answer could begin.
		skip := 1
		for skip < answerSize && !bytes.HasPrefix(magic[:], window[skip:min(skip+8, answerSize)]) {
			skip++
		}
		copy(window, window[skip:])
		if _, err := io.ReadFull(conn, window[answerSize-skip:]); err != nil {
			return err
		}
		if read += skip; read > maxStale {
			return errors.New("agent talks but does not answer")
		}
	}
	if v := binary.BigEndian.Uint32(window[8:]); v != api.ProtocolVersion {
		return fmt.Errorf("%w: %d, not %d", ErrVersion, v, api.ProtocolVersion)
	}
	return nil
}

// Close ends the session and all of its streams.
func (c *Client) Close() error { return c.mux.Close() }

// Done is closed when the session has ended, for whatever reason.
func (c *Client) Done() <-chan struct{} { return c.mux.CloseChan() }

// Call makes one call: params may be nil; result may be nil when none is wanted. An error of the agent's is an
// *api.Error. When ctx ends first the call is abandoned, not undone.
func (c *Client) Call(ctx context.Context, method string, params, result any) error {
	s, err := c.Stream(ctx, method, params, result)
	if err != nil {
		return err
	}
	return s.Close()
}

// Stream makes a call of a streaming method and returns its stream once the agent has agreed. The stream's
// CloseWrite half-closes it. Close both ways when done.
func (c *Client) Stream(ctx context.Context, method string, params, result any) (*Stream, error) {
	req := request{Method: method}
	if params != nil {
		body, err := json.Marshal(params)
		if err != nil {
			return nil, fmt.Errorf("agent %s: %w", method, err)
		}
		req.Params = body
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("agent %s: %w", method, err)
	}
	mux, err := c.mux.OpenStream()
	if err != nil {
		return nil, fmt.Errorf("agent %s: %w", method, err)
	}
	stop := context.AfterFunc(ctx, func() { mux.SetDeadline(time.Unix(1, 0)) })
	var resp response
	if err = writeFrame(mux, req); err == nil {
		err = readFrame(mux, &resp)
	}
	if err == nil && resp.Error != nil {
		err = resp.Error
	}
	if err == nil && result != nil {
		err = json.Unmarshal(resp.Result, result)
	}
	if !stop() {
		err = context.Cause(ctx)
	}
	if err != nil {
		mux.Close()
		return nil, fmt.Errorf("agent %s: %w", method, err)
	}
	return &Stream{mux}, nil
}

// Stream is one multiplexed stream. Close half-closes it towards the peer, as on a TCP connection with
// CloseWrite, and what the peer still sends can be read until it closes as well.
type Stream struct{ *yamux.Stream }

// CloseWrite tells the peer that nothing more comes; reading goes on.
func (s *Stream) CloseWrite() error { return s.Stream.Close() }
