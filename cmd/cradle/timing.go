package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// timing notes when what happened on the way of one command: a mark is the end of a phase.
type timing struct {
	began time.Time // of the process

	mu        sync.Mutex
	marks     []mark
	container string // the one that was started, once it was
	output    bool   // the first byte has come
}

// mark is the end of a phase.
type mark struct {
	name string
	at   time.Time
}

// newTiming begins with the process's beginning, which is as long ago as it has worked: it has waited for nothing yet.
func newTiming() *timing {
	now, worked := time.Now(), time.Duration(0)
	var spent unix.Timespec
	if unix.ClockGettime(unix.CLOCK_PROCESS_CPUTIME_ID, &spent) == nil {
		worked = time.Duration(spent.Nano())
	}
	return &timing{began: now.Add(-worked)}
}

// mark notes the end of a phase.
func (t *timing) mark(name string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.marks = append(t.marks, mark{name, time.Now()})
}

// watch has every request that goes over conn noted when it is answered, and the first byte of what a container says.
func (t *timing) watch(conn net.Conn) net.Conn { return &timedConn{Conn: conn, t: t} }

// timedConn looks at the beginnings of requests: HTTP/1.1 without pipelining, as docker's client speaks it.
type timedConn struct {
	net.Conn
	t *timing

	mu      sync.Mutex
	waiting string // the request that has not been answered
	attach  bool   // what comes is a container's output
}

func (c *timedConn) Write(b []byte) (int, error) {
	if name, id := requestName(b); name != "" {
		c.mu.Lock()
		c.waiting = name
		c.mu.Unlock()
		if name == "start" {
			c.t.mu.Lock()
			c.t.container = id
			c.t.mu.Unlock()
		}
	}
	return c.Conn.Write(b)
}

func (c *timedConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if n == 0 {
		return n, err
	}
	c.mu.Lock()
	name, attached := c.waiting, c.attach
	c.waiting = ""
	if name == "attach" {
		c.attach = true
	}
	c.mu.Unlock()
	switch {
	case name == "wait" && !bytes.Contains(b[:n], []byte("StatusCode")):
		// The headers come at once, the answer with the container's end.
		c.mu.Lock()
		c.waiting = name
		c.mu.Unlock()
	case name != "":
		c.t.mark(name)
		if _, more, _ := bytes.Cut(b[:n], []byte("\r\n\r\n")); name == "attach" && len(more) > 0 {
			c.t.firstByte()
		}
	case attached:
		c.t.firstByte()
	}
	return n, err
}

// firstByte notes the first of them.
func (t *timing) firstByte() {
	t.mu.Lock()
	first := !t.output
	t.output = true
	t.mu.Unlock()
	if first {
		t.mark("first byte")
	}
}

// CloseWrite is what docker's client ends a container's input with.
func (c *timedConn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}

// requestName is the last word of a request's path, with the container's id if it has one; empty when b does not begin
// with a request.
func requestName(b []byte) (name, container string) {
	line, _, _ := bytes.Cut(b, []byte("\r\n"))
	words := strings.Fields(string(line[:min(len(line), 1024)]))
	if len(words) != 3 || !strings.HasPrefix(words[2], "HTTP/1.") {
		return "", ""
	}
	path, _, _ := strings.Cut(words[1], "?")
	parts := strings.Split(strings.Trim(path, "/"), "/")
	if i := slices.Index(parts, "containers"); i >= 0 && len(parts) == i+3 {
		container = parts[i+1]
	}
	return strings.TrimPrefix(parts[len(parts)-1], "_"), container
}

// span is a phase, as it is shown.
type span struct {
	Name  string
	At    time.Duration // its beginning, from the process's
	Took  time.Duration
	Where string // "client", or "daemon"
}

// spans are the phases in order: each from the end of the one before, so that together they are all the time there was.
// The daemon's are between the client's by the clock, which both have in common on one machine.
func (t *timing) spans(daemon *daemonStart) []span {
	t.mu.Lock()
	defer t.mu.Unlock()
	type end struct {
		name, where string
		at          time.Time
	}
	var ends []end
	for _, m := range t.marks {
		ends = append(ends, end{m.name, "client", m.at})
	}
	if daemon != nil {
		for _, p := range daemon.Phases {
			ends = append(ends, end{daemonPhase(p.Name), "daemon", daemon.Began.Add(p.End)})
		}
	}
	slices.SortStableFunc(ends, func(a, b end) int { return cmp.Compare(a.at.UnixNano(), b.at.UnixNano()) })
	var out []span
	last := t.began
	for _, e := range ends {
		if e.at.Before(last) {
			continue // another machine's clock
		}
		out = append(out, span{e.name, last.Sub(t.began), e.at.Sub(last), e.where})
		last = e.at
	}
	return out
}

// daemonPhase says in this command's words what the daemon's phases are. Whether what was taken was prepared as well, the
// total says.
func daemonPhase(name string) string {
	switch name {
	case "prepared":
		return "take"
	case "create":
		return "mount"
	case "run":
		return "exit"
	}
	return name
}

// daemonStart is what the daemon says of a start (node.Start).
type daemonStart struct {
	Began  time.Time
	Way    string
	Phases []struct {
		Name string
		End  time.Duration
	}
}

// startOf asks the daemon for the phases of the start that was watched.
func (t *timing) startOf(ctx context.Context, d *daemonDialer) (*daemonStart, error) {
	t.mu.Lock()
	id := t.container
	t.mu.Unlock()
	if id == "" {
		return nil, errors.New("no container was started")
	}
	resp, err := d.call(ctx, http.MethodGet, "starts", url.Values{"container": {id}})
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	var all []daemonStart
	if err := json.NewDecoder(io.LimitReader(resp.Body, 16<<20)).Decode(&all); err != nil {
		return nil, fmt.Errorf("read the daemon's timings: %w", err)
	}
	if len(all) == 0 {
		return nil, errors.New("the daemon knows no such start")
	}
	return &all[len(all)-1], nil
}
