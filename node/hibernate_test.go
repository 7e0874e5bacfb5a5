package node

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"

	"github.com/cradlevm/cradle/api"
	"github.com/cradlevm/cradle/api/wire"
	"github.com/cradlevm/cradle/sandbox/sandboxtest"
)

// A hibernated container has no machine, and goes on from where it was, also under another daemon.
func TestHibernate(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		ctx := context.Background()
		id := h.remembering("one", "42", autoRemove)
		waiting := h.waiting("one", container.WaitConditionNotRunning)
		if err := h.ContainerSaveState(ctx, "one"); err != nil {
			t.Fatal(err)
		}
		if code := h.result(waiting); code != 137 {
			t.Errorf("the wait says %d", code)
		}
		h.wantState("one", container.StateExited, 137)
		h.noMachine()
		if h.Busy() {
			t.Error("it keeps the daemon")
		}
		_, err := h.ContainerClone(ctx, "one", CloneOptions{Count: 1})
		wantConflict(t, err)
		if err == nil || !strings.Contains(err.Error(), "hibernated") {
			t.Errorf("a clone: %v", err)
		}
		wantConflict(t, h.ContainerSaveState(ctx, "one"))
		if _, err := h.ContainerUpdate(ctx, "one", container.UpdateConfig{Resources: container.Resources{CPUShares: 3}}); !cerrdefs.IsConflict(err) {
			t.Errorf("an update, of which what was saved would know nothing: %v", err)
		}
		if _, err := h.ContainerStatPath(ctx, "one", "/"); err == nil || !strings.Contains(err.Error(), "hibernated") {
			t.Errorf("its files: %v", err)
		}
		for range 3 {
			h.restart()
			h.wantState("one", container.StateExited, 137)
		}
		h.start("one")
		synctest.Wait()
		h.wantState("one", container.StateRunning, 0)
		if got := h.output("one"); got != "before\nremembered 42\n" {
			t.Errorf("it says %q", got)
		}
		m := h.driver.Machine(id)
		if who := m.Identified(); len(who) != 1 || who[0].Hostname+who[0].BootID+who[0].MachineID != "" {
			t.Errorf("it is told to be another one: %+v", who)
		}
		if m.Identity().UnixNanos == 0 || m.Frozen(id) {
			t.Error("it has no time, or stands still")
		}
		if left := h.stateFiles(id); len(left) > 0 {
			t.Errorf("left: %v", left)
		}
		// And again; now it goes for good.
		if err := h.ContainerSaveState(ctx, "one"); err != nil {
			t.Fatal(err)
		}
		if err := h.ContainerRestoreState(ctx, "one"); err != nil {
			t.Fatal(err)
		}
		wantConflict(t, h.ContainerRestoreState(ctx, "one"))
		if err := h.ContainerSaveState(ctx, "one"); err != nil {
			t.Fatal(err)
		}
		if err := h.ContainerRemove(ctx, "one", false, false); err != nil {
			t.Fatal(err)
		}
		h.empty()
	})
}

// stateFiles is what there is of a container's saved state, finished or not.
func (h *house) stateFiles(id string) []string {
	h.t.Helper()
	entries, err := os.ReadDir(h.path("root", "containers", id))
	if err != nil {
		h.t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		if e.Name() != scratchName && e.Name() != "log" && e.Name() != "execs" {
			out = append(out, e.Name())
		}
	}
	return out
}

