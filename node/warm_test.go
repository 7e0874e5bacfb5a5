package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/moby/moby/api/types/container"
	mobynet "github.com/moby/moby/api/types/network"

	"github.com/cradlevm/cradle/api"
	"github.com/cradlevm/cradle/api/wire"
	"github.com/cradlevm/cradle/sandbox/sandboxtest"
)

// warm makes a container that starts warm.
func warm(labels ...string) func(*container.CreateRequest) {
	return func(r *container.CreateRequest) {
		r.Labels = map[string]string{warmLabel: "true"}
		for i := 0; i < len(labels); i += 2 {
			r.Labels[labels[i]] = labels[i+1]
		}
	}
}

// settled waits until no shadow is being made.
func (h *house) settled() {
	h.t.Helper()
	for i := 0; h.warmth.busy(); i++ {
		if i > 10000 {
			h.t.Fatal("a shadow has no end")
		}
		time.Sleep(time.Second) // of the bubble's
	}
	synctest.Wait()
}

func (h *house) warmImages() []string {
	h.t.Helper()
	entries, err := os.ReadDir(h.path("root", "warm"))
	if err != nil {
		h.t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

// serving adds a program that takes ten seconds to be ready, says so, and then serves.
func (h *house) serving() {
	begin := func(p *sandboxtest.Process) int {
		if !p.Restored {
			select {
			case <-time.After(10 * time.Second):
			case <-p.Killed():
				return 137
			}
			p.Remember("ready")
			p.Print(api.Stdout, "ready\n")
		}
		p.Print(api.Stdout, "serving, "+p.Memory()+"\n")
		<-p.Killed()
		return 137
	}
	h.driver.Programs["serve"] = begin
	h.driver.Programs["/bin/sh"] = func(p *sandboxtest.Process) int { // a readiness command: it looks at the clock
		if strings.HasPrefix(p.Args[2], "after ") {
			at, err := time.Parse(time.RFC3339, strings.TrimPrefix(p.Args[2], "after "))
			if err == nil && time.Now().After(at) {
				return 0
			}
		}
		return 1
	}
}

// The second start of the same goes on from where the first one's shadow was ready.
func TestWarm(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		h.serving()
		ready := "after " + time.Now().Add(20*time.Second).Format(time.RFC3339)
		cold := h.run("cold", "serve", warm(warmReadyLabel, ready))
		h.settled()
		if got := h.output("cold"); got != "ready\nserving, ready\n" {
			t.Errorf("the first one says %q", got)
		}
		if m := h.driver.Running(); len(m) != 1 || m[0].Config.ID != cold {
			t.Errorf("%d machines", len(m))
		}
		if left, err := filepath.Glob(h.path("root", "containers", "*")); err != nil || len(left) != 1 {
			t.Errorf("left of the shadow: %v, %v", left, err)
		}
		for round := range 2 {
			for i := range 2 {
				begun := time.Now()
				id := h.run(fmt.Sprintf("warm-%d-%d", round, i), "serve", warm(warmReadyLabel, ready), autoRemove)
				synctest.Wait()
				if took := time.Since(begun); took > time.Second {
					t.Errorf("it starts in %v", took)
				}
				if got := h.output(id); got != "ready\nserving, ready\nserving, ready\n" {
					t.Errorf("it says %q", got)
				}
				if who := h.driver.Machine(id).Identified(); len(who) != 1 || who[0].NewID != id || who[0].Hostname != id[:12] || who[0].BootID == "" {
					t.Errorf("it is %+v", who)
				}
			}
			h.settled()
			h.restart() // the next daemon has it from the disk
		}
		// Its own later starts are its own.
		if err := h.ContainerRestart(context.Background(), "cold", "KILL", nil); err != nil {
			t.Fatal(err)
		}
		if len(h.driver.Machine(cold).Identified()) != 0 {
			t.Error("a restart starts warm")
		}
		if n := len(h.warmImages()); n != 1 {
			t.Errorf("%d warm images", n)
		}
	})
}

