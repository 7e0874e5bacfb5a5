package dockerapi

import (
	"io"
	"net/http"

	"github.com/moby/moby/api/types/container"
)

func (s *server) execCreate(c *call) error {
	var r container.ExecCreateRequest
	if _, err := c.body(&r); err != nil {
		return err
	}
	if len(r.Cmd) == 0 {
		return invalid("no exec command specified")
	}
	id, err := s.b.ExecCreate(c.r.Context(), c.id(), r)
	if err != nil {
		return err
	}
	return c.json(http.StatusCreated, container.ExecCreateResponse{ID: id})
}

func (s *server) execInspect(c *call) error {
	r, err := s.b.ExecInspect(c.r.Context(), c.id())
	if err != nil {
		return err
	}
	return c.json(http.StatusOK, r)
}

func (s *server) execStart(c *call) error {
	var r container.ExecStartRequest
	if _, err := c.body(&r); err != nil {
		return err
	}
	if r.ConsoleSize != nil && !r.Tty {
		return invalid("console size is only supported when TTY is enabled")
	}
	exec, err := s.b.ExecInspect(c.r.Context(), c.id())
	if err != nil {
		return err
	}
	if r.Detach {
		if err := s.b.ExecStart(c.r.Context(), c.id(), r, nil); err != nil {
			return err
		}
		return c.empty(http.StatusOK)
	}

	ctx, cancel := c.detached()
	defer cancel()
	var d *duplex
	var upgradeErr error
	ready := func() (Streams, error) {
		if d, upgradeErr = c.upgrade(cancel, r.Tty, exec.OpenStdin); upgradeErr != nil {
			return Streams{}, upgradeErr
		}
		asked := d.Streams
		if !exec.OpenStdout {
			asked.Stdout = io.Discard
		}
		if !exec.OpenStderr && !r.Tty {
			asked.Stderr = io.Discard
		}
		return asked, nil
	}
	err = s.b.ExecStart(ctx, c.id(), r, ready)
	if upgradeErr != nil {
		return upgradeErr
	}
	if d == nil {
		if err != nil && !isStartFailure(err) {
			return err
		}
		if _, err := ready(); err != nil {
			return err
		}
		if err != nil { // docker says it on the standard output
			c.log.Warn("exec not started", "path", c.r.URL.Path, "error", err)
			_, _ = io.WriteString(d.Stdout, ErrorText(err)+"\r\n")
			err = nil
		}
	}
	if err != nil && ctx.Err() == nil {
		c.log.Warn("exec ended", "path", c.r.URL.Path, "error", err)
	}
	d.finish(ctx, err)
	return nil
}
