package node

import (
	"bytes"
	"context"
	"sync"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"golang.org/x/sys/unix"

	"github.com/cradlevm/cradle/dockerapi"
)

// Docker's defaults and bounds of a healthcheck.
const (
	healthInterval      = 30 * time.Second
	healthTimeout       = 30 * time.Second
	healthStartInterval = 5 * time.Second
	healthRetries       = 3
	healthLogEntries    = 5
	healthOutputBytes   = 4096
)

// healthStatus is the container's health as docker names it.
func (c *ctr) healthStatus() container.HealthStatus {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.health == nil {
		return container.NoHealthcheck
	}
	return c.health.Status
}

func copyHealth(h *container.Health) *container.Health {
	if h == nil {
		return nil
	}
	out := *h
	out.Log = append([]*container.HealthcheckResult{}, h.Log...)
	return &out
}

// probeCommand is what a healthcheck runs; nil for none.
func probeCommand(config container.Config) []string {
	h := config.Healthcheck
	if h == nil || len(h.Test) == 0 {
		return nil
	}
	switch h.Test[0] {
	case "CMD":
		return h.Test[1:]
	case "CMD-SHELL":
		shell := config.Shell
		if len(shell) == 0 {
			shell = []string{"/bin/sh", "-c"}
		}
		return append(append([]string{}, shell...), h.Test[1:]...)
	}
	return nil
}

func orDefault(d, fallback time.Duration) time.Duration {
	if d == 0 {
		return fallback
	}
	return d
}

// beginHealth gives a new run its health: starting, when it is to be looked at. c.mu is held.
func (c *ctr) beginHealth() {
	c.health = nil
	if len(probeCommand(c.rec.Config)) > 0 {
		c.health = &container.Health{Status: container.Starting, Log: []*container.HealthcheckResult{}}
	}
}

// checkHealth probes the container at its intervals until ctx ends.
func (c *ctr) checkHealth(ctx context.Context, r *run) {
	defer c.node.running.Done()
	rec := c.snapshot()
	command := probeCommand(rec.Config)
	if len(command) == 0 {
		return
	}
	h := rec.Config.Healthcheck
	startEnds := rec.Started.Add(h.StartPeriod)
	for {
		pause := orDefault(h.Interval, healthInterval)
		if c.healthStatus() == container.Starting && time.Now().Before(startEnds) {
			pause = min(pause, orDefault(h.StartInterval, healthStartInterval))
		}
		if !sleep(ctx, pause) {
			return
		}
		if c.snapshot().Status == container.StatePaused {
			continue
		}
		result := c.probe(ctx, command, orDefault(h.Timeout, healthTimeout))
		if ctx.Err() != nil {
			return
		}
		c.recordProbe(r, result, h.Retries, time.Now().Before(startEnds))
	}
}

// probe runs the command once.
func (c *ctr) probe(ctx context.Context, command []string, limit time.Duration) *container.HealthcheckResult {
	result := &container.HealthcheckResult{Start: time.Now(), ExitCode: -1}
	defer func() { result.End = time.Now() }()
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	n := c.node
	e, err := c.createExec(c.id, container.ExecCreateRequest{Cmd: command, AttachStdout: true, AttachStderr: true}, true)
	if err != nil {
		result.Output = err.Error()
		return result
	}
	var out boundedBuffer
	err = e.start(ctx, container.ExecStartRequest{}, func() (dockerapi.Streams, error) {
		return dockerapi.Streams{Stdout: &out, Stderr: &out}, nil
	})
	result.Output = out.String()
	if ctx.Err() == context.DeadlineExceeded {
		result.Output = "Health check exceeded timeout (" + limit.String() + ")"
		if r, err := c.current(); err == nil {
			if err := r.signal(n.ctx, e.process(), int(unix.SIGKILL)); err != nil {
				n.options.Log.Debug("kill probe", "container", c.id, "err", err)
			}
		}
		return result
	}
	if err != nil {
		result.Output = err.Error()
		return result
	}
	if e.hasEnded() {
		result.ExitCode = e.code()
	}
	return result
}

// boundedBuffer keeps the first healthOutputBytes bytes.
type boundedBuffer struct {
	mu  sync.Mutex // a probe that took too long may still write
	buf bytes.Buffer
}

func (b *boundedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if room := healthOutputBytes - b.buf.Len(); room > 0 {
		b.buf.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}

func (b *boundedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// recordProbe moves the health's state as docker does: one success is healthy; retries failures in a row, not
// counting those of the start period, are unhealthy.
func (c *ctr) recordProbe(r *run, result *container.HealthcheckResult, retries int, starting bool) {
	if retries == 0 {
		retries = healthRetries
	}
	c.mu.Lock()
	h := copyHealth(c.health)
	if h == nil || c.run != r || !up(c.rec.Status) {
		c.mu.Unlock()
		return
	}
	h.Log = append(h.Log, result)
	if len(h.Log) > healthLogEntries {
		h.Log = h.Log[len(h.Log)-healthLogEntries:]
	}
	before := h.Status
	switch {
	case result.ExitCode == 0:
		h.Status, h.FailingStreak = container.Healthy, 0
	case starting && before == container.Starting:
	default:
		if h.FailingStreak++; h.FailingStreak >= retries {
			h.Status = container.Unhealthy
		}
	}
	c.health = h
	c.mu.Unlock()
	if h.Status != before {
		c.emit(events.Action("health_status: "+string(h.Status)), nil)
	}
}
