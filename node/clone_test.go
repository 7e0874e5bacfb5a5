package node

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/moby/moby/api/types/container"

	"github.com/cradlevm/cradle/api"
	"github.com/cradlevm/cradle/api/wire"
	"github.com/cradlevm/cradle/sandbox/sandboxtest"
)

// remembering runs a container whose process has something in its memory and on its disk.
func (h *house) remembering(name, text string, f ...func(*container.CreateRequest)) string {
	h.t.Helper()
	id := h.run(name, "remember", append(f, func(r *container.CreateRequest) { r.OpenStdin = true })...)
	p := h.driver.Machine(id).Process(id)
	p.Print(api.Stdout, "before\n")
	p.Remember(text)
	disk, err := os.OpenFile(h.path("root", "containers", id, scratchName), os.O_WRONLY, 0)
	if err != nil {
		h.t.Fatal(err)
	}
	defer disk.Close()
	if _, err := disk.WriteAt([]byte(text), 1<<20); err != nil {
		h.t.Fatal(err)
	}
	synctest.Wait()
	return id
}

// onDisk is what remembering has written.
func (h *house) onDisk(id string, length int) string {
	h.t.Helper()
	disk, err := os.Open(h.path("root", "containers", id, scratchName))
	if err != nil {
		h.t.Fatal(err)
	}
	defer disk.Close()
	b := make([]byte, length)
	if _, err := disk.ReadAt(b, 1<<20); err != nil {
		h.t.Fatal(err)
	}
	return string(b)
}

// Clones go on from where their source is, each as itself; the source notices nothing.
func TestClone(t *testing.T) { inBubble(t, testClone) }

// Several are copied from one that is restored, where that can be, of which nothing is left.
func TestCloneCopies(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		h.driver.Copy(nil)
		testClone(t, h)
		var users []uint32
		for _, name := range []string{"two-1", "two-3"} {
			c, err := h.find(name)
			if err != nil {
				t.Fatal(err)
			}
			users = append(users, h.driver.Machine(c.id).Config.UID)
		}
		if os.Geteuid() == 0 && users[0] != users[1] { // a copy is the user's that what is copied is
			t.Errorf("the clones are of users %d: they were restored", users)
		}
		if n := len(h.driver.Frozen()); n != 0 {
			t.Errorf("%d frozen machines are left", n)
		}
	})
}

// Where a machine that is restored cannot be frozen, that is tried but once.
func TestCloneCopiesUnsupported(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		h.driver.Copy(errors.ErrUnsupported)
		testClone(t, h)
		if len(h.driver.Frozen()) != 0 {
			t.Error("there is a frozen machine")
		}
		h.unraised.Store(false) // of the next daemon's: nothing of its own has been cloned
		if _, err := h.ContainerClone(context.Background(), "one", CloneOptions{Count: 2}); err != nil || !h.unraised.Load() {
			t.Errorf("%v; it is tried again: %v", err, !h.unraised.Load())
		}
	})
}

func testClone(t *testing.T, h *house) {
	ctx := context.Background()
	id := h.remembering("one", "42", func(r *container.CreateRequest) {
		r.Labels = map[string]string{"a": "b"}
		r.HostConfig.RestartPolicy.Name = container.RestartPolicyAlways
	})
	report, err := h.ContainerClone(ctx, "one", CloneOptions{Count: 3, Name: "two"})
	if err != nil || len(report.IDs) != 3 {
		t.Fatalf("%+v, %v", report, err)
	}
	synctest.Wait()
	if h.driver.Machine(id).Frozen(id) || h.driver.Machine(id).Paused() {
		t.Error("the source stands still")
	}
	if got := h.output("one"); got != "before\n" {
		t.Errorf("the source says %q", got)
	}
	seen := map[string]bool{}
	for i, clone := range report.IDs {
		in, err := h.ContainerInspect(ctx, clone, false)
		if err != nil {
			t.Fatal(err)
		}
		if in.Name != "/two-"+string(rune('1'+i)) || in.Config.Labels[originLabel] != id || in.Config.Labels["a"] != "b" ||
			in.HostConfig.RestartPolicy.Name != container.RestartPolicyAlways || in.Config.Hostname != clone[:12] || !in.State.Running {
			t.Errorf("%+v %+v", in, in.Config)
		}
		if got := h.output(clone); got != "remembered 42\n" {
			t.Errorf("clone %d says %q", i, got)
		}
		if got := h.onDisk(clone, 2); got != "42" {
			t.Errorf("clone %d has %q on its disk", i, got)
		}
		m := h.driver.Machine(clone)
		who, boot := m.Identified(), m.Identity()
		if len(who) != 1 || m.Frozen(clone) {
			t.Fatalf("identities %+v, frozen %v", who, m.Frozen(clone))
		}
		for _, word := range []string{who[0].Hostname, who[0].BootID, who[0].MachineID, who[0].NewID, string(boot.Seed), string(boot.Token), boot.MachineID} {
			if word == "" || seen[word] {
				t.Errorf("clone %d shares %q", i, word)
			}
			seen[word] = true
		}
		if len(who[0].Files) != 1 || string(who[0].Files[0].Data) != clone[:12]+"\n" {
			t.Errorf("files: %+v", who[0].Files)
		}
	}
	// What one writes, no other sees; and a clone is cloned like any other.
	h.driver.Machine(report.IDs[0]).Process(report.IDs[0]).Remember("43")
	again, err := h.ContainerClone(ctx, "two-1", CloneOptions{Count: 1})
	if err != nil {
		t.Fatal(err)
	}
	synctest.Wait()
	if got := h.output(again.IDs[0]); got != "remembered 43\n" {
		t.Errorf("the clone's clone says %q", got)
	}
	if got := h.driver.Machine(report.IDs[1]).Process(report.IDs[1]).Memory(); got != "42" {
		t.Errorf("a sibling remembers %q", got)
	}
	// It is stopped and started like any other, and found again by the next daemon.
	if err := h.ContainerRestart(ctx, "two-2", "", nil); err != nil {
		t.Fatal(err)
	}
	h.restart()
	for _, name := range []string{"one", "two-1", "two-2", "two-3"} {
		h.wantState(name, container.StateRunning, 0)
	}
}

