package node

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/moby/moby/api/types/container"

	"github.com/cradlevm/cradle/api"
	"github.com/cradlevm/cradle/api/wire"
	"github.com/cradlevm/cradle/dockerapi"
	"github.com/cradlevm/cradle/sandbox/sandboxtest"
)

// stepper has exec programs "steps" that print a long line at each step and end with 7 when there are no more.
func (h *house) stepper() chan struct{} {
	more := make(chan struct{})
	h.driver.Programs["steps"] = func(p *sandboxtest.Process) int {
		for range more {
			p.Print(api.Stdout, strings.Repeat("x", api.MaxOutputChunk))
		}
		return 7
	}
	return more
}

// ends are the ways in which a daemon does.
func (h *house) ends() map[string]func() {
	return map[string]func(){"crash": h.crash, "stop": h.stop}
}

// execFiles are the records of the container's execs.
func (h *house) execFiles(id string) []string {
	files, _ := filepath.Glob(h.path("root", "containers", id, "execs", "*"))
	return files
}

// What runs in a container goes on when its daemon ends: its output is read, its end is seen, it can be inspected.
func TestExecOutlivesDaemon(t *testing.T) {
	for _, how := range []string{"crash", "stop"} {
		t.Run(how, func(t *testing.T) {
			inBubble(t, func(t *testing.T, h *house) {
				ctx, id, more := context.Background(), h.run("a", "sleep"), h.stepper()
				e := h.exec("a", container.ExecCreateRequest{
					Cmd: []string{"steps", "x"}, AttachStdout: true, User: "me", Env: []string{"K=V"}, DetachKeys: "a",
				})
				done := h.begin(ctx, e, newClient().streams)
				more <- struct{}{}
				synctest.Wait()
				before, err := h.ExecInspect(ctx, e)
				if err != nil || !before.Running || before.Pid != 7 || before.ProcessConfig.User != "me" {
					t.Fatalf("%+v, %v", before, err)
				}
				h.ends()[how]()
				<-done
				h.open()
				actions := h.actions(id)
				after, err := h.ExecInspect(ctx, e)
				if err != nil || !after.Running || after.Pid != 7 || after.ExitCode != nil || !after.OpenStdout || after.OpenStdin ||
					string(after.DetachKeys) != "a" || after.ProcessConfig.Entrypoint != "steps" ||
					!slices.Equal(after.ProcessConfig.Arguments, []string{"x"}) || after.ProcessConfig.User != "me" {
					t.Errorf("%+v, %v", after, err)
				}
				if r, _ := h.ContainerInspect(ctx, "a", false); !slices.Equal(r.ExecIDs, []string{e}) {
					t.Errorf("the container has execs %v", r.ExecIDs)
				}
				wantConflict(t, <-h.begin(ctx, e, newClient().streams)) // it runs already
				for range 2 * api.OutputRing / api.MaxOutputChunk {
					more <- struct{}{}
					synctest.Wait()
				}
				if behind := h.driver.Machine(id).Exec(id, e).Unacknowledged(); behind > 2*acknowledgeEvery {
					t.Errorf("%d bytes of output are not acknowledged: it would stall", behind)
				}
				close(more)
				synctest.Wait()
				h.wantExec(e, false, 7)
				if got := actions(); !slices.Equal(got, []string{"exec_die"}) {
					t.Errorf("events %v", got)
				}
				if h.driver.Machine(id).Exec(id, e) != nil {
					t.Error("the agent still knows it")
				}
				h.restart()
				h.wantExec(e, false, 7)
				time.Sleep(execMemory + time.Second)
				_, err = h.ExecInspect(ctx, e)
				wantNotFound(t, err)
				if left := h.execFiles(id); len(left) > 0 {
					t.Errorf("left: %v", left)
				}
			})
		})
	}
}

// What happened while no daemon ran is known to the next one.
func TestExecWhileNoDaemon(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		ctx, id, more := context.Background(), h.run("a", "sleep"), h.stepper()
		detached := container.ExecStartRequest{Detach: true}
		exits := h.exec("a", container.ExecCreateRequest{Cmd: []string{"steps"}})
		reads := h.exec("a", container.ExecCreateRequest{Cmd: []string{"cat"}, AttachStdin: true})
		runs := h.exec("a", container.ExecCreateRequest{Cmd: []string{"deaf"}})
		waits := h.exec("a", container.ExecCreateRequest{Cmd: []string{"exit", "3"}})
		for _, e := range []string{exits, reads, runs} {
			if err := h.ExecStart(ctx, e, detached, nil); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		h.crash()
		close(more)
		synctest.Wait()
		h.open()
		synctest.Wait()
		h.wantExec(exits, false, 7)
		h.wantExec(reads, false, 0) // its client has gone
		h.wantExec(runs, true, 0)
		if e, err := h.ExecInspect(ctx, waits); err != nil || e.Running || e.ExitCode != nil {
			t.Errorf("%+v, %v", e, err)
		}
		if err := <-h.begin(ctx, waits, newClient().streams); err != nil { // a client that comes late starts it
			t.Error(err)
		}
		h.wantExec(waits, false, 3)

		// Now the container ends as well.
		unstarted := h.exec("a", container.ExecCreateRequest{Cmd: []string{"true"}})
		late := make(chan struct{})
		h.driver.Programs["late"] = func(*sandboxtest.Process) int { <-late; return 9 }
		exits = h.exec("a", container.ExecCreateRequest{Cmd: []string{"late"}})
		if err := h.ExecStart(ctx, exits, detached, nil); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		h.crash()
		close(late)
		synctest.Wait()
		h.driver.Machine(id).Process(id).Signal(15)
		synctest.Wait()
		h.open()
		h.wait("a", container.WaitConditionNotRunning)
		h.wantState("a", container.StateExited, 143)
		h.torn("a")
		h.wantExec(exits, false, 9)
		h.wantExec(runs, false, 137)
		_, err := h.ExecInspect(ctx, unstarted)
		wantNotFound(t, err)
		h.restart()
		h.wantExec(exits, false, 9)
	})
}

