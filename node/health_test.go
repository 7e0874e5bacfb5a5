package node

import (
	"context"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"

	"github.com/cradlevm/cradle/api"
	"github.com/cradlevm/cradle/dockerapi"
	"github.com/cradlevm/cradle/sandbox/sandboxtest"
)

// actions records what a container's events say.
func (h *house) actions(id string) func() []string {
	var mu sync.Mutex
	var seen []string
	h.events.watch(func(m events.Message) {
		if m.Actor.ID == id {
			mu.Lock()
			defer mu.Unlock()
			seen = append(seen, string(m.Action))
		}
	})
	return func() []string {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(seen)
	}
}

func probed(h container.HealthConfig) func(*container.CreateRequest) {
	return func(r *container.CreateRequest) { r.Config.Healthcheck = &h }
}

func TestHealth(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		var code atomic.Int32
		h.driver.Programs["probe"] = func(p *sandboxtest.Process) int {
			p.Print(api.Stdout, strings.Repeat("x", 2*healthOutputBytes))
			return int(code.Load())
		}
		id := h.create("a", "sleep", probed(container.HealthConfig{Test: []string{"CMD", "probe"}, Interval: time.Second, Retries: 3, StartPeriod: 10 * time.Second, StartInterval: time.Second}))
		actions := h.actions(id)
		code.Store(1)
		h.start("a")
		want := func(after time.Duration, status container.HealthStatus, streak int) {
			t.Helper()
			time.Sleep(after)
			if s := h.state("a"); s.Health == nil || s.Health.Status != status || s.Health.FailingStreak != streak {
				t.Errorf("health %+v, want %s with %d failures", s.Health, status, streak)
			}
		}
		want(0, container.Starting, 0)
		want(5*time.Second+time.Millisecond, container.Starting, 0) // failures of the start period do not count
		code.Store(0)
		want(time.Second, container.Healthy, 0)
		code.Store(1)
		want(2*time.Second, container.Healthy, 2)
		want(time.Second, container.Unhealthy, 3)
		code.Store(0)
		want(time.Second, container.Healthy, 0)
		s := h.state("a").Health
		if len(s.Log) != healthLogEntries || len(s.Log[0].Output) != healthOutputBytes {
			t.Errorf("%d entries, the first of %d bytes", len(s.Log), len(s.Log[0].Output))
		}
		if err := h.ContainerStop(context.Background(), "a", "", nil); err != nil {
			t.Fatal(err)
		}
		want(time.Minute, container.Unhealthy, 0) // docker's word for one that nobody looks at
		var transitions []string
		for _, a := range actions() {
			if to, ok := strings.CutPrefix(a, "health_status: "); ok {
				transitions = append(transitions, to)
			}
		}
		if got := strings.Join(transitions, " "); got != "healthy unhealthy healthy" {
			t.Errorf("events %q", got)
		}
	})
}

// A probe that takes too long is a failure, and does not stay.
func TestHealthTimeout(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		id := h.run("a", "sleep", probed(container.HealthConfig{Test: []string{"CMD", "deaf"}, Interval: time.Second, Timeout: 2 * time.Second, Retries: 2}))
		time.Sleep(6*time.Second + time.Millisecond)
		s := h.state("a").Health
		if s.Status != container.Unhealthy || !strings.Contains(s.Log[0].Output, "exceeded timeout (2s)") {
			t.Errorf("health %+v", s)
		}
		// One probe at a time: those before have been killed.
		if n := h.driver.Machine(id).Processes(id); n > 2 {
			t.Errorf("%d processes in the container", n)
		}
	})
}

