package dockerapi

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/api/types/container"
	"golang.org/x/net/websocket"
)

// rawConn is a client without an HTTP library: what it sends and when is up to the test.
type rawConn struct {
	t *testing.T
	net.Conn
	r *bufio.Reader
}

func dialRaw(t *testing.T, network, address string) *rawConn {
	t.Helper()
	conn, err := net.Dial(network, address)
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	t.Cleanup(func() { _ = conn.Close() })
	return &rawConn{t, conn, bufio.NewReader(conn)}
}

func (c *rawConn) send(format string, args ...any) {
	c.t.Helper()
	if _, err := fmt.Fprintf(c.Conn, format, args...); err != nil {
		c.t.Fatal(err)
	}
}

// answer reads the response's head and checks its status.
func (c *rawConn) answer(status int) *http.Response {
	c.t.Helper()
	res, err := http.ReadResponse(c.r, nil)
	if err != nil {
		c.t.Fatal(err)
	}
	if res.StatusCode != status {
		body, _ := io.ReadAll(res.Body)
		c.t.Fatalf("status %d, want %d: %s", res.StatusCode, status, body)
	}
	return res
}

func (c *rawConn) closeWrite() {
	c.t.Helper()
	if err := c.Conn.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		c.t.Fatal(err)
	}
}

// rest reads what comes after an upgrade until the server's end, in frames.
func (c *rawConn) rest() (stdout, stderr string) {
	c.t.Helper()
	var out, errs bytes.Buffer
	if _, err := stdcopy.StdCopy(&out, &errs, c.r); err != nil {
		c.t.Fatal(err)
	}
	return out.String(), errs.String()
}

const (
	upgrade   = "Host: d\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"
	attachAll = "POST /v1.44/containers/box/attach?stream=1&stdin=1&stdout=1&stderr=1 HTTP/1.1\r\n"
	attachOut = "POST /v1.44/containers/box/attach?stream=1&logs=1&stdout=1&stderr=1 HTTP/1.1\r\n"
)

// box makes a container named box, started or not.
func box(t *testing.T, start bool, tty bool, cmd ...string) (*fake, *rawConn) {
	t.Helper()
	t.Parallel()
	f := newFake()
	_, err := f.ContainerCreate(t.Context(), "box", nil, container.CreateRequest{
		Config:     &container.Config{Image: "alpine", Cmd: cmd, Tty: tty, OpenStdin: true},
		HostConfig: &container.HostConfig{}, NetworkingConfig: emptyNetworking(),
	})
	if err != nil {
		t.Fatal(err)
	}
	c := dialRaw(t, "unix", serve(t, f))
	if start {
		if err := f.ContainerStart(t.Context(), "box"); err != nil {
			t.Fatal(err)
		}
	}
	return f, c
}

func (f *fake) start(t *testing.T) {
	t.Helper()
	if err := f.ContainerStart(t.Context(), "box"); err != nil {
		t.Fatal(err)
	}
}

func TestAttachHalfClose(t *testing.T) {
	f, c := box(t, false, false, "cat")
	c.send(attachAll + upgrade)
	res := c.answer(http.StatusSwitchingProtocols)
	if got := res.Header.Get("Content-Type"); got != "application/vnd.docker.multiplexed-stream" {
		t.Errorf("content type %q", got)
	}
	f.start(t)
	c.send("one\n")
	c.send("two\n")
	c.closeWrite()
	if out, _ := c.rest(); out != "one\ntwo\n" {
		t.Errorf("got %q", out)
	}
	f.eventually(t, "attach ended <nil>")
}

// TestAttachEarlyInput sends input and even its end right behind the request, before any answer.
func TestAttachEarlyInput(t *testing.T) {
	f, c := box(t, true, false, "cat")
	big := strings.Repeat("0123456789", 20000)
	go func() {
		_, _ = io.WriteString(c.Conn, attachAll+upgrade+big)
		_ = c.Conn.(*net.UnixConn).CloseWrite()
	}()
	c.answer(http.StatusSwitchingProtocols)
	if out, _ := c.rest(); out != big {
		t.Errorf("got %d of %d bytes", len(out), len(big))
	}
	f.eventually(t, "attach ended <nil>")
}