// A VM that went while no daemon ran has taken its execs along.
func TestExecOfLostMachine(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		ctx, id := context.Background(), h.run("a", "sleep")
		runs := h.exec("a", container.ExecCreateRequest{Cmd: []string{"deaf"}})
		unstarted := h.exec("a", container.ExecCreateRequest{Cmd: []string{"true"}})
		done := h.begin(ctx, runs, newClient().streams)
		synctest.Wait()
		m := h.driver.Machine(id)
		h.crash()
		<-done
		m.Die(nil)
		h.open()
		h.wantExec(runs, false, 137)
		_, err := h.ExecInspect(ctx, unstarted)
		wantNotFound(t, err)
	})
}

// A start that a crash cut short may have come to the agent, or not, or may be on its way.
func TestExecStartCutShort(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		ctx, id := context.Background(), h.run("a", "sleep")
		var cut []string
		for range 2 {
			e := h.exec("a", container.ExecCreateRequest{Cmd: []string{"exit", "4"}})
			h.Node.execs[e].note(execRecord{Begun: true})
			cut = append(cut, e)
		}
		m := h.driver.Machine(id)
		h.crash()
		h.open()
		time.Sleep(time.Second)
		m.StartExec(id, cut[0], "exit", "4") // what was on its way
		time.Sleep(time.Minute)
		h.wantExec(cut[0], false, 4)
		if e, err := h.ExecInspect(ctx, cut[1]); err != nil || e.Running || e.ExitCode != nil {
			t.Errorf("%+v, %v", e, err)
		}
		if err := <-h.begin(ctx, cut[1], newClient().streams); err != nil { // it never ran, and can be started
			t.Error(err)
		}
		h.wantExec(cut[1], false, 4)
	})
}

// Records that a crash cut short harm nothing, and one that cannot be written keeps nobody from the container.
func TestExecRecordTorn(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		ctx, id := context.Background(), h.run("a", "sleep")
		torn := h.exec("a", container.ExecCreateRequest{Cmd: []string{"true"}})
		half := h.exec("a", container.ExecCreateRequest{Cmd: []string{"exit", "5"}})
		dir := h.path("root", "containers", id, "execs")
		h.crash()
		if err := os.Truncate(filepath.Join(dir, torn), 20); err != nil {
			t.Fatal(err)
		}
		f, err := os.OpenFile(filepath.Join(dir, half), os.O_APPEND|os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		f.WriteString(`{"Ended":"2026-01-01T00:00:00Z","Co`)
		f.Close()
		h.open()
		_, err = h.ExecInspect(ctx, torn)
		wantNotFound(t, err)
		if err := <-h.begin(ctx, half, newClient().streams); err != nil {
			t.Error(err)
		}
		h.wantExec(half, false, 5)
		synctest.Wait()
		h.crash()
		h.open()
		h.wantExec(half, false, 5)
		if left := h.execFiles(id); len(left) != 1 {
			t.Errorf("left: %v", left)
		}

		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(dir, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		e := h.exec("a", container.ExecCreateRequest{Cmd: []string{"exit", "6"}})
		if err := <-h.begin(ctx, e, newClient().streams); err != nil {
			t.Error(err)
		}
		h.wantExec(e, false, 6)
		if !strings.Contains(h.log.String(), "keep exec") {
			t.Error("the daemon's log says nothing of it")
		}
	})
}

// A container has so many execs and no more; those that have ended make room.
func TestExecsAreBounded(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		ctx, id := context.Background(), h.run("a", "sleep")
		first := h.exec("a", container.ExecCreateRequest{Cmd: []string{"true"}})
		if err := <-h.begin(ctx, first, newClient().streams); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		for range maxExecs {
			h.exec("a", container.ExecCreateRequest{Cmd: []string{"true"}})
		}
		_, err := h.ExecInspect(ctx, first)
		wantNotFound(t, err)
		_, err = h.ExecCreate(ctx, "a", container.ExecCreateRequest{Cmd: []string{"true"}})
		wantConflict(t, err)
		if n := len(h.execFiles(id)); n != maxExecs {
			t.Errorf("%d records", n)
		}
		h.run("b", "sleep")
		_, err = h.ExecCreate(ctx, "b", container.ExecCreateRequest{Cmd: []string{strings.Repeat("x", maxExecBytes+1)}})
		wantConflict(t, err)
	})
}

