package node

import (
	"context"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/moby/moby/api/types/container"

	"github.com/cradlevm/cradle/api"
	"github.com/cradlevm/cradle/api/wire"
	"github.com/cradlevm/cradle/dockerapi"
	"github.com/cradlevm/cradle/sandbox/sandboxtest"
)

// calls notes what the agents are asked.
func (h *house) calls() (take func() []string) {
	var mu sync.Mutex
	var all []string
	h.driver.Fault(func(_ *sandboxtest.Machine, c *wire.Call) bool {
		mu.Lock()
		defer mu.Unlock()
		all = append(all, c.Method)
		return false
	})
	return func() []string {
		synctest.Wait()
		mu.Lock()
		defer mu.Unlock()
		got := slices.Clone(all)
		all = nil
		return got
	}
}

// An emulated guest pays dearly for each call: a process is one, from its start to its being forgotten.
func TestAProcessIsOneCall(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		take := h.calls()
		id := h.run("a", "sleep")
		if got := take(); !slices.Equal(got, []string{api.MethodConfigure, api.MethodRun}) {
			t.Errorf("a start asks for %v", got)
		}
		for _, program := range []string{"true", "echo"} {
			e := h.exec("a", container.ExecCreateRequest{Cmd: []string{program, "words"}, AttachStdout: true})
			c := newClient()
			if err := <-h.begin(context.Background(), e, c.streams); err != nil {
				t.Fatal(err)
			}
			if got := take(); !slices.Equal(got, []string{api.MethodExec}) {
				t.Errorf("%s asks for %v", program, got)
			}
			if h.driver.Machine(id).Exec(id, e) != nil {
				t.Errorf("%s has not been forgotten", program)
			}
			if program == "echo" && c.out.String() != "words\n" {
				t.Errorf("it printed %q", c.out)
			}
		}
		h.driver.Machine(id).Process(id).Exit(3)
		if code := h.wait("a", container.WaitConditionNotRunning); code != 3 {
			t.Errorf("exit code %d", code)
		}
		h.torn("a")
		if got := take(); slices.Contains(got, api.MethodWait) || slices.Contains(got, api.MethodOutput) {
			t.Errorf("an end asks for %v", got)
		}
	})
}

// The end of a process is known though a client that does not read holds its last words up.
func TestEndBehindAStalledClient(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		ctx, id := context.Background(), h.run("a", "sleep")
		e := h.exec("a", container.ExecCreateRequest{Cmd: []string{"lines", "9"}, AttachStdout: true})
		stall := stalled{make(chan struct{})}
		done := h.begin(ctx, e, dockerapi.Streams{Stdout: stall, Stderr: stall})
		synctest.Wait()
		h.driver.Machine(id).Exec(id, e).Exit(5)
		time.Sleep(2 * slowTake)
		synctest.Wait()
		if got, err := h.ExecInspect(ctx, e); err != nil || got.Running || got.ExitCode == nil || *got.ExitCode != 5 {
			t.Errorf("%+v, %v", got, err)
		}
		close(stall.release)
		if err := <-done; err != nil {
			t.Error(err)
		}
		synctest.Wait()
		if h.driver.Machine(id).Exec(id, e) != nil {
			t.Error("it has not been forgotten")
		}
	})
}