func TestAttachWithoutUpgrade(t *testing.T) {
	_, c := box(t, true, false, "both")
	c.send(attachOut + "Host: d\r\n\r\n")
	res := c.answer(http.StatusOK)
	if got := res.Header.Get("Content-Type"); got != "application/vnd.docker.raw-stream" {
		t.Errorf("content type %q", got)
	}
	if out, errs := c.rest(); out != "out\n" || errs != "err\n" {
		t.Errorf("got %q and %q", out, errs)
	}
}

// TestAttachChunkedBody sends input as the body of an ordinary request.
func TestAttachChunkedBody(t *testing.T) {
	_, c := box(t, true, false, "cat")
	c.send(attachAll + "Host: d\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nabc\n\r\n0\r\n\r\n")
	c.answer(http.StatusOK)
	if out, _ := c.rest(); out != "abc\n" {
		t.Errorf("got %q", out)
	}
}

func TestAttachStreamTypes(t *testing.T) {
	for _, test := range []struct {
		version string
		tty     bool
		want    string
	}{
		{"1.44", false, "application/vnd.docker.multiplexed-stream"},
		{"1.44", true, "application/vnd.docker.raw-stream"},
		{"1.41", false, "application/vnd.docker.raw-stream"},
	} {
		t.Run(fmt.Sprintf("%s-%v", test.version, test.tty), func(t *testing.T) {
			_, c := box(t, true, test.tty, "echo", "x")
			c.send("%s", strings.Replace(attachOut, "1.44", test.version, 1)+upgrade)
			if got := c.answer(101).Header.Get("Content-Type"); got != test.want {
				t.Errorf("content type %q, want %q", got, test.want)
			}
			if test.tty {
				if out, err := io.ReadAll(c.r); string(out) != "x\n" || err != nil {
					t.Errorf("got %q, %v", out, err)
				}
			} else if out, _ := c.rest(); out != "x\n" {
				t.Errorf("got %q", out)
			}
		})
	}
}

func TestAttachOneStream(t *testing.T) {
	_, c := box(t, true, false, "both")
	c.send("POST /containers/box/attach?stream=1&logs=1&stderr=1 HTTP/1.1\r\n" + upgrade)
	c.answer(101)
	if out, errs := c.rest(); out != "" || errs != "err\n" {
		t.Errorf("got %q and %q", out, errs)
	}
}

// TestAttachHalfCloseIsNoHangup ends the input of a container that does not care: its output must still come.
func TestAttachHalfCloseIsNoHangup(t *testing.T) {
	for _, attach := range []string{attachAll, attachOut} {
		t.Run("", func(t *testing.T) {
			f, c := box(t, true, false, "sleep")
			c.send("%s", attach+upgrade)
			c.answer(101)
			c.closeWrite()
			time.Sleep(50 * time.Millisecond)
			if err := f.ContainerKill(t.Context(), "box", "TERM"); err != nil {
				t.Fatal(err)
			}
			if out, _ := c.rest(); out != "signal TERM\n" {
				t.Errorf("got %q", out)
			}
			f.eventually(t, "attach ended <nil>")
		})
	}
}

// TestAttachHangup closes the connection of a container that writes nothing: only a watch can notice.
func TestAttachHangup(t *testing.T) {
	for _, attach := range []string{attachAll, attachOut} {
		t.Run("", func(t *testing.T) {
			f, c := box(t, true, false, "sleep")
			c.send("%s", attach+upgrade)
			c.answer(101)
			_ = c.Close()
			f.eventually(t, "attach ended context canceled")
		})
	}
}

