package node

import (
	"context"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"

	"github.com/cradlevm/cradle/sandbox/sandboxtest"
)

// starts records when containers start.
func (h *house) starts() func() []time.Time {
	var mu sync.Mutex
	var at []time.Time
	h.events.watch(func(m events.Message) {
		if m.Action == events.ActionStart {
			mu.Lock()
			defer mu.Unlock()
			at = append(at, time.Now())
		}
	})
	return func() []time.Time {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(at)
	}
}

func TestBackoff(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		starts := h.starts()
		h.run("a", "exit 1", restartPolicy(container.RestartPolicyAlways, 0))
		time.Sleep(5 * time.Minute)
		at := starts()
		want := 100 * time.Millisecond
		for i := 1; i < len(at); i++ {
			if pause := at[i].Sub(at[i-1]); pause != want {
				t.Errorf("restart %d after %v, want %v", i, pause, want)
			}
			want = min(2*want, time.Minute)
		}
		if len(at) < 12 {
			t.Errorf("%d starts", len(at))
		}
		s, err := h.ContainerInspect(context.Background(), "a", false)
		if err != nil || !s.State.Restarting || !s.State.Running || s.State.Status != container.StateRestarting || s.RestartCount != len(at)-1 {
			t.Errorf("%+v, restart count %d, %d starts, %v", s.State, s.RestartCount, len(at), err)
		}
		// A container that waits for its restart is not removed by mistake, can be stopped, and stays so.
		wantConflict(t, h.ContainerRemove(context.Background(), "a", false, false))
		wantNotModified(t, h.ContainerStart(context.Background(), "a"))
		exit := h.waiting("a", container.WaitConditionNotRunning)
		if err := h.ContainerStop(context.Background(), "a", "", nil); err != nil {
			t.Fatal(err)
		}
		h.result(exit)
		time.Sleep(time.Hour)
		h.wantState("a", container.StateExited, 1)
		if n := len(starts()); n != len(at) {
			t.Errorf("%d starts after the stop", n-len(at))
		}
	})
}

// A run of ten seconds begins the series anew.
func TestBackoffAfterLongRun(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		runs := 0
		h.driver.Programs["mostly"] = func(*sandboxtest.Process) int {
			if runs++; runs == 5 {
				time.Sleep(longRun)
			}
			return 1
		}
		starts := h.starts()
		h.run("a", "mostly", restartPolicy(container.RestartPolicyAlways, 0))
		time.Sleep(longRun + 3*time.Second)
		at := starts()
		if len(at) < 7 {
			t.Fatalf("%d starts", len(at))
		}
		if pause := at[5].Sub(at[4]) - longRun; pause != firstBackoff {
			t.Errorf("the restart after the long run came after %v", pause)
		}
		if pause := at[6].Sub(at[5]); pause != 2*firstBackoff {
			t.Errorf("the one after it after %v", pause)
		}
	})
}

func TestPolicies(t *testing.T) {
	for name, x := range map[string]struct {
		policy  container.RestartPolicyMode
		max     int
		command string
		starts  int // within a minute; 0: more than 5
		end     container.ContainerState
	}{
		"no":                       {container.RestartPolicyDisabled, 0, "exit 1", 1, container.StateExited},
		"on-failure, success":      {container.RestartPolicyOnFailure, 0, "true", 1, container.StateExited},
		"on-failure, failure":      {container.RestartPolicyOnFailure, 0, "exit 1", 0, container.StateRestarting},
		"on-failure:3":             {container.RestartPolicyOnFailure, 3, "exit 1", 4, container.StateExited},
		"always, success":          {container.RestartPolicyAlways, 0, "true", 0, container.StateRestarting},
		"unless-stopped, success":  {container.RestartPolicyUnlessStopped, 0, "true", 0, container.StateRestarting},
		"always, start that fails": {container.RestartPolicyAlways, 0, "once", 1, container.StateExited},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, h *house) {
				h.driver.Programs["once"] = func(*sandboxtest.Process) int {
					h.driver.Refuse(context.DeadlineExceeded) // the next start
					return 1
				}
				starts := h.starts()
				h.run("a", x.command, restartPolicy(x.policy, x.max))
				time.Sleep(time.Minute)
				if n := len(starts()); n != x.starts && (x.starts != 0 || n <= 5) {
					t.Errorf("%d starts, want %d", n, x.starts)
				}
				if s := h.state("a"); s.Status != x.end {
					t.Errorf("it is %s, want %s", s.Status, x.end)
				}
			})
		})
	}
}