// What is configured in another way has a warm image of its own; who it is does not matter.
func TestWarmKeys(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		run := func(name string, f ...func(*container.CreateRequest)) {
			h.run(name, "sleep", append([]func(*container.CreateRequest){warm()}, f...)...)
			h.settled()
		}
		run("one")
		run("same", autoRemove, func(r *container.CreateRequest) { r.Hostname = "x"; r.Labels["a"] = "b" })
		run("elsewhere", func(r *container.CreateRequest) {
			r.ExposedPorts = mobynet.PortSet{mobynet.MustParsePort("80/tcp"): {}}
			r.HostConfig.PublishAllPorts = true
		})
		if n := len(h.warmImages()); n != 1 {
			t.Errorf("%d warm images of one configuration", n)
		}
		for i, f := range []func(*container.CreateRequest){
			func(r *container.CreateRequest) { r.Cmd = []string{"sleep", "more"} },
			func(r *container.CreateRequest) { r.Env = []string{"A=1"} },
			func(r *container.CreateRequest) { r.Env = []string{"A=2"} },
			func(r *container.CreateRequest) { r.User = "1" },
			func(r *container.CreateRequest) { r.WorkingDir = "/x" },
			func(r *container.CreateRequest) { r.HostConfig.Memory = 1 << 30 },
			func(r *container.CreateRequest) { r.HostConfig.Tmpfs = map[string]string{"/x": ""} },
			func(r *container.CreateRequest) { r.HostConfig.CapAdd = []string{"SYS_ADMIN"} },
			func(r *container.CreateRequest) { r.Labels[warmAfterLabel] = "1s" },
		} {
			run(fmt.Sprintf("other-%d", i), f)
			if n := len(h.warmImages()); n != i+2 {
				t.Errorf("configuration %d: %d warm images", i, n)
			}
		}
		// The least recently used go, memory holds fewer still.
		for i := range maxWarmImages {
			run(fmt.Sprintf("many-%d", i), func(r *container.CreateRequest) { r.Env = []string{fmt.Sprintf("B=%d", i)} })
		}
		if n := len(h.warmImages()); n != maxWarmImages {
			t.Errorf("%d warm images are left", n)
		}
		h.warmth.mu.Lock()
		defer h.warmth.mu.Unlock()
		if n := len(h.warmth.loaded); n != maxWarmLoaded {
			t.Errorf("%d warm images are in memory", n)
		}
	})
}

// Secrets never go into a shadow, and what cannot start warm says so and starts cold.
func TestNoSecretsInShadows(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		for i, f := range []func(*container.CreateRequest){
			func(r *container.CreateRequest) { r.Env = []string{"POSTGRES_PASSWORD=x"} },
			func(r *container.CreateRequest) { r.Env = []string{"A=1", "github_token=x"} },
			func(r *container.CreateRequest) { r.Env = []string{"AWS_SECRET_ACCESS_KEY=x"} },
			func(r *container.CreateRequest) { r.Labels[warmAfterLabel] = "soon" },
		} {
			r := container.CreateRequest{Config: &container.Config{Image: "img", Cmd: []string{"sleep"}}, HostConfig: &container.HostConfig{}}
			warm()(&r)
			f(&r)
			made, err := h.ContainerCreate(context.Background(), "", nil, r)
			if err != nil || len(made.Warnings) == 0 || !strings.Contains(made.Warnings[len(made.Warnings)-1], "does not start warm") {
				t.Errorf("%d: %+v, %v", i, made, err)
			}
			h.start(made.ID)
			h.settled()
		}
		if images := h.warmImages(); len(images) != 0 {
			t.Errorf("warm images: %v", images)
		}
	})
}

