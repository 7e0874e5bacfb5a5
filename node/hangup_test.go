package node

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"

	"github.com/cradlevm/cradle/dockerapi"
	"github.com/cradlevm/cradle/image"
)

// Pull goes on for as long as its client wants it to.
func (s *images) Pull(ctx context.Context, _ string, o image.PullOptions) (image.Image, error) {
	o.Progress(image.Status{ID: "layer", Status: "Downloading"})
	<-ctx.Done()
	return image.Image{}, ctx.Err()
}

// Clients that hang up in the middle of whatever they do, over the wire, cost nothing that stays.
func TestHangUps(t *testing.T) {
	h := newHouse(t)
	server := &http.Server{Handler: dockerapi.New(h.Node, dockerapi.Options{Log: slog.New(slog.NewTextHandler(h.log, nil))})}
	l, err := net.Listen("unix", h.path("sock"))
	if err != nil {
		t.Fatal(err)
	}
	go server.Serve(l)
	defer server.Close()
	h.run("a", "lines 10000", func(r *container.CreateRequest) { r.Config.OpenStdin = true })
	// request sends one and returns its connection once the answer has begun.
	request := func(path, body string, header string) net.Conn {
		t.Helper()
		conn, err := net.Dial("unix", h.path("sock"))
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: d\r\nContent-Type: application/json\r\nContent-Length: %d\r\n%s\r\n%s", path, len(body), header, body)
		conn.SetReadDeadline(time.Now().Add(time.Minute))
		r := bufio.NewReader(conn)
		status, err := r.ReadString('\n')
		if err != nil || !strings.Contains(status, " 101 ") && !strings.Contains(status, " 200 ") {
			rest, _ := io.ReadAll(io.LimitReader(r, 500))
			t.Fatalf("%s: %q %v %s", path, status, err, rest)
		}
		return conn
	}
	const upgrade = "Connection: Upgrade\r\nUpgrade: tcp\r\n"
	all := func() {
		attach := request("/containers/a/attach?stream=1&stdin=1&stdout=1&stderr=1&logs=1", "", upgrade)
		unread := request("/containers/a/attach?stream=1&stdout=1", "", upgrade)
		logs := h.exec("a", container.ExecCreateRequest{Cmd: []string{"cat"}, AttachStdin: true, AttachStdout: true})
		exec := request("/exec/"+logs+"/start", `{"Detach":false,"Tty":false}`, upgrade)
		pull := request("/images/create?fromImage=127.0.0.1:1/x&tag=latest", "", "")
		wait := request("/containers/a/wait?condition=next-exit", "", "")
		for _, c := range []net.Conn{attach, unread, exec, pull, wait} {
			c.Close()
		}
	}
	c, err := h.find("a")
	if err != nil {
		t.Fatal(err)
	}
	// The server learns of a hang-up in its own time.
	eventually := func(what string, holds func() bool) {
		t.Helper()
		for begun := time.Now(); !holds(); time.Sleep(time.Millisecond) {
			if time.Since(begun) > time.Minute {
				buf := make([]byte, 1<<20)
				t.Fatalf("not so: %s\n%s", what, buf[:runtime.Stack(buf, true)])
			}
		}
	}
	nobody := func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return len(c.attached)+len(c.waiters) == 0
	}
	all() // what is made once
	eventually("nobody is attached or waits", nobody)
	before := runtime.NumGoroutine()
	for range 20 {
		all()
	}
	eventually("nobody is attached or waits", nobody)
	// The first round may have counted a few too few or too many: a leak would be 20 at least.
	eventually(fmt.Sprintf("at most %d goroutines", before+5), func() bool { return runtime.NumGoroutine() <= before+5 })
	h.wantState("a", container.StateRunning, 0)
	if err := h.ContainerStop(context.Background(), "a", "", nil); err != nil {
		t.Error(err)
	}
	if got := h.output("a"); got != numbers(10000) {
		t.Errorf("%d bytes in the log", len(got))
	}
}
