package node

import (
	"context"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/moby/moby/api/types/container"

	"github.com/cradlevm/cradle/dockerapi"
)

// exec makes an exec of a container.
func (h *house) exec(name string, r container.ExecCreateRequest) string {
	h.t.Helper()
	id, err := h.ExecCreate(context.Background(), name, r)
	if err != nil {
		h.t.Fatal(err)
	}
	return id
}

// begin starts an exec and returns what receives its end.
func (h *house) begin(ctx context.Context, id string, s dockerapi.Streams) <-chan error {
	done := make(chan error, 1)
	go func() {
		done <- h.ExecStart(ctx, id, container.ExecStartRequest{}, func() (dockerapi.Streams, error) { return s, nil })
	}()
	return done
}

func (h *house) wantExec(id string, running bool, code int) {
	h.t.Helper()
	e, err := h.ExecInspect(context.Background(), id)
	if err != nil {
		h.t.Fatal(err)
	}
	if e.Running != running || (!running && (e.ExitCode == nil || *e.ExitCode != code)) {
		h.t.Errorf("exec is running=%v, %v, want %v, %d", e.Running, e.ExitCode, running, code)
	}
}

func TestExec(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		ctx := context.Background()
		h.run("a", "sleep")
		c := newClient()
		id := h.exec("a", container.ExecCreateRequest{Cmd: []string{"cat"}, AttachStdin: true, AttachStdout: true})
		done := h.begin(ctx, id, c.streams)
		io.WriteString(c.in, "through")
		synctest.Wait()
		h.wantExec(id, true, 0)
		wantConflict(t, <-h.begin(ctx, id, c.streams)) // once only
		c.in.Close()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		h.wantExec(id, false, 0)
		if c.out.String() != "through" {
			t.Errorf("output %q", c.out)
		}
		wantConflict(t, <-h.begin(ctx, id, c.streams))

		id = h.exec("a", container.ExecCreateRequest{Cmd: []string{"missing"}})
		if err := <-h.begin(ctx, id, c.streams); err == nil {
			t.Error("a missing command starts")
		}
		h.wantExec(id, false, 127)
		time.Sleep(2 * execMemory)
		_, err := h.ExecInspect(ctx, id)
		wantNotFound(t, err)
	})
}

// A client that hangs up leaves the process to itself.
func TestExecHangUp(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		ctx, hangUp := context.WithCancel(context.Background())
		h.run("a", "sleep")
		id := h.exec("a", container.ExecCreateRequest{Cmd: []string{"lines", "100"}})
		done := h.begin(ctx, id, newClient().streams)
		synctest.Wait()
		hangUp()
		if err := <-done; err != nil {
			t.Error(err)
		}
		h.wantExec(id, true, 0)
		if err := h.ContainerStop(context.Background(), "a", "", nil); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		h.wantExec(id, false, 137)
	})
}

// The end of the container is the end of its execs, started or not.
func TestExecEndsWithContainer(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		ctx := context.Background()
		id := h.run("a", "sleep")
		running := h.exec("a", container.ExecCreateRequest{Cmd: []string{"deaf"}})
		unstarted := h.exec("a", container.ExecCreateRequest{Cmd: []string{"true"}})
		done := h.begin(ctx, running, newClient().streams)
		synctest.Wait()
		h.driver.Machine(id).Die(io.ErrUnexpectedEOF)
		if err := <-done; err != nil {
			t.Error(err)
		}
		h.wantExec(running, false, 137)
		h.torn("a")
		_, err := h.ExecInspect(ctx, unstarted)
		wantNotFound(t, err)
		_, err = h.ExecCreate(ctx, "a", container.ExecCreateRequest{Cmd: []string{"true"}})
		wantConflict(t, err)
	})
}

// A stalled client does not keep the daemon from its end.
func TestExecAtClose(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		h.run("a", "sleep")
		id := h.exec("a", container.ExecCreateRequest{Cmd: []string{"sleep"}})
		done := h.begin(context.Background(), id, newClient().streams)
		synctest.Wait()
		h.restart()
		<-done
		h.wantState("a", container.StateRunning, 0)
	})
}

// A session that breaks loses nothing of an exec.
func TestExecBrokenSession(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		id := h.run("a", "sleep")
		c := newClient()
		e := h.exec("a", container.ExecCreateRequest{Cmd: []string{"lines", "50"}})
		done := h.begin(context.Background(), e, c.streams)
		synctest.Wait()
		h.driver.Machine(id).Break()
		time.Sleep(time.Second)
		h.wantExec(e, true, 0)
		if err := h.ContainerStop(context.Background(), "a", "", nil); err != nil {
			t.Fatal(err)
		}
		<-done
		if c.out.String() != numbers(50) {
			t.Errorf("output %q", c.out)
		}
	})
}
