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
	mux  *yamux.Session
	port *gatherer
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
	port := &gatherer{Conn: conn}
	mux, err := yamux.Client(port, muxConfig())
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("open agent session: %w", err)
	}
	go refuseStreams(mux)
	return &Client{mux: mux, port: port}, nil
}

// refuseStreams ends the session of a guest that opens streams: only the host calls.
func refuseStreams(mux *yamux.Session) {
	if _, err := mux.AcceptStream(); err == nil {
		mux.Close()
	}
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
		return fmt.Errorf("%w: %d, not %d; the guest must be of the same build as the program", ErrVersion, v, api.ProtocolVersion)
	}
	return nil
}

// Close ends the session and all of its streams.
func (c *Client) Close() error { return c.mux.Close() }

// Done is closed when the session has ended, for whatever reason.
func (c *Client) Done() <-chan struct{} { return c.mux.CloseChan() }

// maxStreams bounds the streams of a session. A guest that never closes its ends makes them pile up, each with a
// window's worth of memory; an honest one never comes near.
const maxStreams = 4096

// maxErrorText bounds what a guest may say in an error, in bytes.
const maxErrorText = 4 << 10

// Call makes one call: params may be nil; result may be nil when none is wanted. An error of the agent's is an
// *api.Error. When ctx ends first the call is abandoned, not undone. The agent is not told: a call that it has to know
// that of is a Stream.
func (c *Client) Call(ctx context.Context, method string, params, result any) error {
	_, err := c.exchange(ctx, method, params, result, (*Stream).Last)
	return err
}

// Stream makes a call of a streaming method and returns its stream once the agent has agreed. The stream's
// CloseWrite half-closes it. Close both ways when done.
func (c *Client) Stream(ctx context.Context, method string, params, result any) (*Stream, error) {
	return c.exchange(ctx, method, params, result, func(s *Stream, p []byte) error {
		_, err := s.Write(p)
		return err
	})
}

// exchange sends a request with write, and waits for the response.
func (c *Client) exchange(ctx context.Context, method string, params, result any, write func(*Stream, []byte) error) (*Stream, error) {
	req, err := newRequest(method, params)
	if err != nil {
		return nil, fmt.Errorf("agent %s: %w", method, err)
	}
	frame, err := req.frame()
	if err != nil {
		return nil, fmt.Errorf("agent %s: %w", method, err)
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("agent %s: %w", method, err)
	}
	// yamux waits for the peer to read without asking a context, so the exchange has a goroutine of its own.
	type outcome struct {
		stream *Stream
		resp   response
		err    error
	}
	done := make(chan outcome, 1)
	opened := make(chan *Stream, 1)
	go func() {
		defer close(opened)
		var o outcome
		if o.stream, o.err = c.open(); o.err == nil {
			opened <- o.stream
			if o.err = write(o.stream, frame); o.err == nil {
				o.err = readFrame(o.stream, &o.resp)
			}
		}
		done <- o
	}()
	var o outcome
	select {
	case o = <-done:
	case <-ctx.Done():
		go func() {
			if s := <-opened; s != nil {
				s.SetDeadline(time.Unix(1, 0))
				<-done
				s.Close()
			}
		}()
		return nil, fmt.Errorf("agent %s: %w", method, context.Cause(ctx))
	}
	err = o.err
	if err == nil && o.resp.Error != nil {
		o.resp.Error.Message = o.resp.Error.Message[:min(len(o.resp.Error.Message), maxErrorText)]
		err = o.resp.Error
	}
	if err == nil && result != nil {
		err = json.Unmarshal(o.resp.Result, result)
	}
	if err != nil {
		if o.stream != nil {
			go o.stream.Close()
		}
		if c.mux.IsClosed() && o.resp.Error == nil {
			err = ErrSession
		}
		return nil, fmt.Errorf("agent %s: %w", method, err)
	}
	return o.stream, nil
}

func (c *Client) open() (*Stream, error) {
	if c.mux.NumStreams() >= maxStreams {
		c.mux.Close()
		return nil, errors.New("agent does not close its streams")
	}
	s, err := c.mux.OpenStream()
	if err != nil {
		return nil, err
	}
	return &Stream{s, c.mux, c.port}, nil
}

// Stream is one multiplexed stream. Close half-closes it towards the peer, as on a TCP connection with
// CloseWrite, and what the peer still sends can be read until it closes as well.
type Stream struct {
	*yamux.Stream
	mux  *yamux.Session
	port *gatherer
}

// Read returns io.EOF only when the peer has closed the stream, and ErrSession when the session has gone.
func (s *Stream) Read(p []byte) (int, error) {
	n, err := s.Stream.Read(p)
	if err == io.EOF && s.mux.IsClosed() {
		err = ErrSession
	}
	return n, err
}

// CloseWrite tells the peer that nothing more comes; reading goes on.
func (s *Stream) CloseWrite() error { return s.Stream.Close() }

// Last writes p and tells the peer that nothing more comes, in one piece where it can.
func (s *Stream) Last(p []byte) error {
	if len(p) <= gatherLimit {
		s.port.expectEnd(s.StreamID(), len(p))
	}
	_, err := s.Write(p)
	return errors.Join(err, s.CloseWrite())
}
