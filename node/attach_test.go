package node

import (
	"context"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/moby/moby/api/types/container"

	"github.com/cradlevm/cradle/api"
	"github.com/cradlevm/cradle/dockerapi"
	"github.com/cradlevm/cradle/sandbox/sandboxtest"
)

func interactive(r *container.CreateRequest) { r.Config.OpenStdin, r.Config.StdinOnce = true, true }

func interactiveTTY(r *container.CreateRequest) { r.Config.OpenStdin, r.Config.Tty = true, true }

var everything = dockerapi.AttachOptions{Stream: true, Stdin: true, Stdout: true, Stderr: true} //nolint:gochecknoglobals // a constant

// attach begins an attachment and returns what receives its end.
func (h *house) attach(ctx context.Context, name string, o dockerapi.AttachOptions, s dockerapi.Streams) <-chan error {
	h.t.Helper()
	serve, _, err := h.ContainerAttach(ctx, name, o)
	if err != nil {
		h.t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- serve(s) }()
	return done
}

func TestAttachBeforeStart(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		ctx, hangUp := context.WithCancel(context.Background())
		defer hangUp()
		h.create("a", "cat", interactive)
		one, two := newClient(), newClient()
		ends := []<-chan error{h.attach(ctx, "a", everything, one.streams)}
		o := everything
		o.Stdin = false
		ends = append(ends, h.attach(ctx, "a", o, two.streams))
		exit := h.waiting("a", container.WaitConditionNextExit)
		h.start("a")
		io.WriteString(one.in, "some words")
		one.in.Close() // StdinOnce: the end of the client's input is the container's
		if code := h.result(exit); code != 0 {
			t.Errorf("exit code %d", code)
		}
		for i, end := range ends {
			if err := <-end; err != nil {
				t.Errorf("attachment %d: %v", i, err)
			}
		}
		if one.out.String() != "some words" || two.out.String() != "some words" {
			t.Errorf("output %q and %q", one.out, two.out)
		}
		if got := h.output("a"); got != "some words" {
			t.Errorf("log %q", got)
		}
	})
}

// stalled is a client that reads nothing until it is let go.
type stalled struct{ release chan struct{} }

func (s stalled) Write(p []byte) (int, error) { <-s.release; return len(p), nil }

// A client that reads nothing holds the output up, but neither the exit nor the others' last lines.
func TestStalledClient(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		ctx := context.Background()
		line := strings.Repeat("x", 1000) + "\n"
		h.driver.Programs["much"] = func(p *sandboxtest.Process) int {
			for range 3000 {
				p.Print(api.Stdout, line)
			}
			return 3
		}
		h.create("a", "much")
		s := stalled{make(chan struct{})}
		bad := h.attach(ctx, "a", everything, dockerapi.Streams{Stdout: s, Stderr: s})
		good := newClient()
		end := h.attach(ctx, "a", dockerapi.AttachOptions{Stream: true, Stdout: true}, good.streams)
		h.start("a")
		if code := h.wait("a", container.WaitConditionNotRunning); code != 3 {
			t.Errorf("exit code %d", code)
		}
		if err := <-end; err != nil {
			t.Error(err)
		}
		if n := len(good.out.String()); n != 3000*len(line) {
			t.Errorf("the other client got %d bytes of %d", n, 3000*len(line))
		}
		if n := len(h.output("a")); n != 3000*len(line) {
			t.Errorf("the log has %d bytes of %d", n, 3000*len(line))
		}
		close(s.release)
		<-bad
	})
}