// Whatever step of the saving fails, the container goes on and nothing of its state is left.
func TestHibernateFails(t *testing.T) {
	fail := func(_ *sandboxtest.Machine, c *wire.Call) { c.Fail(api.Errorf(api.CodeInternal, "no way")) }
	for name, set := range map[string]func(h *house, id string){
		"freeze":        func(h *house, _ string) { h.driver.Fault(onFrozen(fail)) },
		"checkpoint":    func(h *house, _ string) { h.driver.FailCheckpoint(errors.New("no way")) },
		"no space left": func(h *house, _ string) { h.driver.FailWrite(os.ErrInvalid) },
		"disk": func(h *house, id string) {
			disk := h.path("root", "containers", id, scratchName)
			if err := os.Rename(disk, disk+".away"); err != nil {
				h.t.Fatal(err)
			}
		},
		"the place is taken": func(h *house, id string) {
			state := h.path("root", "containers", id, "state")
			if err := os.MkdirAll(filepath.Join(state, "x"), 0o700); err != nil {
				h.t.Fatal(err)
			}
			h.driver.FailWrite(errors.New("no way"))
		},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, h *house) {
				id := h.remembering("one", "42")
				set(h, id)
				if err := h.ContainerSaveState(context.Background(), "one"); err == nil {
					t.Error("it works")
				}
				h.driver.Fault(nil)
				h.driver.FailCheckpoint(nil)
				h.driver.FailWrite(nil)
				synctest.Wait()
				h.wantState("one", container.StateRunning, 0)
				if m := h.driver.Machine(id); m == nil || m.Frozen(id) || m.Paused() {
					t.Error("it stands still")
				}
				disk := h.path("root", "containers", id, scratchName)
				if _, err := os.Stat(disk + ".away"); err == nil {
					if err := os.Rename(disk+".away", disk); err != nil {
						t.Fatal(err)
					}
				}
				if left := h.stateFiles(id); len(left) > 0 && name != "the place is taken" {
					t.Errorf("left: %v", left)
				}
				if err := h.ContainerSaveState(context.Background(), "one"); err != nil {
					t.Errorf("the next time: %v", err)
				}
				h.start("one")
			})
		})
	}
}

// State that was damaged, cut, swapped or saved by another version is refused; it can be discarded.
func TestDamagedState(t *testing.T) {
	for name, damage := range map[string]func(t *testing.T, dir, other string){
		"manifest gone": func(t *testing.T, dir, _ string) { remove(t, filepath.Join(dir, "state", "manifest")) },
		"manifest cut":  func(t *testing.T, dir, _ string) { truncate(t, filepath.Join(dir, "state", "manifest")) },
		"manifest of another": func(t *testing.T, dir, other string) {
			replace(t, filepath.Join(dir, "state", "manifest"), filepath.Join(other, "state", "manifest"))
		},
		"memory flipped": func(t *testing.T, dir, _ string) { flip(t, filepath.Join(dir, "state", "saved")) },
		"memory cut":     func(t *testing.T, dir, _ string) { truncate(t, filepath.Join(dir, "state", "saved")) },
		"memory of another": func(t *testing.T, dir, other string) {
			replace(t, filepath.Join(dir, "state", "saved"), filepath.Join(other, "state", "saved"))
		},
		"disk flipped": func(t *testing.T, dir, _ string) { flip(t, filepath.Join(dir, scratchName)) },
		"disk cut":     func(t *testing.T, dir, _ string) { truncate(t, filepath.Join(dir, scratchName)) },
		"disk of another": func(t *testing.T, dir, other string) {
			replace(t, filepath.Join(dir, scratchName), filepath.Join(other, scratchName))
		},
		"all gone": func(t *testing.T, dir, _ string) {
			if err := os.RemoveAll(filepath.Join(dir, "state")); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, h *house) {
				ctx := context.Background()
				one, other := h.remembering("one", "42"), h.remembering("other", "43")
				for _, id := range []string{one, other} {
					if err := h.ContainerSaveState(ctx, id); err != nil {
						t.Fatal(err)
					}
				}
				damage(t, h.path("root", "containers", one), h.path("root", "containers", other))
				if err := h.ContainerStart(ctx, "one"); err == nil || !strings.Contains(err.Error(), "--discard") {
					t.Fatalf("it starts, or nobody says what can be done: %v", err)
				}
				h.noMachine()
				h.wantState("one", container.StateExited, 128)
				if err := h.ContainerDiscardState(ctx, "one"); err != nil {
					t.Fatal(err)
				}
				wantConflict(t, h.ContainerDiscardState(ctx, "one"))
				h.start("one")
				synctest.Wait()
				if strings.Contains(h.output("one"), "remembered") {
					t.Error("it remembers")
				}
			})
		})
	}
}