// A shadow that fails costs its container nothing, leaves nothing, says why, and is not tried again.
func TestShadowFails(t *testing.T) {
	for name, x := range map[string]struct {
		command string
		labels  []string
		set     func(h *house)
	}{
		"it ends":          {command: "true"},
		"never ready":      {command: "sleep", labels: []string{warmReadyLabel, "never"}},
		"never quiet":      {command: "chatter"},
		"checkpoint":       {command: "sleep", set: func(h *house) { h.driver.FailCheckpoint(errors.New("no way")) }},
		"full disk":        {command: "sleep", set: func(h *house) { h.driver.FailWrite(errors.New("no space left")) }},
		"a broken machine": {command: "sleep", set: func(h *house) { h.driver.Fault(onFrozen(func(m *sandboxtest.Machine, _ *wire.Call) { m.Die(nil) })) }},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, h *house) {
				h.serving()
				h.driver.Programs["chatter"] = func(p *sandboxtest.Process) int {
					for {
						select {
						case <-p.Killed():
							return 137
						case <-time.After(time.Second):
							p.Print(api.Stdout, "x")
						}
					}
				}
				if x.set != nil {
					x.set(h)
				}
				id := h.run("one", x.command, warm(x.labels...))
				told := h.actions(id)
				h.settled()
				if x.command != "true" {
					h.wantState("one", container.StateRunning, 0)
				}
				if all := strings.Join(told(), " "); !strings.Contains(all, "warm_failed") {
					t.Errorf("events: %s", all)
				}
				h.driver.Fault(nil)
				started := h.driver.Started()
				h.run("two", x.command, warm(x.labels...))
				h.settled()
				if n := h.driver.Started() - started; n != 1 {
					t.Errorf("the next start makes %d machines", n)
				}
				if images := h.warmImages(); len(images) != 1 || !strings.HasSuffix(images[0], ".failed") {
					t.Errorf("left: %v", images)
				}
				to := time.Now().Add(1000 * time.Hour) // the clock was wrong, and has been put right
				if err := os.Chtimes(h.path("root", "warm", h.warmImages()[0]), to, to); err != nil {
					t.Fatal(err)
				}
				if !h.warmth.want("x") || !h.warmth.want(strings.TrimSuffix(h.warmImages()[0], failureSuffix)) {
					t.Error("a failure that is still to come keeps others from trying")
				}
				h.warmth.done("x")
				h.warmth.done(strings.TrimSuffix(h.warmImages()[0], failureSuffix))
				old := time.Now().Add(-warmRetry) // a day later it may be tried once more
				if err := os.Chtimes(h.path("root", "warm", h.warmImages()[0]), old, old); err != nil {
					t.Fatal(err)
				}
				h.run("three", x.command, warm(x.labels...))
				h.settled()
				if n := h.driver.Started() - started; n != 3 {
					t.Errorf("after a day there have been %d machines", n)
				}
			})
		})
	}
}

// A warm image that is damaged, or does not restore, is thrown away; the container starts cold and makes another.
func TestBadWarmImage(t *testing.T) {
	for name, x := range map[string]struct {
		damage func(t *testing.T, dir string)
		set    func(h *house)
	}{
		"manifest cut":   {damage: func(t *testing.T, dir string) { truncate(t, filepath.Join(dir, "manifest")) }},
		"memory flipped": {damage: func(t *testing.T, dir string) { flip(t, filepath.Join(dir, "saved")) }},
		"disk flipped":   {damage: func(t *testing.T, dir string) { flip(t, filepath.Join(dir, scratchName)) }},
		"disk gone":      {damage: func(t *testing.T, dir string) { remove(t, filepath.Join(dir, scratchName)) }},
		"restore":        {set: func(h *house) { h.driver.FailRestore(errors.New("no way")) }},
		"identity": {set: func(h *house) {
			h.driver.Fault(on(api.MethodIdentify, func(m *sandboxtest.Machine, _ *wire.Call) { m.Die(nil) }))
		}},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, h *house) {
				h.run("one", "sleep", warm())
				h.settled()
				images := h.warmImages()
				if len(images) != 1 {
					t.Fatalf("warm images: %v", images)
				}
				h.stop()
				if x.damage != nil {
					x.damage(t, h.path("root", "warm", images[0]))
				}
				h.open()
				if x.set != nil {
					x.set(h)
				}
				two := h.run("two", "sleep", warm())
				h.wantState("two", container.StateRunning, 0)
				if m := h.driver.Machine(two); m == nil || len(m.Identified()) != 0 {
					t.Error("it has started warm")
				}
				h.driver.Fault(nil)
				h.driver.FailRestore(nil)
				h.settled()
				three := h.run("three", "sleep", warm())
				if len(h.driver.Machine(three).Identified()) != 1 {
					t.Errorf("it has not started warm; warm images: %v", h.warmImages())
				}
			})
		})
	}
}

// A daemon that ends, or dies, in the midst of a shadow leaves nothing of it.
func TestEndWhileShadow(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		h.serving()
		one := h.run("one", "sleep", warm(warmReadyLabel, "never"))
		synctest.Wait()
		if !h.Busy() || len(h.driver.Running()) != 2 {
			t.Errorf("busy %v, %d machines", h.Busy(), len(h.driver.Running()))
		}
		h.restart()
		if m := h.driver.Running(); len(m) != 1 || m[0].Config.ID != one {
			t.Errorf("%d machines", len(m))
		}
		if images := h.warmImages(); len(images) != 0 {
			t.Errorf("left: %v", images)
		}
	})
}

