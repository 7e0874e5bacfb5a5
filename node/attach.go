package node

import (
	"context"
	"encoding/binary"
	"errors"
	"io"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/term"

	"github.com/cradlevm/cradle/api"
	"github.com/cradlevm/cradle/dockerapi"
	"github.com/cradlevm/cradle/node/logfile"
)

// deliver passes one framed record to every attachment. A client that is slow holds the output up, as with
// docker, while the container runs; one that has gone does not.
func (c *ctr) deliver(r *run, framed []byte) {
	c.mu.Lock()
	to := make([]*attachment, 0, len(c.attached))
	for a := range c.attached {
		to = append(to, a)
	}
	c.mu.Unlock()
	if len(to) == 0 {
		return
	}
	record := append([]byte(nil), framed...)
	for _, a := range to {
		a.put(record, r.over)
	}
}

// endAttachments tells all attachments that nothing more comes. c.mu is held, and no deliver is under way.
func (c *ctr) endAttachments() {
	for a := range c.attached {
		delete(c.attached, a)
		a.end()
	}
}

func (c *ctr) detach(a *attachment) {
	a.leave()
	c.mu.Lock()
	delete(c.attached, a)
	c.mu.Unlock()
}

// ContainerAttach implements dockerapi.Backend.
func (n *Node) ContainerAttach(ctx context.Context, name string, o dockerapi.AttachOptions) (func(dockerapi.Streams) error, bool, error) {
	c, err := n.find(name)
	if err != nil {
		return nil, false, err
	}
	keys, err := detachKeys(o.DetachKeys)
	if err != nil {
		return nil, false, err
	}
	c.mu.Lock()
	rec := c.rec
	if rec.Status == container.StatePaused {
		c.mu.Unlock()
		return nil, false, conflict("container %s is paused, unpause the container before attach", c.id)
	}
	if c.removing {
		c.mu.Unlock()
		return nil, false, conflict("container %s is marked for removal and cannot be attached to", c.id)
	}
	var a *attachment
	if o.Stream {
		a = newAttachment()
		c.attached[a] = struct{}{}
		context.AfterFunc(ctx, func() { c.detach(a) }) // also when serve is never called
	}
	c.mu.Unlock()
	c.emit(events.ActionAttach, nil)
	serve := func(s dockerapi.Streams) error {
		if a != nil {
			defer c.detach(a)
		}
		if !o.Stdout {
			s.Stdout = io.Discard
		}
		if !o.Stderr {
			s.Stderr = io.Discard
		}
		if o.Logs {
			if err := c.replay(ctx, s, rec.Config.Tty); err != nil {
				return err
			}
		}
		if a == nil {
			return nil
		}
		return c.serveAttachment(ctx, a, s, o.Stdin && rec.Config.OpenStdin, keys)
	}
	return serve, rec.Config.Tty, nil
}

// replay writes what the log holds.
func (c *ctr) replay(ctx context.Context, s dockerapi.Streams, tty bool) error {
	log, err := c.openLog()
	if err != nil || log == nil {
		return err
	}
	return log.Read(ctx, logfile.ReadOptions{Stdout: true, Stderr: true, Tail: -1}, func(r logfile.Record) error {
		_, err := streamOf(s, r.Stream, tty).Write(r.Data)
		return err
	})
}

func streamOf(s dockerapi.Streams, stream byte, tty bool) io.Writer {
	if stream == api.Stderr && !tty {
		return s.Stderr
	}
	return s.Stdout
}

// serveAttachment pumps until the output ends, the client goes, or the detach keys are typed.
func (c *ctr) serveAttachment(ctx context.Context, a *attachment, s dockerapi.Streams, stdin bool, keys []byte) error {
	tty := c.snapshot().Config.Tty
	detached := make(chan struct{})
	if stdin && s.Stdin != nil {
		go func() {
			if errors.As(c.feed(ctx, s.Stdin, tty, keys), new(term.EscapeError)) {
				close(detached)
			}
		}()
	}
	for {
		records, more, change := a.take()
		for _, framed := range records {
			if err := writeRecord(s, framed, tty); err != nil {
				return err
			}
		}
		if len(records) > 0 {
			continue
		}
		if !more {
			return nil
		}
		select {
		case <-change:
		case <-detached:
			c.emit(events.ActionDetach, nil)
			return nil
		case <-ctx.Done():
			return ctx.Err()
		case <-c.node.ctx.Done():
			return nil
		}
	}
}

// writeRecord writes a framed record's payload to the stream that its header names.
func writeRecord(s dockerapi.Streams, framed []byte, tty bool) error {
	n := binary.BigEndian.Uint32(framed[4:])
	_, err := streamOf(s, framed[0], tty).Write(framed[api.OutputHeaderSize:][:n])
	return err
}

// feed copies a client's input to the container's standard input, waiting for the container to run. The client's
// end, however it comes, is the end of the container's input when StdinOnce says so. A typed detach sequence ends it
// with term.EscapeError.
func (c *ctr) feed(ctx context.Context, from io.Reader, tty bool, keys []byte) error {
	if tty && len(keys) > 0 {
		from = term.NewEscapeProxy(from, keys)
	}
	// Nothing is read before the container runs: a client's first bytes must not be lost to a failed start.
	r, err := c.awaitRun(ctx)
	if err != nil {
		return err
	}
	to, err := r.stdinOf(ctx, c.process())
	if err != nil {
		return err
	}
	_, err = io.Copy(to, onlyReader{from})
	if c.node.ctx.Err() == nil && c.snapshot().Config.StdinOnce && !tty {
		return errors.Join(err, to.Close())
	}
	return err
}

// onlyReader hides a reader's WriterTo, which would read behind the escape proxy's back.
type onlyReader struct{ io.Reader }

// awaitRun returns the container's run, waiting for its start.
func (c *ctr) awaitRun(ctx context.Context) (*run, error) {
	started := make(chan struct{})
	stop := c.node.events.watch(func(e events.Message) {
		if e.Actor.ID == c.id && e.Action == events.ActionStart {
			select {
			case <-started:
			default:
				close(started)
			}
		}
	})
	defer stop()
	for {
		if r, err := c.current(); err == nil {
			return r, nil
		}
		select {
		case <-started:
			return c.current()
		case <-c.gone:
			return nil, notFound("No such container: %s", c.id)
		case <-c.node.ctx.Done():
			return nil, context.Canceled
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// detachKeys reads docker's detach key sequence; empty is the default.
func detachKeys(s string) ([]byte, error) {
	if s == "" {
		return []byte{16, 17}, nil // ctrl-p ctrl-q
	}
	keys, err := term.ToBytes(s)
	if err != nil {
		return nil, invalid("Invalid detach keys (%s) provided", s)
	}
	return keys, nil
}