// What another version saved is refused in words, and kept: it goes on once that version is back. Nothing starts warm from it.
func TestSavedByAnotherVersion(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		ctx := context.Background()
		h.remembering("one", "42")
		if _, err := h.SnapshotCreate(ctx, "kept", "one"); err != nil {
			t.Fatal(err)
		}
		if err := h.ContainerSaveState(ctx, "one"); err != nil {
			t.Fatal(err)
		}
		h.run("warm", "sleep", warm())
		h.settled()
		h.restart()
		h.driver.Upgrade("2")
		told := func(what string, err error) {
			t.Helper()
			if !cerrdefs.IsConflict(err) || !strings.Contains(err.Error(), "another version of the virtual machine monitor") {
				t.Errorf("%s: %v", what, err)
			}
		}
		for range 2 {
			told("restore", h.ContainerRestoreState(ctx, "one"))
			_, err := h.SnapshotRun(ctx, "kept", "two")
			told("snapshot", err)
		}
		if cold := h.run("cold", "sleep", warm()); len(h.driver.Machine(cold).Identified()) != 0 {
			t.Error("it starts from a warm image of another version")
		}
		h.settled()
		h.driver.Upgrade("")
		if err := h.ContainerRestoreState(ctx, "one"); err != nil {
			t.Error(err)
		}
		if _, err := h.SnapshotRun(ctx, "kept", "two"); err != nil {
			t.Error(err)
		}
		synctest.Wait()
		if got := h.output("one"); got != "before\nremembered 42\n" {
			t.Errorf("it says %q", got)
		}
		if again := h.run("again", "sleep", warm()); len(h.driver.Machine(again).Identified()) != 1 {
			t.Error("its warm image has gone")
		}
		if err := h.SnapshotRemove(ctx, "kept"); err != nil {
			t.Error(err)
		}
	})
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

func truncate(t *testing.T, path string) {
	t.Helper()
	fi, err := os.Stat(path)
	if err == nil {
		err = os.Truncate(path, fi.Size()/2)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func flip(t *testing.T, path string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var b [1]byte
	if _, err := f.ReadAt(b[:], 20); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 0x10
	if _, err := f.WriteAt(b[:], 20); err != nil {
		t.Fatal(err)
	}
}

func replace(t *testing.T, path, with string) {
	t.Helper()
	if err := os.Rename(with, path); err != nil {
		t.Fatal(err)
	}
}

// A restore that fails can be tried again: neither state nor disk are touched.
func TestRestoreFails(t *testing.T) {
	fail := func(_ *sandboxtest.Machine, c *wire.Call) { c.Fail(api.Errorf(api.CodeInternal, "no way")) }
	for name, set := range map[string]func(d *sandboxtest.Driver){
		"restore":   func(d *sandboxtest.Driver) { d.FailRestore(errors.New("no way")) },
		"configure": func(d *sandboxtest.Driver) { d.Fault(on(api.MethodConfigure, fail)) },
		"identity":  func(d *sandboxtest.Driver) { d.Fault(on(api.MethodIdentify, fail)) },
		"go on":     func(d *sandboxtest.Driver) { d.Fault(on(api.MethodFreeze, fail)) },
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, h *house) {
				ctx := context.Background()
				id := h.remembering("one", "42", autoRemove)
				if err := h.ContainerSaveState(ctx, "one"); err != nil {
					t.Fatal(err)
				}
				set(h.driver)
				for range 2 {
					if err := h.ContainerStart(ctx, "one"); err == nil {
						t.Fatal("it starts")
					}
					h.noMachine()
				}
				h.driver.FailRestore(nil)
				h.driver.Fault(nil)
				h.start("one")
				synctest.Wait()
				if got := h.output("one"); got != "before\nremembered 42\n" {
					t.Errorf("it says %q", got)
				}
				if got := h.onDisk(id, 2); got != "42" {
					t.Errorf("it has %q on its disk", got)
				}
			})
		})
	}
}