// Shadows are made one after the other; one that has to wait for others has all of its time still.
func TestShadowsInTurn(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		h.serving()
		h.run("one", "sleep", warm(warmReadyLabel, "never"))
		h.run("two", "sleep", warm(warmReadyLabel, "never, either"))
		ready := "after " + time.Now().Add(2*shadowLimit+time.Minute).Format(time.RFC3339)
		h.run("three", "serve", warm(warmReadyLabel, ready))
		h.settled() // and so the daemon may go idle
		var made, failed int
		for _, name := range h.warmImages() {
			if strings.HasSuffix(name, failureSuffix) {
				failed++
			} else {
				made++
			}
		}
		if made != 1 || failed != 2 {
			t.Errorf("%d made, %d failed", made, failed)
		}
		// What is said of failures goes when it keeps nobody from trying again.
		time.Sleep(warmRetry)
		old := time.Now().Add(-warmRetry)
		for _, name := range h.warmImages() {
			if strings.HasSuffix(name, failureSuffix) {
				if err := os.Chtimes(h.path("root", "warm", name), old, old); err != nil {
					t.Fatal(err)
				}
			}
		}
		h.restart()
		if left := h.warmImages(); len(left) != 1 || strings.HasSuffix(left[0], failureSuffix) {
			t.Errorf("left: %v", left)
		}
	})
}

// Where machines can be copied, the shadow stays, frozen, and the next ones are copies of it; without it they are restored.
func TestWarmCopies(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		h.serving()
		h.driver.Copy(nil)
		ready := "after " + time.Now().Add(20*time.Second).Format(time.RFC3339)
		h.run("cold", "serve", warm(warmReadyLabel, ready))
		h.settled()
		all := h.driver.Frozen()
		if len(all) != 1 || len(h.driver.Running()) != 2 {
			t.Fatalf("%d frozen machines of %d", len(all), len(h.driver.Running()))
		}
		frozen := all[0]
		seen := map[string]bool{} // boot ids and machine ids
		rehearsed := frozen.Identified()
		if len(rehearsed) != rehearsals {
			t.Errorf("its start was rehearsed %d times", len(rehearsed))
		}
		for _, who := range rehearsed {
			seen[who.BootID], seen[who.MachineID] = true, true
		}
		lives := 2 // of the program, which the fake begins anew where a restored one goes on
		check := func(name string, copied bool) {
			t.Helper()
			id := h.run(name, "serve", warm(warmReadyLabel, ready), autoRemove)
			synctest.Wait()
			if got := h.output(id); got != "ready\n"+strings.Repeat("serving, ready\n", lives) {
				t.Errorf("%s says %q", name, got)
			}
			m := h.driver.Machine(id)
			if who := m.Identified(); len(who) != 1 || who[0].NewID != id || who[0].BootID == "" {
				t.Errorf("%s is %+v", name, who)
			} else if seen[who[0].BootID] || seen[who[0].MachineID] {
				t.Errorf("%s is another one, too: %+v", name, who)
			} else {
				seen[who[0].BootID], seen[who[0].MachineID] = true, true
			}
			if shares := m.Config.UID == frozen.Config.UID; shares != copied && os.Geteuid() == 0 {
				t.Errorf("%s runs as %d, the frozen one as %d", name, m.Config.UID, frozen.Config.UID)
			}
		}
		check("one", true)
		check("two", true)
		frozen.Die(errors.New("out of memory"))
		check("three", false)
		h.settled()
		check("four", false) // what could not be copied once is restored
		h.restart()
		check("five", false)
		h.settled() // one more has been restored, and frozen
		all = h.driver.Frozen()
		if len(all) != 1 {
			t.Fatalf("%d frozen machines after a restart", len(all))
		}
		frozen = all[0]
		for _, who := range frozen.Identified() {
			seen[who.BootID], seen[who.MachineID] = true, true
		}
		lives++ // the rehearsals'
		check("six", true)
		if left, err := filepath.Glob(h.path("root", "containers", "*")); err != nil || len(left) != len(h.all()) {
			t.Errorf("left of shadows: %v, %v", left, err)
		}
		if err := h.warmth.forget(h.warmImages()[0]); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if n := len(h.driver.Frozen()); n != 0 {
			t.Errorf("%d frozen machines are left", n)
		}
	})
}