// TestAttachHangupAfterInput sends a line and leaves at once: the line must arrive.
func TestAttachHangupAfterInput(t *testing.T) {
	f, c := box(t, true, false, "cat")
	c.send(attachAll + upgrade)
	c.answer(101)
	c.send("last words\n")
	_ = c.Close()
	for range 400 {
		var out bytes.Buffer
		b, _ := f.find("box")
		if _ = b.p.follow(t.Context(), 0, false, &out, io.Discard); out.String() == "last words\n" {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatal("the input was lost")
}

// TestAttachStuckClient neither reads nor closes for a while, then closes: the Backend's write must end.
func TestAttachStuckClient(t *testing.T) {
	f, c := box(t, true, false, "flood")
	c.send(attachOut + upgrade)
	c.answer(101)
	time.Sleep(300 * time.Millisecond) // the socket's buffers are full now
	_ = c.Close()
	f.eventuallyLike(t, "attach ended ")
	b, _ := f.find("box")
	b.p.finish(0)
}

// TestAttachUnreadInput keeps sending after the process has ended: the output's end must not be lost to a reset.
func TestAttachUnreadInput(t *testing.T) {
	f, c := box(t, true, false, "sleep")
	c.send(attachAll + upgrade)
	c.answer(101)
	c.send("%s", strings.Repeat("x", 1000))
	if err := f.ContainerKill(t.Context(), "box", "TERM"); err != nil {
		t.Fatal(err)
	}
	time.Sleep(50 * time.Millisecond)
	c.send("%s", strings.Repeat("y", 1000))
	if out, _ := c.rest(); out != "signal TERM\n" {
		t.Errorf("got %q", out)
	}
}

func TestAttachTCP(t *testing.T) {
	f, c := box(t, true, false, "cat")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: New(f, Options{})}
	go func() { _ = s.Serve(l) }()
	t.Cleanup(func() { _ = s.Close() })
	_ = c.Close()

	c = dialRaw(t, "tcp", l.Addr().String())
	c.send(attachAll + upgrade + "over tcp\n")
	c.answer(101)
	gone := dialRaw(t, "tcp", l.Addr().String())
	gone.send(attachOut + upgrade)
	gone.answer(101)
	_ = gone.Conn.(*net.TCPConn).SetLinger(0) // a reset
	_ = gone.Close()
	f.eventuallyLike(t, "attach ended ") // by the watch, or by a write that came first
	c.closeWrite()
	if out, _ := c.rest(); out != "over tcp\n" {
		t.Errorf("got %q", out)
	}
}

func TestAttachErrors(t *testing.T) {
	_, c := box(t, false, false, "cat")
	c.send("POST /containers/nope/attach HTTP/1.1\r\n" + upgrade)
	res := c.answer(http.StatusNotFound)
	body, _ := io.ReadAll(res.Body)
	if string(body) != `{"message":"No such container: nope"}`+"\n" {
		t.Errorf("got %s", body)
	}
	// The connection is still good for another request.
	c.send("GET /_ping HTTP/1.1\r\nHost: d\r\n\r\n")
	c.answer(http.StatusOK)
}

func TestAttachWebSocket(t *testing.T) {
	f, c := box(t, false, false, "cat")
	config, err := websocket.NewConfig("ws://d/containers/box/attach/ws?stream=1&stdin=1&stdout=1", "http://d")
	if err != nil {
		t.Fatal(err)
	}
	ws, err := websocket.NewClient(config, c.Conn)
	if err != nil {
		t.Fatal(err)
	}
	f.start(t)
	if _, err := ws.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 64)
	n, err := ws.Read(buf)
	if err != nil || string(buf[:n]) != "hello" {
		t.Fatalf("got %q, %v", buf[:n], err)
	}
	_ = ws.Close()
	f.eventuallyLike(t, "attach ended ")
}

// exec makes an exec in box and sends its start.
func (c *rawConn) exec(f *fake, tty bool, body string, cmd ...string) {
	c.t.Helper()
	id, err := f.ExecCreate(c.t.Context(), "box", container.ExecCreateRequest{
		Cmd: cmd, Tty: tty, AttachStdin: true, AttachStdout: true, AttachStderr: true})
	if err != nil {
		c.t.Fatal(err)
	}
	c.send("POST /v1.44/exec/%s/start HTTP/1.1\r\nHost: d\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n"+
		"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", id, len(body), body)
}

func TestExecStreams(t *testing.T) {
	f, c := box(t, true, false, "sleep")
	c.exec(f, false, "{\"Detach\":false}\n", "cat")
	c.answer(101)
	c.send("to cat")
	c.closeWrite()
	if out, _ := c.rest(); out != "to cat" {
		t.Errorf("got %q", out)
	}
}