// Wherever a daemon dies between running and hibernated, in either direction, the next one finds one of the two, whole.
func TestCrashWhileHibernating(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		ctx := context.Background()
		id := h.remembering("one", "42")
		dir := h.path("root", "containers", id)

		// In mid-save: a draft, or all of the state, is there; the record is not. The machine stands still.
		for _, left := range []string{".new-1", "state"} {
			m := h.driver.Machine(id)
			if err := m.Pause(ctx); err != nil {
				t.Fatal(err)
			}
			h.crash()
			if err := os.MkdirAll(filepath.Join(dir, left), 0o700); err != nil {
				t.Fatal(err)
			}
			h.open()
			synctest.Wait()
			h.wantState("one", container.StateRunning, 0)
			if m.Paused() || m.Frozen(id) {
				t.Errorf("%s: it stands still", left)
			}
			if found := h.stateFiles(id); len(found) > 0 {
				t.Errorf("%s: left: %v", left, found)
			}
		}

		// After the record, before the machine's end.
		if err := h.ContainerSaveState(ctx, "one"); err != nil {
			t.Fatal(err)
		}
		h.start("one")
		synctest.Wait()
		running := h.find1(id).snapshot()
		if err := h.ContainerSaveState(ctx, "one"); err != nil {
			t.Fatal(err)
		}
		h.crash()
		if err := os.MkdirAll(running.Sandbox.VM.Dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if _, err := h.driver.Start(ctx, running.Sandbox.VM); err != nil {
			t.Fatal(err)
		}
		h.write(id, func(r *record) { r.Status, r.Sandbox = container.StateRunning, running.Sandbox })
		h.open()
		synctest.Wait()
		h.noMachine()
		h.wantState("one", container.StateExited, 137)

		// In mid-restore: the disk is put aside, a copy is there that a machine has changed.
		h.crash()
		disk := filepath.Join(dir, scratchName)
		if err := os.Rename(disk, filepath.Join(dir, "state", scratchName)); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(disk, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
		h.write(id, booting)
		h.open()
		synctest.Wait()
		h.start("one")
		synctest.Wait()
		if got := h.onDisk(id, 2); got != "42" {
			t.Errorf("it has %q on its disk", got)
		}
		if got := h.output("one"); !strings.HasSuffix(got, "remembered 42\n") {
			t.Errorf("it says %q", got)
		}
	})
}

func (h *house) find1(id string) *ctr {
	h.t.Helper()
	c, err := h.find(id)
	if err != nil {
		h.t.Fatal(err)
	}
	return c
}

// A prune leaves what is hibernated alone; a discarded one that is removed at its end is removed.
func TestHibernatedIsNotPruned(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		ctx := context.Background()
		h.remembering("one", "42")
		h.remembering("two", "43", autoRemove)
		for _, name := range []string{"one", "two"} {
			if err := h.ContainerSaveState(ctx, name); err != nil {
				t.Fatal(err)
			}
		}
		if report, err := h.ContainerPrune(ctx, nil); err != nil || len(report.ContainersDeleted) != 0 {
			t.Errorf("pruned: %+v, %v", report, err)
		}
		for _, name := range []string{"one", "two"} {
			if err := h.ContainerDiscardState(ctx, name); err != nil {
				t.Fatal(err)
			}
		}
		_, err := h.find("two")
		wantNotFound(t, err)
		if report, err := h.ContainerPrune(ctx, nil); err != nil || len(report.ContainersDeleted) != 1 {
			t.Errorf("pruned: %+v, %v", report, err)
		}
		h.empty()
	})
}

// What is being stopped is neither saved nor cloned: it would end as soon as it went on.
func TestSaveWhileStopping(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		ctx := context.Background()
		h.run("one", "deaf")
		stopped := make(chan error, 1)
		go func() { stopped <- h.ContainerStop(ctx, "one", "", nil) }()
		synctest.Wait()
		wantConflict(t, h.ContainerSaveState(ctx, "one"))
		_, err := h.ContainerClone(ctx, "one", CloneOptions{Count: 1})
		wantConflict(t, err)
		if err := <-stopped; err != nil {
			t.Fatal(err)
		}
		h.wantState("one", container.StateExited, 137)
		// It is nothing that lasts: the next run can be saved.
		h.start("one")
		if err := h.ContainerSaveState(ctx, "one"); err != nil {
			t.Fatal(err)
		}
	})
}

