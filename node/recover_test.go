package node

import (
	"context"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/moby/moby/api/types/container"

	"github.com/cradlevm/cradle/api"
	"github.com/cradlevm/cradle/sandbox/sandboxtest"
)

// crash ends the daemon without its knowing: what it would still do, it does to a store that is closed.
func (h *house) crash() {
	h.t.Helper()
	if err := h.store.Close(); err != nil {
		h.t.Fatal(err)
	}
	n := h.Node
	n.mu.Lock()
	n.closed = true
	n.mu.Unlock()
	n.stop()
	n.running.Wait()
	for _, c := range n.all() {
		c.closeLog()
		if c.run != nil {
			c.run.vm.Disconnect()
		}
	}
	h.Node = nil
}

// write changes a container's record while no daemon runs.
func (h *house) write(id string, f func(*record)) {
	h.t.Helper()
	st, err := openStore(h.path("root"))
	if err != nil {
		h.t.Fatal(err)
	}
	defer st.Close()
	records, err := st.all()
	if err != nil {
		h.t.Fatal(err)
	}
	for _, r := range records {
		if r.ID == id {
			f(&r)
			if err := st.put(r); err != nil {
				h.t.Fatal(err)
			}
		}
	}
}

// For a record in each state, and a machine that is there, gone, or half made, this is what a new daemon makes of it.
func TestRecovery(t *testing.T) {
	const removed = container.ContainerState("")
	always := restartPolicy(container.RestartPolicyAlways, 0)
	none := func(*container.CreateRequest) {}
	for name, x := range map[string]struct {
		request func(*container.CreateRequest)
		record  func(*record) // what the daemon that was killed had written
		alive   bool          // its machine
		want    container.ContainerState
		code    int
		machine bool // is there afterwards
		polite  bool // the end of the machine
	}{
		"running, alive":                {none, func(*record) {}, true, container.StateRunning, 0, true, false},
		"running, gone":                 {none, func(*record) {}, false, container.StateExited, 137, false, false},
		"running, gone, --rm":           {autoRemove, func(*record) {}, false, removed, 0, false, false},
		"running, gone, always":         {always, func(*record) {}, false, container.StateRunning, 0, true, false},
		"running, gone, stopping":       {always, func(r *record) { r.StoppedByUser = true }, false, container.StateExited, 137, false, false},
		"start cut short, alive":        {none, booting, true, container.StateCreated, 0, false, false},
		"start cut short, gone":         {none, booting, false, container.StateCreated, 0, false, false},
		"start cut short, --rm":         {autoRemove, booting, true, removed, 0, false, false},
		"restart cut short, alive":      {always, func(r *record) { r.Status, r.Booting = container.StateRestarting, true }, true, container.StateRunning, 0, true, false},
		"running, no directory":         {none, func(*record) {}, false, container.StateExited, 137, false, false},
		"start cut short, no directory": {none, booting, false, container.StateCreated, 0, false, false},
		"end cut short, no directory":   {none, ended(7), false, container.StateExited, 7, false, false},
		"removal, no directory":         {none, func(r *record) { r.Removing = true }, false, removed, 0, false, false},
		"end cut short, alive":          {none, ended(7), true, container.StateExited, 7, false, true},
		"end cut short, gone":           {none, ended(7), false, container.StateExited, 7, false, false},
		"end cut short, --rm":           {autoRemove, ended(7), true, removed, 0, false, false},
		"end cut short, restarting":     {always, func(r *record) { r.Status = container.StateRestarting }, true, container.StateRunning, 0, true, true},
		"restarting, no machine":        {always, func(r *record) { r.Status, r.Sandbox = container.StateRestarting, nil }, false, container.StateRunning, 0, true, false},
		"removal cut short, alive":      {none, func(r *record) { r.Removing = true }, true, removed, 0, false, false},
		"removal cut short, gone":       {none, func(r *record) { r.Removing, r.Sandbox = true, nil }, false, removed, 0, false, false},
		"up without a machine":          {none, func(r *record) { r.Sandbox = nil }, false, container.StateExited, 137, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, h *house) {
				id := h.run("a", "lines 3", x.request)
				synctest.Wait()
				m := h.driver.Machine(id)
				h.crash()
				h.write(id, x.record)
				if !x.alive {
					m.Die(nil)
					if noDirectory := strings.HasSuffix(name, "directory"); noDirectory {
						if err := os.Remove(m.Config.Dir); err != nil {
							t.Fatal(err)
						}
					}
				}
				h.open()
				time.Sleep(time.Minute)
				if x.want == removed {
					_, err := h.find("a")
					wantNotFound(t, err)
					h.empty()
					return
				}
				h.wantState("a", x.want, x.code)
				if got := len(h.driver.Running()); (got == 1) != x.machine {
					t.Errorf("%d machines", got)
				}
				if m.Polite() != x.polite {
					t.Errorf("the machine's end was polite: %v", m.Polite())
				}
				if !x.machine {
					h.noMachine()
					h.start("a") // all is well with it
				}
				if err := h.ContainerStop(context.Background(), "a", "", nil); err != nil {
					t.Error(err)
				}
				h.wantState("a", container.StateExited, 143)
			})
		})
	}
}

func booting(r *record) { r.Status, r.Booting = container.StateCreated, true }

func ended(code int) func(*record) {
	return func(r *record) { r.Status, r.ExitCode, r.Finished = container.StateExited, code, r.Started }
}