// What cannot be cloned is refused in words, and nothing is made.
func TestCloneRefused(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		ctx := context.Background()
		refused := func(what, name string, o CloneOptions, text string) {
			t.Helper()
			before := len(h.all())
			if _, err := h.ContainerClone(ctx, name, o); err == nil || !strings.Contains(err.Error(), text) {
				t.Errorf("%s: %v", what, err)
			}
			if len(h.all()) != before {
				t.Errorf("%s: a container is left", what)
			}
		}
		one := CloneOptions{Count: 1}
		h.create("created", "sleep")
		refused("created", "created", one, "not running")
		h.run("ended", "true")
		h.wait("ended", container.WaitConditionNotRunning)
		refused("ended", "ended", one, "not running")
		h.run("paused", "sleep")
		if err := h.ContainerPause(ctx, "paused"); err != nil {
			t.Fatal(err)
		}
		refused("paused", "paused", one, "paused")
		refused("unknown", "nobody", one, "No such container")
		h.run("up", "sleep")
		refused("none", "up", CloneOptions{}, "clones")
		refused("many", "up", CloneOptions{Count: 10000}, "clones")
		refused("a name that is taken", "up", CloneOptions{Count: 1, Name: "paused"}, "already in use")
		refused("a name that is none", "up", CloneOptions{Count: 2, Name: "../x"}, "Invalid container name")
	})
}

// Whatever step of a clone fails, the source goes on and nothing of the clones is left.
func TestCloneFails(t *testing.T) {
	fail := func(_ *sandboxtest.Machine, c *wire.Call) { c.Fail(api.Errorf(api.CodeInternal, "no way")) }
	for name, set := range map[string]func(h *house, id string){
		"checkpoint": func(h *house, _ string) { h.driver.FailCheckpoint(errors.New("no way")) },
		"restore":    func(h *house, _ string) { h.driver.FailRestore(errors.New("no way")) },
		"freeze":     func(h *house, _ string) { h.driver.Fault(onFrozen(fail)) },
		"identity":   func(h *house, _ string) { h.driver.Fault(on(api.MethodIdentify, fail)) },
		"configure": func(h *house, id string) {
			h.driver.Fault(func(m *sandboxtest.Machine, c *wire.Call) bool {
				if m.Config.ID == id || c.Method != api.MethodConfigure {
					return false
				}
				fail(m, c)
				return true
			})
		},
		"death": func(h *house, _ string) {
			h.driver.Fault(on(api.MethodIdentify, func(m *sandboxtest.Machine, _ *wire.Call) { m.Die(errors.New("no way")) }))
		},
		"disk": func(h *house, id string) {
			disk := h.path("root", "containers", id, scratchName)
			if err := os.Rename(disk, disk+".away"); err != nil {
				h.t.Fatal(err)
			}
		},
		"one of three": func(h *house, id string) {
			var n atomic.Int32
			h.driver.Fault(func(m *sandboxtest.Machine, c *wire.Call) bool {
				if c.Method == api.MethodIdentify && n.Add(1) == 3 {
					fail(m, c)
					return true
				}
				return false
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, h *house) {
				id := h.remembering("one", "42", func(r *container.CreateRequest) {
					r.HostConfig.RestartPolicy.Name = container.RestartPolicyAlways // of which a clone that is taken back makes no use
				})
				set(h, id)
				_, err := h.ContainerClone(context.Background(), "one", CloneOptions{Count: 3})
				if err == nil {
					t.Fatal("it works")
				}
				atStart := !slices.Contains([]string{"checkpoint", "freeze", "disk"}, name)
				if told := strings.Contains(err.Error(), "none of the 3 clones is left"); told != atStart || strings.Contains(err.Error(), "\n") {
					t.Errorf("it says: %v", err)
				}
				h.driver.Fault(nil)
				synctest.Wait()
				h.wantState("one", container.StateRunning, 0)
				if m := h.driver.Running(); len(m) != 1 || m[0].Frozen(id) || m[0].Paused() {
					t.Errorf("%d machines; the source stands still: %v, %v", len(m), m[0].Frozen(id), m[0].Paused())
				}
				if all := h.all(); len(all) != 1 {
					t.Errorf("%d containers", len(all))
				}
				entries, err := os.ReadDir(h.path("root", "containers"))
				if err != nil || len(entries) != 1 {
					t.Errorf("left: %v, %v", entries, err)
				}
			})
		})
	}
}