// Execs end where their container is hibernated, and no clone has those of its source.
func TestExecsOfSaved(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		ctx := context.Background()
		h.run("one", "sleep")
		id := h.exec("one", container.ExecCreateRequest{Cmd: []string{"deaf"}})
		done := h.begin(ctx, id, newClient().streams)
		synctest.Wait()
		report, err := h.ContainerClone(ctx, "one", CloneOptions{Count: 1})
		if err != nil {
			t.Fatal(err)
		}
		clone := h.find1(report.IDs[0])
		if execs := clone.listExecs(); len(execs) != 0 {
			t.Errorf("the clone has %d execs", len(execs))
		}
		if _, err := os.Stat(clone.execDir()); err == nil {
			t.Error("the clone has files of execs")
		}
		h.wantExec(id, true, 0)
		if err := h.ContainerSaveState(ctx, "one"); err != nil {
			t.Fatal(err)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
		h.wantExec(id, false, 137)
		h.start("one")
		h.restart() // nobody takes up what is not there
		h.wantExec(id, false, 137)
		again := h.exec("one", container.ExecCreateRequest{Cmd: []string{"true"}})
		if err := <-h.begin(ctx, again, newClient().streams); err != nil {
			t.Error(err)
		}
		h.wantExec(again, false, 0)
	})
}

// Removing by force what is just being cloned or saved waits for that, and then leaves nothing of it.
func TestRemoveWhileSaving(t *testing.T) {
	for what, save := range map[string]func(h *house) error{
		"hibernate": func(h *house) error { return h.ContainerSaveState(context.Background(), "one") },
		"clone": func(h *house) error {
			_, err := h.ContainerClone(context.Background(), "one", CloneOptions{Count: 2, Name: "two"})
			return err
		},
	} {
		t.Run(what, func(t *testing.T) {
			inBubble(t, func(t *testing.T, h *house) {
				ctx := context.Background()
				h.remembering("one", "42")
				frozen, goOn := make(chan struct{}), make(chan struct{})
				var once sync.Once
				h.driver.Fault(onFrozen(func(_ *sandboxtest.Machine, c *wire.Call) {
					once.Do(func() { close(frozen); <-goOn })
					c.Fail(api.Errorf(api.CodeInternal, "no way"))
				}))
				saved, removed := make(chan error, 1), make(chan error, 1)
				go func() { saved <- save(h) }()
				<-frozen
				go func() { removed <- h.ContainerRemove(ctx, "one", true, false) }()
				synctest.Wait()
				close(goOn)
				if err := <-saved; err == nil {
					t.Error("it is saved")
				}
				if err := <-removed; err != nil {
					t.Error(err)
				}
				synctest.Wait()
				h.empty()
			})
		})
	}
}

// Who cannot restore is told what has changed, not all that there is.
func TestFormDiffers(t *testing.T) {
	now := form{Format: 1, Protocol: 2, Guest: "aaaaaaaaaaaaaaaa", Monitor: "QEMU 7.2; tcg; tsc 2596 MHz"}
	for want, change := range map[string]func(*form){
		"cradle (format 3, protocol 2; now 1, 2)":                       func(f *form) { f.Format = 3 },
		"the guest's kernel and agent (bbbbbbbbbbbb; now aaaaaaaaaaaa)": func(f *form) { f.Guest = "bbbbbbbbbbbbbbbb" },
		`("QEMU 10.0"; now "QEMU 7.2")`:                                 func(f *form) { f.Monitor = "QEMU 10.0; tcg; tsc 2596 MHz" },
		`("tsc 1000 MHz"; now "tsc 2596 MHz")`:                          func(f *form) { f.Monitor = "QEMU 7.2; tcg; tsc 1000 MHz" },
		`(""; now "tsc 2596 MHz")`:                                      func(f *form) { f.Monitor = "QEMU 7.2; tcg" },
		`("kvm"; now "")`:                                               func(f *form) { f.Monitor += "; kvm" },
		`(""; now "QEMU 7.2")`:                                          func(f *form) { f.Monitor = "" },
	} {
		was := now
		change(&was)
		if got := was.differs(now); !strings.Contains(got, want) {
			t.Errorf("%q, not %q", got, want)
		}
	}
}