func TestExecHangup(t *testing.T) {
	f, c := box(t, true, false, "sleep")
	c.exec(f, false, "", "sleep")
	c.answer(101)
	_ = c.Close()
	f.eventually(t, "exec ended context canceled")
}

// TestExecStartFailure: the error of a process that cannot start is in the stream, where clients show it.
func TestExecStartFailure(t *testing.T) {
	f, c := box(t, true, false, "sleep")
	c.exec(f, false, "{}", "missing")
	c.answer(101)
	if out, _ := c.rest(); !strings.Contains(out, "executable file not found in $PATH\r\n") {
		t.Errorf("got %q", out)
	}
}

func TestExecConflict(t *testing.T) {
	f, c := box(t, true, false, "sleep")
	c.exec(f, false, "{}", "conflict")
	c.answer(http.StatusConflict)
}

func TestWait(t *testing.T) {
	f, c := box(t, false, false, "exit", "5")
	c.send("POST /containers/box/wait?condition=next-exit HTTP/1.1\r\nHost: d\r\n\r\n")
	res := c.answer(http.StatusOK) // before the container has even started
	f.start(t)
	body, err := io.ReadAll(res.Body)
	if string(body) != `{"StatusCode":5}`+"\n" || err != nil {
		t.Errorf("got %s, %v", body, err)
	}
}

func TestWaitHangup(t *testing.T) {
	f, c := box(t, false, false, "sleep")
	c.send("POST /containers/box/wait HTTP/1.1\r\nHost: d\r\n\r\n")
	c.answer(http.StatusOK)
	_ = c.Close()
	f.eventually(t, "wait cancelled")
}

func TestLogsFollow(t *testing.T) {
	f, c := box(t, true, false, "sleep")
	c.send("GET /v1.44/containers/box/logs?follow=1&stdout=1&stderr=1&tail=5&since=1.5 HTTP/1.1\r\nHost: d\r\n\r\n")
	res := c.answer(http.StatusOK) // before the first line
	if got := res.Header.Get("Content-Type"); got != "application/vnd.docker.multiplexed-stream" {
		t.Errorf("content type %q", got)
	}
	b, _ := f.find("box")
	for _, line := range []string{"first", "second"} {
		b.p.print(true, "%s", line)
		frame := make([]byte, 8+len(line))
		if _, err := io.ReadFull(res.Body, frame); err != nil || string(frame[8:]) != line || frame[0] != 2 {
			t.Fatalf("got %q, %v", frame, err)
		}
	}
	_ = c.Close()
	f.eventually(t, "logs ended context canceled")
}

func TestEventsHangup(t *testing.T) {
	f, c := box(t, false, false, "sleep")
	c.send("GET /v1.52/events HTTP/1.1\r\nHost: d\r\nAccept: application/json-seq\r\n\r\n")
	res := c.answer(http.StatusOK)
	line, err := bufio.NewReader(res.Body).ReadString('\n')
	if err != nil || !strings.HasPrefix(line, "\x1e{\"status\":\"start\"") {
		t.Fatalf("got %q, %v", line, err)
	}
	_ = c.Close()
	f.eventually(t, "events ended")
}

// TestKeepAlive makes many requests on one connection, failed ones among them.
func TestKeepAlive(t *testing.T) {
	_, c := box(t, true, false, "echo", "x")
	for range 3 {
		for _, request := range []struct {
			text   string
			status int
		}{
			{"GET /v1.44/containers/box/json HTTP/1.1\r\nHost: d\r\n\r\n", 200},
			{"POST /containers/create HTTP/1.1\r\nHost: d\r\nContent-Type: text/plain\r\nContent-Length: 3\r\n\r\nabc", 400},
			{"POST /nowhere HTTP/1.1\r\nHost: d\r\nContent-Length: 3\r\n\r\nabc", 404},
			{"GET /containers/box/logs?stdout=1 HTTP/1.1\r\nHost: d\r\n\r\n", 200},
			{"POST /containers/box/restart HTTP/1.1\r\nHost: d\r\nContent-Length: 0\r\n\r\n", 204},
		} {
			c.send("%s", request.text)
			if _, err := io.Copy(io.Discard, c.answer(request.status).Body); err != nil {
				t.Fatal(err)
			}
		}
	}
}
