package dockerapi

import (
	"context"
	"io"
	"net/http"
	"strconv"

	"golang.org/x/net/websocket"
)

func (c *call) attachOptions() AttachOptions {
	return AttachOptions{
		Logs: c.flag("logs"), Stream: c.flag("stream"),
		Stdin: c.flag("stdin"), Stdout: c.flag("stdout"), Stderr: c.flag("stderr"),
		DetachKeys: c.query.Get("detachKeys"),
	}
}

func (s *server) containerAttach(c *call) error {
	ctx, cancel := c.detached()
	defer cancel()
	o := c.attachOptions()
	serve, tty, err := s.b.ContainerAttach(ctx, c.id(), o)
	if err != nil {
		return err
	}
	return c.pump(ctx, cancel, tty, o, serve)
}

// containerAttachWS carries the streams in WebSocket messages, for clients in browsers: output is never framed.
func (s *server) containerAttachWS(c *call) error {
	if c.r.Header.Get("Upgrade") == "" {
		return invalid("attach over a WebSocket needs an upgrade request")
	}
	ctx, cancel := c.detached()
	defer cancel()
	o := c.attachOptions()
	serve, _, err := s.b.ContainerAttach(ctx, c.id(), o)
	if err != nil {
		return err
	}
	// There is no Handshake function, the place to refuse origins: whoever reaches the socket has every power already.
	websocket.Server{Handler: func(ws *websocket.Conn) {
		ws.PayloadType = websocket.BinaryFrame
		defer func() { _ = ws.Close() }()
		c.pumpWS(ctx, cancel, ws, o, serve)
	}}.ServeHTTP(c.w, c.r)
	return nil
}

func (c *call) pumpWS(ctx context.Context, cancel context.CancelFunc, ws *websocket.Conn, o AttachOptions, serve func(Streams) error) {
	streams := Streams{Stdout: io.Discard, Stderr: io.Discard}
	input := &inputReader{from: ws, ended: make(chan struct{})}
	if o.Stdin {
		streams.Stdin = input
	} else {
		go func() { _, _ = io.Copy(io.Discard, input) }()
	}
	// There is no half-close: the end of the input is the client's hang-up.
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		select {
		case <-input.ended:
			cancel()
		case <-stop:
		}
	}()
	if o.Stdout {
		streams.Stdout = ws
	}
	if o.Stderr {
		streams.Stderr = ws
	}
	if err := serve(streams); err != nil && ctx.Err() == nil {
		c.log.Warn("attachment ended", "path", c.r.URL.Path, "error", err)
	}
}

func (s *server) containerLogs(c *call) error {
	o := LogsOptions{
		Stdout: c.flag("stdout"), Stderr: c.flag("stderr"), Follow: c.flag("follow"),
		Timestamps: c.flag("timestamps"), Details: c.flag("details"), Tail: -1,
	}
	if !o.Stdout && !o.Stderr {
		return invalid("Bad parameters: you must choose at least one stream")
	}
	var err error
	if o.Since, err = c.time("since"); err != nil {
		return err
	}
	if c.query.Get("until") != "0" { // some clients' "no limit"
		if o.Until, err = c.time("until"); err != nil {
			return err
		}
	}
	// What is no number means all, whatever it is: docker's command line says "all".
	if tail, err := strconv.Atoi(c.query.Get("tail")); err == nil {
		o.Tail = max(-1, tail)
	}
	serve, tty, err := s.b.ContainerLogs(c.r.Context(), c.id(), o)
	if err != nil {
		return err
	}

	c.w.Header().Set("Content-Type", c.streamType(tty))
	flush := func(error) {}
	if o.Follow {
		flush = func(error) { c.w.Flush() }
		c.w.WriteHeader(http.StatusOK)
		c.w.Flush() // a client waits for the headers, and output may be long in coming
	}
	stdout, stderr := outputs(c.w, tty, flush)
	err = serve(stdout, stderr)
	if err != nil && c.w.status != 0 && !clientGone(c.r.Context(), err) {
		c.log.Error("logs ended", "path", c.r.URL.Path, "error", err)
		_, _ = io.WriteString(stderr, "Error grabbing logs: "+ErrorText(err)+"\n")
		return nil
	}
	return err
}