// Healthchecks do not pile up, also not those that a daemon leaves behind.
func TestProbesDoNotPileUp(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		stall := make(chan struct{})
		h.driver.Programs["probe"] = func(p *sandboxtest.Process) int {
			select {
			case <-stall:
			case <-p.Killed():
			}
			return 0
		}
		id := h.run("a", "sleep", probed(container.HealthConfig{Test: []string{"CMD", "probe"}, Interval: time.Second, Timeout: time.Hour}))
		m := h.driver.Machine(id)
		for i := range 5 {
			time.Sleep(1500 * time.Millisecond)
			if n := len(h.execFiles(id)); n != 1 {
				t.Errorf("round %d: %d records", i, n)
			}
			if n := m.Processes(id); n != 2 {
				t.Errorf("round %d: %d processes", i, n)
			}
			h.crash()
			h.open()
			synctest.Wait()
			if n := m.Processes(id); n != 1 {
				t.Errorf("round %d: %d processes after the restart", i, n)
			}
		}
		close(stall)
		time.Sleep(time.Minute)
		synctest.Wait()
		h.mu.Lock()
		known := len(h.execs)
		h.mu.Unlock()
		if n := len(h.execFiles(id)); n+known > 0 {
			t.Errorf("%d records, %d execs known", n, known)
		}
	})
}

// An exec that says its last words as its container ends is heard, though the VM goes at once.
func TestExecLastWords(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		h.driver.Programs["words"] = func(p *sandboxtest.Process) int {
			p.Print(api.Stdout, "bye")
			return 11
		}
		release := make(chan struct{})
		h.driver.Programs["until"] = func(*sandboxtest.Process) int { <-release; return 0 }
		h.run("a", "until", autoRemove)
		e := h.exec("a", container.ExecCreateRequest{Cmd: []string{"words"}, AttachStdout: true})
		// The agent's answers about the exec come when the container has ended already.
		ended := make(chan struct{})
		h.driver.Fault(func(_ *sandboxtest.Machine, call *wire.Call) bool {
			var p api.ProcessRef
			if call.Params(&p) == nil && p.Exec == e && call.Method != api.MethodExec {
				<-ended
			}
			return false
		})
		c := newClient()
		done := h.begin(context.Background(), e, c.streams)
		synctest.Wait()
		ch := h.waiting("a", container.WaitConditionNotRunning)
		close(release)
		h.result(ch)
		close(ended)
		if err := <-done; err != nil || c.out.String() != "bye" {
			t.Errorf("%q, %v", c.out, err)
		}
	})
}

// A client that does not read keeps neither the container nor its VM.
func TestExecStalledClientAtTheEnd(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		h.run("a", "sleep", autoRemove)
		e := h.exec("a", container.ExecCreateRequest{Cmd: []string{"lines", "9"}, AttachStdout: true})
		stall := stalled{make(chan struct{})}
		done := h.begin(context.Background(), e, dockerapi.Streams{Stdout: stall, Stderr: stall})
		synctest.Wait()
		if err := h.ContainerStop(context.Background(), "a", "", nil); err != nil {
			t.Fatal(err)
		}
		if code := h.wait("a", container.WaitConditionRemoved); code != 143 {
			t.Errorf("exit code %d", code)
		}
		h.noMachine()
		close(stall.release)
		<-done
	})
}

// A daemon that dies before it was told an exec's process id leaves it to the next one to ask for it.
func TestExecWhoseStartWasNotHeardOf(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		ctx, id, more := context.Background(), h.run("a", "sleep"), h.stepper()
		e := h.exec("a", container.ExecCreateRequest{Cmd: []string{"steps", "x"}})
		done := h.begin(ctx, e, newClient().streams)
		synctest.Wait()
		h.crash()
		<-done
		file := h.execFiles(id)[0]
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var kept []string
		for _, line := range strings.SplitAfter(string(text), "\n") {
			if !strings.Contains(line, `"PID"`) {
				kept = append(kept, line)
			}
		}
		if len(kept) == len(strings.SplitAfter(string(text), "\n")) {
			t.Fatalf("its id was not kept: %s", text)
		}
		if err := os.WriteFile(file, []byte(strings.Join(kept, "")), 0o600); err != nil {
			t.Fatal(err)
		}
		for _, running := range []bool{true, false} {
			h.open() // who inspects right away is answered when the agent has said what it knows
			if !running {
				close(more)
				synctest.Wait()
			}
			if got, err := h.ExecInspect(ctx, e); err != nil || got.Running != running || got.Pid != 7 {
				t.Errorf("%+v, %v", got, err)
			}
			h.stop()
		}
		h.open()
	})
}
