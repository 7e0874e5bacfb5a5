package node

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"

	"github.com/cradlevm/cradle/api"
	"github.com/cradlevm/cradle/sandbox/sandboxtest"
	"github.com/cradlevm/cradle/snapshot"
)

// A shadow is saved when its own command says that it is ready, or else its healthcheck, or else when it has been quiet for a while.
func TestShadowIsReady(t *testing.T) {
	after := func(d time.Duration) string { return "after " + time.Now().Add(d).Format(time.RFC3339) }
	health := func(test ...string) func(*container.CreateRequest) {
		return probed(container.HealthConfig{Test: test})
	}
	for name, x := range map[string]struct {
		set  func(r *container.CreateRequest)
		want time.Duration // after its start
	}{
		"command": {func(r *container.CreateRequest) {
			warm(warmReadyLabel, after(20*time.Second))(r)
			health("CMD", "/bin/sh", "-c", after(time.Minute))(r)
		}, 20 * time.Second},
		"healthcheck": {func(r *container.CreateRequest) {
			warm(warmAfterLabel, "1s")(r)
			health("CMD", "/bin/sh", "-c", after(30*time.Second))(r)
		}, 30 * time.Second},
		"healthcheck of the shell": {func(r *container.CreateRequest) {
			warm()(r)
			health("CMD-SHELL", after(40*time.Second))(r)
		}, 40 * time.Second},
		"slow healthcheck": {func(r *container.CreateRequest) { warm()(r); health("CMD", "slow")(r) }, 20 * time.Second},
		"no healthcheck":   {func(r *container.CreateRequest) { warm()(r); health("NONE")(r) }, 10*time.Second + quietPeriod},
		"quiet":            {warm(), 10*time.Second + quietPeriod},
		"quiet for long":   {warm(warmAfterLabel, "7s"), 17 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, h *house) {
				h.serving()
				h.driver.Programs["starting"] = func(p *sandboxtest.Process) int { // it says something every second for ten
					for i := 0; ; i++ {
						select {
						case <-p.Killed():
							return 137
						case <-time.After(time.Second):
							if i < 10 {
								p.Print(api.Stdout, "x")
							}
						}
					}
				}
				h.driver.Programs["slow"] = func(*sandboxtest.Process) int { time.Sleep(20 * time.Second); return 0 }
				var saved time.Time
				h.events.watch(func(m events.Message) {
					if m.Action == "warm" {
						saved = time.Unix(0, m.TimeNano)
					}
				})
				begun := time.Now()
				h.run("one", "starting", x.set)
				h.settled()
				if took := saved.Sub(begun); took < x.want || took > x.want+2*time.Second {
					t.Errorf("it is saved after %v, not %v", took, x.want)
				}
			})
		})
	}
}

// The least recently used go when all together are too large; the newest stays, however large.
func TestWarmImagesAreBounded(t *testing.T) {
	w, err := openWarmth(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	w.maxBytes = 100 << 10
	add := func(key string, size int, age time.Duration) {
		t.Helper()
		if err := os.Mkdir(w.path(key), 0o700); err != nil {
			t.Fatal(err)
		}
		for name, content := range map[string][]byte{snapshot.ManifestName: []byte("x"), "memory": make([]byte, size)} {
			path, at := filepath.Join(w.path(key), name), time.Now().Add(-age)
			if err := os.WriteFile(path, content, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Chtimes(path, at, at); err != nil {
				t.Fatal(err)
			}
		}
	}
	left := func(newest string, want ...string) {
		t.Helper()
		if err := w.evict(newest); err != nil {
			t.Fatal(err)
		}
		entries, err := os.ReadDir(w.dir)
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, e := range entries {
			names = append(names, e.Name())
		}
		if !slices.Equal(names, want) {
			t.Errorf("left: %v, not %v", names, want)
		}
	}
	add("a", 30<<10, time.Hour)
	add("b", 30<<10, 3*time.Hour)
	left("a", "a", "b")
	add("c", 30<<10, 2*time.Hour) // the manifests count, too
	add("d", 20<<10, 4*time.Hour)
	left("d", "a", "c", "d")
	add("e", 200<<10, 5*time.Hour)
	left("e", "e")
	for i := range maxWarmImages + 1 {
		add(fmt.Sprintf("f%02d", i), 0, time.Duration(i)*time.Minute)
	}
	w.maxBytes = maxWarmBytes
	if err := w.evict("f00"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(w.path("e")); err == nil {
		t.Error("the oldest of too many is left")
	}
	if _, err := os.Stat(w.path(fmt.Sprintf("f%02d", maxWarmImages-1))); err != nil {
		t.Error(err)
	}
}

// What any start would lack says nothing about a warm image: it is not thrown away for that, and copied as before.
func TestWarmImageIsNotToBlame(t *testing.T) {
	for _, copied := range []bool{false, true} {
		t.Run(fmt.Sprintf("copied %v", copied), func(t *testing.T) {
			inBubble(t, func(t *testing.T, h *house) {
				if copied {
					h.driver.Copy(nil)
				}
				h.run("one", "sleep", warm())
				h.settled()
				two := h.find1(h.create("two", "sleep", warm()))
				two.rec.Links = []link{{Name: "gone"}} // as where a port is taken that it wants
				if err := h.ContainerStart(context.Background(), "two"); err == nil {
					t.Error("it starts")
				}
				synctest.Wait()
				if images := h.warmImages(); len(images) != 1 || h.warmth.restoredOnly(images[0]) {
					t.Errorf("warm images: %v", images)
				}
				three := h.run("three", "sleep", warm())
				m := h.driver.Machine(three)
				if len(m.Identified()) != 1 {
					t.Error("it does not start warm")
				}
				if frozen := h.driver.Frozen(); copied && (len(frozen) != 1 || os.Geteuid() == 0 && frozen[0].Config.UID != m.Config.UID) {
					t.Error("it is no copy")
				}
				if err := h.warmth.forget(h.warmImages()[0]); err != nil {
					t.Fatal(err)
				}
				synctest.Wait()
			})
		})
	}
}
