package dockerapi

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"sync"
	"time"
)

const (
	// lingerInput is how long input that a client left behind when it hung up may wait to be taken.
	lingerInput = 10 * time.Second
	// lingerClose is how long a client has to hang up once it was told that the output has ended.
	lingerClose = 2 * time.Second
)

// duplex is a connection taken over from HTTP that carries a process's streams.
type duplex struct {
	Streams
	conn   net.Conn
	cancel context.CancelFunc // of the Backend's call
	stop   func()             // the watch for the client's hang-up
	done   chan struct{}      // closed by finish
}

// detached is a context for the Backend's side of a hijacked request. It does not end with the request's: net/http
// ends that one when the client half-closes early, as clients without input may.
func (c *call) detached() (context.Context, context.CancelFunc) {
	return context.WithCancel(context.WithoutCancel(c.r.Context()))
}

// upgrade takes the connection over, answers, and makes the streams. cancel is called when the client hangs up.
func (c *call) upgrade(cancel context.CancelFunc, tty, stdin bool) (*duplex, error) {
	conn, rw, err := c.w.Hijack()
	if err != nil {
		return nil, fmt.Errorf("take over the connection: %w", err)
	}
	answer := "HTTP/1.1 200 OK\r\nContent-Type: application/vnd.docker.raw-stream\r\n\r\n"
	upgraded := c.r.Header.Get("Upgrade") != ""
	if upgraded {
		answer = "HTTP/1.1 101 UPGRADED\r\nContent-Type: " + c.streamType(tty) +
			"\r\nConnection: Upgrade\r\nUpgrade: tcp\r\nApi-Version: " + MaxAPIVersion + "\r\nOstype: linux\r\n\r\n"
	}
	if _, err := io.WriteString(conn, answer); err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("answer: %w", err)
	}

	// What the client sent right behind its request is in the server's buffer and comes first.
	early, _ := rw.Reader.Peek(rw.Reader.Buffered())
	var in io.Reader = io.MultiReader(bytes.NewReader(bytes.Clone(early)), conn)
	if len(c.r.TransferEncoding) > 0 && !upgraded {
		in = httputil.NewChunkedReader(in) // input as an ordinary, never-ending HTTP body
	}
	d := &duplex{conn: conn, cancel: cancel, done: make(chan struct{})}
	d.Stdout, d.Stderr = outputs(conn, tty, func(err error) {
		if err != nil {
			cancel()
		}
	})
	input := &inputReader{from: in, ended: make(chan struct{})}
	if stdin {
		d.Stdin = input
	} else {
		input.end()
		go func() { _, _ = io.Copy(io.Discard, in) }() // unread input would turn our close into a reset
	}
	d.stop = watchHangup(conn, func() { d.hungUp(input) })
	return d, nil
}

// hungUp ends the Backend's call for a client that has gone, once the input that it left was taken: a client may
// well send a line and leave.
func (d *duplex) hungUp(input *inputReader) {
	timer := time.NewTimer(lingerInput)
	defer timer.Stop()
	select {
	case <-input.ended:
	case <-timer.C:
	case <-d.done:
		return
	}
	d.cancel()
	_ = d.conn.Close()
}

// finish tells the client that the output has ended, with the error that ended it, and closes the connection.
func (d *duplex) finish(ctx context.Context, err error) {
	if err != nil && ctx.Err() == nil {
		_, _ = io.WriteString(d.Stderr, ErrorText(err)+"\r\n")
	}
	d.cancel()
	close(d.done)
	d.stop()
	if w, ok := d.conn.(interface{ CloseWrite() error }); ok && w.CloseWrite() == nil {
		// Closing with input unread resets the connection and the client may lose the output's end: read on
		// until the client closes its side too.
		_ = d.conn.SetReadDeadline(time.Now().Add(lingerClose))
		_, _ = io.Copy(io.Discard, d.conn)
	}
	_ = d.conn.Close()
}

// inputReader is a client's input. However the connection ends, it ends with io.EOF.
type inputReader struct {
	from  io.Reader
	once  sync.Once
	ended chan struct{}
}

func (r *inputReader) end() { r.once.Do(func() { close(r.ended) }) }

func (r *inputReader) Read(p []byte) (int, error) {
	n, err := r.from.Read(p)
	if err != nil {
		r.end()
		err = io.EOF
	}
	return n, err
}

// pump serves an attachment over the connection.
func (c *call) pump(ctx context.Context, cancel context.CancelFunc, tty bool, o AttachOptions, serve func(Streams) error) error {
	d, err := c.upgrade(cancel, tty, o.Stdin)
	if err != nil {
		return err
	}
	asked := d.Streams // the daemon's own errors reach the client whatever it asked for
	if !o.Stdout {
		asked.Stdout = io.Discard
	}
	if !o.Stderr && !tty {
		asked.Stderr = io.Discard
	}
	err = serve(asked)
	if err != nil && ctx.Err() == nil {
		c.log.Warn("attachment ended", "path", c.r.URL.Path, "error", err)
	}
	d.finish(ctx, err)
	return nil
}

// isStartFailure tells an exec whose process could not be started from one that may not be started: docker shows
// the first in the stream, and clients cannot read an error's text in the place of an upgrade.
func isStartFailure(err error) bool {
	status, _ := errorStatus(err)
	return status == http.StatusBadRequest || status == http.StatusForbidden
}