// onFrozen makes a fault of freezing, not of thawing.
func onFrozen(f func(*sandboxtest.Machine, *wire.Call)) func(*sandboxtest.Machine, *wire.Call) bool {
	return func(m *sandboxtest.Machine, c *wire.Call) bool {
		var r api.FreezeRequest
		if c.Method != api.MethodFreeze || c.Params(&r) != nil || !r.Frozen {
			return false
		}
		f(m, c)
		return true
	}
}

// Many clones that are restored come to run in turns, as many starts do: none of them runs out of its time because of the others.
func TestCloneMany(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		h.run("one", "sleep")
		var now, most atomic.Int32
		h.driver.Fault(func(_ *sandboxtest.Machine, c *wire.Call) bool {
			if c.Method == api.MethodIdentify {
				most.Store(max(most.Load(), now.Add(1)))
				time.Sleep(turnLimit - time.Second)
				now.Add(-1)
			}
			return false
		})
		const many = 200
		report, err := h.ContainerClone(context.Background(), "one", CloneOptions{Count: many})
		if err != nil || len(report.IDs) != many {
			t.Fatalf("%d clones, %v", len(report.IDs), err)
		}
		if limit := int32(cap(h.gate.turns)); most.Load() > limit {
			t.Errorf("%d begin at once, and not %d", most.Load(), limit)
		}
	})
}

// A container whose process ends in the midst of being cloned is not cloned.
func TestCloneOfEnding(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		id := h.run("one", "sleep")
		h.driver.Fault(func(m *sandboxtest.Machine, c *wire.Call) bool {
			if c.Method == api.MethodFreeze && m.Config.ID == id {
				m.Process(id).Exit(3)
			}
			return false
		})
		_, err := h.ContainerClone(context.Background(), "one", CloneOptions{Count: 2})
		wantConflict(t, err)
		if err == nil || !strings.Contains(err.Error(), "ending") {
			t.Error(err)
		}
		if code := h.wait("one", container.WaitConditionNotRunning); code != 3 {
			t.Errorf("the source ends with %d", code)
		}
		if all := h.all(); len(all) != 1 {
			t.Errorf("%d containers", len(all))
		}
	})
}

// A daemon that dies in the midst of cloning leaves no clone.
func TestCrashWhileCloning(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		h.remembering("one", "42")
		var begun atomic.Int32
		h.driver.Fault(func(_ *sandboxtest.Machine, c *wire.Call) bool {
			if c.Method != api.MethodIdentify || begun.Add(1) < 3 {
				return false
			}
			time.Sleep(time.Second) // the first two run meanwhile
			all, err := h.store.all()
			if err != nil {
				t.Error(err)
			}
			running := 0
			for _, r := range all {
				if r.Name != "one" && r.Status == container.StateRunning {
					if running++; !r.Cloning {
						t.Error("a daemon that dies now leaves one")
					}
				}
			}
			if running != 2 {
				t.Errorf("%d run", running)
			}
			return false
		})
		report, err := h.ContainerClone(context.Background(), "one", CloneOptions{Count: 3})
		if err != nil {
			t.Fatal(err)
		}
		h.driver.Fault(nil)
		h.crash()
		h.write(report.IDs[2], func(r *record) {
			if r.Cloning {
				t.Error("a daemon that dies when all run leaves none")
			}
			r.Cloning = true
		})
		h.write(report.IDs[0], func(r *record) { r.Cloning, r.Booting, r.Status = true, true, container.StateCreated })
		h.driver.Machine(report.IDs[1]).Die(nil)
		h.write(report.IDs[1], func(r *record) { r.Cloning, r.Sandbox, r.Status = true, nil, container.StateCreated })
		h.open()
		synctest.Wait()
		if all := h.all(); len(all) != 1 {
			t.Errorf("%d containers", len(all))
		}
		left, err := filepath.Glob(h.path("root", "containers", "*"))
		if err != nil || len(left) != 1 || len(h.driver.Running()) != 1 {
			t.Errorf("left: %v, %v, %d machines", left, err, len(h.driver.Running()))
		}
		h.wantState("one", container.StateRunning, 0)
	})
}