// A client that has gone holds nothing up.
func TestGoneClient(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		ctx, hangUp := context.WithCancel(context.Background())
		h.create("a", "lines 10")
		s := stalled{make(chan struct{})}
		end := h.attach(ctx, "a", everything, dockerapi.Streams{Stdout: s, Stderr: s})
		h.start("a")
		synctest.Wait()
		hangUp()
		close(s.release)
		<-end
		c, _ := h.find("a")
		c.mu.Lock()
		n := len(c.attached)
		c.mu.Unlock()
		if n != 0 {
			t.Errorf("%d attachments are left", n)
		}
		// Nor one whose streams were never asked for.
		ctx, hangUp = context.WithCancel(context.Background())
		if _, _, err := h.ContainerAttach(ctx, "a", everything); err != nil {
			t.Fatal(err)
		}
		hangUp()
		synctest.Wait()
		c.mu.Lock()
		n = len(c.attached)
		c.mu.Unlock()
		if n != 0 {
			t.Errorf("%d attachments are left", n)
		}
	})
}

func TestDetachKeys(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		h.run("a", "cat", interactiveTTY)
		for keys, typed := range map[string]string{"": "\x10\x11", "ctrl-x,y": "\x18y"} {
			o := everything
			o.DetachKeys = keys
			c := newClient()
			end := h.attach(context.Background(), "a", o, c.streams)
			io.WriteString(c.in, "word"+typed)
			if err := <-end; err != nil {
				t.Errorf("keys %q: %v", keys, err)
			}
			h.wantState("a", container.StateRunning, 0)
		}
		synctest.Wait()
		if got := h.output("a"); got != "wordword" {
			t.Errorf("the container got %q", got)
		}
		o := everything
		o.DetachKeys = "nonsense"
		if _, _, err := h.ContainerAttach(context.Background(), "a", o); err == nil {
			t.Error("nonsense is a detach sequence")
		}
	})
}

// A start that fails ends the attachments that waited for it.
func TestAttachToFailedStart(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		ctx, hangUp := context.WithCancel(context.Background())
		defer hangUp()
		h.create("a", "missing", interactive)
		c := newClient()
		end := h.attach(ctx, "a", everything, c.streams)
		if err := h.ContainerStart(context.Background(), "a"); err == nil {
			t.Error("the start succeeds")
		}
		if err := <-end; err != nil {
			t.Error(err)
		}
		h.wantState("a", container.StateCreated, 127)
	})
}

// The daemon's end ends attachments and the waiting for a start.
func TestAttachAtClose(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		ctx, hangUp := context.WithCancel(context.Background())
		defer hangUp()
		h.run("a", "lines 3")
		h.create("b", "sleep", interactive)
		a, b := newClient(), newClient()
		ends := []<-chan error{h.attach(ctx, "a", everything, a.streams), h.attach(ctx, "b", everything, b.streams)}
		synctest.Wait()
		h.restart()
		for _, end := range ends {
			if err := <-end; err != nil {
				t.Error(err)
			}
		}
		h.wantState("a", container.StateRunning, 0)
	})
}

func TestLogsFollow(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		ctx := context.Background()
		h.run("a", "lines 5")
		serve, _, err := h.ContainerLogs(ctx, "a", dockerapi.LogsOptions{Stdout: true, Stderr: true, Follow: true, Tail: -1})
		if err != nil {
			t.Fatal(err)
		}
		var out syncBuffer
		done := make(chan error, 1)
		go func() { done <- serve(&out, &out) }()
		time.Sleep(time.Hour)
		select {
		case err := <-done:
			t.Fatalf("it ends before the container does: %v", err)
		default:
		}
		if err := h.ContainerStop(ctx, "a", "", nil); err != nil {
			t.Fatal(err)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
		if out.String() != numbers(5) {
			t.Errorf("followed %q", out.String())
		}
		// Who comes after the end does not wait.
		if err := serve(&out, &out); err != nil {
			t.Error(err)
		}
	})
}

func TestStdinAndSession(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		id := h.run("a", "lines 3")
		synctest.Wait()
		for range 5 { // output and wait go on in the next session
			h.driver.Machine(id).Break()
			time.Sleep(time.Second)
		}
		if err := h.ContainerStop(context.Background(), "a", "", nil); err != nil {
			t.Fatal(err)
		}
		h.wantState("a", container.StateExited, 143)
		if got := h.output("a"); got != numbers(3) {
			t.Errorf("log %q", got)
		}
	})
}