// An exit that no daemon saw is picked up with its code; no line is lost or doubled by restarts of the daemon.
func TestExitWhileNoDaemon(t *testing.T) {
	for name, noLog := range map[string]bool{"log": false, "no log": true} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, h *house) {
				more := make(chan struct{})
				h.driver.Programs["steps"] = func(p *sandboxtest.Process) int {
					for range more {
						for range 100 {
							p.Print(api.Stdout, "a line that is long enough for its acknowledgement to be due now and then, which is what matters when the next daemon comes and asks for what it has not seen yet, be it kept in a log or not\n")
						}
					}
					return 7
				}
				h.run("a", "steps", func(r *container.CreateRequest) {
					if noLog {
						r.HostConfig.LogConfig.Type = "none"
					}
				})
				lines := 0
				for i := range 20 {
					if i%2 == 1 {
						h.crash()
					}
					more <- struct{}{}
					lines += 100
					synctest.Wait()
					if h.Node == nil {
						h.open()
					}
					synctest.Wait()
				}
				c, _ := h.find("a")
				p := h.driver.Machine(c.id).Process(c.id)
				if behind := p.Unacknowledged(); behind > 2*acknowledgeEvery {
					t.Errorf("%d bytes of output are not acknowledged: the container would stall", behind)
				}
				h.crash()
				close(more)
				synctest.Wait()
				h.open()
				if code := h.wait("a", container.WaitConditionNotRunning); code != 7 {
					t.Errorf("exit code %d", code)
				}
				if !noLog {
					got := 0
					for _, b := range h.output("a") {
						if b == '\n' {
							got++
						}
					}
					if got != lines {
						t.Errorf("%d lines, want %d", got, lines)
					}
				}
			})
		})
	}
}

// What a crash leaves beside the records goes; holds that it lost come back.
func TestSweep(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		id := h.create("a", "sleep")
		h.run("b", "sleep")
		h.crash()
		for _, dir := range []string{h.path("root", "containers", "deadbeef"), h.path("run", "s", "deadbeef")} {
			if err := os.MkdirAll(dir, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		h.images.Release(id)
		if err := os.RemoveAll(h.path("root", "containers", id)); err != nil {
			t.Fatal(err)
		}
		scratch, _ := templates()
		making := scratch + "/templates/making-1"
		if err := os.WriteFile(making, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		h.open()
		for _, path := range []string{h.path("root", "containers", "deadbeef"), h.path("run", "s", "deadbeef"), making} {
			if _, err := os.Stat(path); err == nil {
				t.Errorf("%s is left", path)
			}
		}
		if n := h.images.held(); n != 2 {
			t.Errorf("%d holds", n)
		}
		h.start("a")
		h.wantState("b", container.StateRunning, 0)
	})
}

// A daemon that is told to end while it begins leaves all as it is.
func TestOpenCancelled(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		h.run("a", "sleep")
		h.stop()
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if _, err := Open(ctx, h.options()); err == nil {
			t.Fatal("it opens")
		}
		h.open()
		h.wantState("a", container.StateRunning, 0)
	})
}

// A machine that is there and cannot be reached is not forgotten.
func TestUnreachableMachine(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		ctx := context.Background()
		h.run("a", "sleep")
		h.stop()
		h.driver.Lose(os.ErrPermission)
		h.open()
		if err := h.ContainerRemove(ctx, "a", true, false); err == nil {
			t.Error("it is removed while its machine runs")
		}
		h.driver.Lose(nil)
		h.restart()
		h.wantState("a", container.StateRunning, 0)
	})
}

// One that can be reached again is taken up, without another daemon.
func TestUnreachableMachineComesBack(t *testing.T) {
	always := restartPolicy(container.RestartPolicyAlways, 0)
	none := func(*container.CreateRequest) {}
	for name, x := range map[string]struct {
		request func(*container.CreateRequest)
		record  func(*record)
		dies    bool
		want    container.ContainerState // empty: removed
		code    int
	}{
		"running":           {none, func(*record) {}, false, container.StateRunning, 0},
		"paused":            {none, func(r *record) { r.Status = container.StatePaused }, false, container.StatePaused, 0},
		"dies":              {none, func(*record) {}, true, container.StateExited, 137},
		"dies, --rm":        {autoRemove, func(*record) {}, true, "", 0},
		"dies, always":      {always, func(*record) {}, true, container.StateRunning, 0},
		"removal cut short": {none, func(r *record) { r.Removing = true }, false, "", 0},
		"start cut short":   {none, booting, false, container.StateCreated, 0},
		"end cut short":     {none, ended(7), false, container.StateExited, 7},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, h *house) {
				ctx, id := context.Background(), h.run("a", "sleep", x.request)
				e := h.exec("a", container.ExecCreateRequest{Cmd: []string{"deaf"}})
				if err := h.ExecStart(ctx, e, container.ExecStartRequest{Detach: true}, nil); err != nil {
					t.Fatal(err)
				}
				synctest.Wait()
				m := h.driver.Machine(id)
				h.crash()
				h.write(id, x.record)
				h.driver.Lose(os.ErrPermission)
				h.open()
				for range 3 { // nor does it matter how often daemons come and go meanwhile
					time.Sleep(5 * time.Minute)
					if x.want != "" && up(x.want) {
						if err := h.ContainerStop(ctx, "a", "", nil); err == nil {
							t.Error("it is stopped while its machine cannot be reached")
						}
					}
					h.restart()
				}
				if x.dies {
					m.Die(nil)
				}
				h.driver.Lose(nil)
				time.Sleep(2 * maxReach)
				if x.want == "" {
					_, err := h.find("a")
					wantNotFound(t, err)
					h.empty()
					return
				}
				h.wantState("a", x.want, x.code)
				if x.want == container.StateRunning && !x.dies {
					h.wantExec(e, true, 0)
				}
				if err := h.ContainerRemove(ctx, "a", true, false); err != nil {
					t.Error(err)
				}
			})
		})
	}
}