// A wait for the next exit is answered at each exit, one for the removal only then.
func TestWaitConditions(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		ctx := context.Background()
		h.create("a", "sleep")
		if code := h.wait("a", container.WaitConditionNotRunning); code != 0 {
			t.Errorf("created: %d", code)
		}
		next, removed := h.waiting("a", container.WaitConditionNextExit), h.waiting("a", container.WaitConditionRemoved)
		hungUp, hangUp := context.WithCancel(ctx)
		lost, err := h.ContainerWait(hungUp, "a", container.WaitConditionNextExit)
		if err != nil {
			t.Fatal(err)
		}
		hangUp()
		if r := <-lost; r.Err == nil {
			t.Error("a client that hangs up has an answer")
		}
		h.start("a")
		synctest.Wait()
		select {
		case <-next:
			t.Error("a start is no exit")
		case <-removed:
			t.Error("a start is no removal")
		default:
		}
		if err := h.ContainerKill(ctx, "a", "TERM"); err != nil {
			t.Fatal(err)
		}
		if code := h.result(next); code != 143 {
			t.Errorf("next exit: %d", code)
		}
		synctest.Wait()
		select {
		case <-removed:
			t.Error("an exit is no removal")
		default:
		}
		if err := h.ContainerRemove(ctx, "a", false, false); err != nil {
			t.Fatal(err)
		}
		if code := h.result(removed); code != 143 {
			t.Errorf("removed: %d", code)
		}
		_, err = h.ContainerWait(ctx, "a", "")
		wantNotFound(t, err)
	})
}

func TestAutoRemove(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		h.create("a", "exit 9", autoRemove)
		next, removed := h.waiting("a", container.WaitConditionNextExit), h.waiting("a", container.WaitConditionRemoved)
		h.start("a")
		if code := h.result(next); code != 9 {
			t.Errorf("exit code %d", code)
		}
		if code := h.result(removed); code != 9 {
			t.Errorf("exit code %d", code)
		}
		synctest.Wait() // files go after the answer
		h.empty()
		// A restart is no end.
		id := h.run("b", "sleep", autoRemove)
		if err := h.ContainerRestart(context.Background(), "b", "", nil); err != nil {
			t.Fatal(err)
		}
		h.wantState(id, container.StateRunning, 0)
		if err := h.ContainerStop(context.Background(), "b", "", nil); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		h.empty()
	})
}

func TestPause(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		ctx := context.Background()
		id := h.run("a", "sleep")
		if err := h.ContainerPause(ctx, "a"); err != nil {
			t.Fatal(err)
		}
		h.wantState("a", container.StatePaused, 0)
		wantConflict(t, h.ContainerPause(ctx, "a"))
		wantConflict(t, h.ContainerStart(ctx, "a"))
		_, err := h.ExecCreate(ctx, "a", container.ExecCreateRequest{Cmd: []string{"true"}})
		wantConflict(t, err)
		// It stays paused, and alive, through the daemon's end; what was half done is taken back.
		h.restart()
		h.wantState("a", container.StatePaused, 0)
		if !h.driver.Machine(id).Paused() {
			t.Error("the machine runs")
		}
		h.driver.Machine(id).Resume(ctx)
		h.restart()
		if !h.driver.Machine(id).Paused() {
			t.Error("a resume that was cut short was not taken back")
		}
		if err := h.ContainerUnpause(ctx, "a"); err != nil {
			t.Fatal(err)
		}
		wantConflict(t, h.ContainerUnpause(ctx, "a"))
		h.driver.Machine(id).Pause(ctx)
		h.restart()
		if h.driver.Machine(id).Paused() {
			t.Error("a pause that was cut short was not taken back")
		}
		if err := h.ContainerPause(ctx, "a"); err != nil {
			t.Fatal(err)
		}
		if err := h.ContainerStop(ctx, "a", "", nil); err != nil {
			t.Fatal(err)
		}
		h.wantState("a", container.StateExited, 143)
	})
}