func TestEvents(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		begun := time.Now()
		id := h.create("a", "exit 3", func(r *container.CreateRequest) { r.Config.Labels = map[string]string{"k": "v"} })
		ctx, hangUp := context.WithCancel(context.Background())
		defer hangUp()
		var mu sync.Mutex
		var got []string
		done := make(chan error, 1)
		go func() {
			done <- h.Events(ctx, begun, time.Time{}, dockerapi.Filters{"type": {"container": true}, "label": {"k=v": true}}, func(m events.Message) error {
				mu.Lock()
				defer mu.Unlock()
				got = append(got, string(m.Action)+m.Actor.Attributes["exitCode"])
				return nil
			})
		}()
		h.run("other", "true")
		h.start("a")
		h.wait("a", container.WaitConditionNotRunning)
		h.torn(id)
		if err := h.ContainerRemove(context.Background(), id, false, false); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		hangUp()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if s := strings.Join(got, " "); s != "create start die3 destroy" {
			t.Errorf("events %q", s)
		}
		// The daemon's end ends the stream; a client that does not read is told so.
		go func() {
			done <- h.Events(context.Background(), time.Time{}, time.Time{}, nil, func(events.Message) error { return nil })
		}()
		stalledClient := make(chan error, 1)
		stuck := make(chan struct{})
		go func() {
			stalledClient <- h.Events(context.Background(), time.Time{}, time.Time{}, nil, func(events.Message) error { <-stuck; return nil })
		}()
		synctest.Wait()
		for i := range eventBacklog + 10 {
			if i%1000 == 0 {
				synctest.Wait() // the client that does read keeps up
			}
			h.events.add(events.ContainerEventType, "x", id, nil)
			if len(h.events.past) > eventHistory {
				t.Fatal("the history grows")
			}
		}
		close(stuck)
		wantConflict(t, <-stalledClient)
		h.restart()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestPruneAndUse(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		ctx := context.Background()
		running := h.run("running", "sleep")
		h.run("restarting", "exit 1", restartPolicy(container.RestartPolicyAlways, 0))
		labelled := h.create("labelled", "sleep", func(r *container.CreateRequest) { r.Config.Labels = map[string]string{"keep": "1"} })
		stopped := h.create("stopped", "sleep")
		time.Sleep(5 * time.Second)
		report, err := h.ContainerPrune(ctx, dockerapi.Filters{"label!": {"keep": true}})
		if err != nil || !slices.Equal(report.ContainersDeleted, []string{stopped}) {
			t.Errorf("pruned %v, %v", report.ContainersDeleted, err)
		}
		_, err = h.ContainerPrune(ctx, dockerapi.Filters{"what": {"x": true}})
		if err == nil {
			t.Error("an unknown filter is taken")
		}
		_, err = h.ImageRemove(ctx, "img", false, false)
		wantConflict(t, err)
		_, err = h.ImageRemove(ctx, imageID, true, false)
		wantConflict(t, err)
		if !h.Busy() {
			t.Error("not busy while containers run")
		}
		for _, id := range []string{running, "restarting"} {
			if err := h.ContainerStop(ctx, id, "", nil); err != nil {
				t.Error(err)
			}
		}
		if h.Busy() {
			t.Error("busy with nothing")
		}
		if report, err = h.ContainerPrune(ctx, nil); err != nil || len(report.ContainersDeleted) != 3 || !slices.Contains(report.ContainersDeleted, labelled) {
			t.Errorf("pruned %v, %v", report.ContainersDeleted, err)
		}
		h.empty()
	})
}

// What fails in a create leaves nothing.
func TestFailedCreate(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		h.images.fail = context.DeadlineExceeded
		if _, err := h.tryCreate("a", "sleep"); err == nil {
			t.Error("a container is made of an image that cannot be held")
		}
		h.empty()
		h.images.fail = nil
		for name, f := range map[string]func(*container.CreateRequest){
			"no image": func(r *container.CreateRequest) { r.Config.Image = "missing" },
			"bad":      func(r *container.CreateRequest) { r.HostConfig.RestartPolicy.Name = "sometimes" },
		} {
			if _, err := h.tryCreate("a", "sleep", f); err == nil {
				t.Errorf("%s: it is made", name)
			}
		}
		if _, err := h.tryCreate("-a", "sleep"); err == nil {
			t.Error("-a is a name")
		}
		h.empty()
	})
}
