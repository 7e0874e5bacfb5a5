package node

import (
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/moby/moby/api/types/container"

	"github.com/cradlevm/cradle/api"
	"github.com/cradlevm/cradle/api/wire"
	"github.com/cradlevm/cradle/sandbox"
	"github.com/cradlevm/cradle/sandbox/sandboxtest"
)

// on makes a fault of one method.
func on(method string, f func(*sandboxtest.Machine, *wire.Call)) func(*sandboxtest.Machine, *wire.Call) bool {
	return func(m *sandboxtest.Machine, c *wire.Call) bool {
		if c.Method == method {
			f(m, c)
			return true
		}
		return false
	}
}

// silence never answers.
func silence(_ *sandboxtest.Machine, c *wire.Call) { <-c.Context.Done() }

// Whatever step of a start fails, nothing of it is left and it can be tried again.
func TestFailedStarts(t *testing.T) {
	refuse := func(code api.ErrorCode) func(*sandboxtest.Machine, *wire.Call) {
		return func(_ *sandboxtest.Machine, c *wire.Call) { c.Fail(api.Errorf(code, "no\x1b[2J way\n")) }
	}
	noProcess := func(_ *sandboxtest.Machine, c *wire.Call) { c.Finish(api.StartResult{}) }
	die := func(m *sandboxtest.Machine, _ *wire.Call) { m.Die(errors.New("the guest's end")) }
	for name, step := range map[string]struct {
		fault func(*sandboxtest.Machine, *wire.Call) bool
		set   func(h *house)
		code  int
		text  string
	}{
		"monitor":            {set: func(h *house) { h.driver.Refuse(errors.New("no monitor")) }, code: 128, text: "no monitor"},
		"image":              {set: func(h *house) { h.images.gone = true }, code: 128, text: "no such image"},
		"boot without end":   {fault: on(api.MethodConfigure, silence), code: 128, text: "did not answer"},
		"boot, death":        {fault: on(api.MethodConfigure, die), code: 128, text: "the guest's end"},
		"start, refused":     {fault: on(api.MethodRun, refuse(api.CodeUnsupported)), code: 128, text: "no[2J way"},
		"start, without end": {fault: on(api.MethodRun, silence), code: 128, text: "deadline"},
		"start, death":       {fault: on(api.MethodRun, die), code: 128, text: "has ended"},
		"start, not found":   {fault: on(api.MethodRun, refuse(api.CodeCommandNotFound)), code: 127},
		"start, no program":  {fault: on(api.MethodRun, refuse(api.CodeCommandNotRunnable)), code: 126},
		"start, no process":  {fault: on(api.MethodRun, noProcess), code: 128, text: "process id 0"},
		"runtime directory": {set: func(h *house) {
			if err := os.Remove(h.path("run", "s")); err != nil {
				h.t.Fatal(err)
			}
			if err := os.WriteFile(h.path("run", "s"), nil, 0o600); err != nil {
				h.t.Fatal(err)
			}
		}, code: 128, text: "make runtime directory"},
		"scratch disk": {set: func(h *house) {
			if err := os.Remove(h.path("root", "scratch")); err != nil {
				h.t.Fatal(err)
			}
			if err := os.WriteFile(h.path("root", "scratch"), nil, 0o600); err != nil {
				h.t.Fatal(err)
			}
		}, code: 128, text: "scratch"},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, h *house) {
				ctx := context.Background()
				id := h.create("a", "sleep")
				h.create("gone", "sleep", autoRemove)
				h.driver.Fault(step.fault)
				if step.set != nil {
					step.set(h)
				}
				exit := h.waiting("a", container.WaitConditionNextExit)
				err := h.ContainerStart(ctx, "a")
				if err == nil || !strings.Contains(err.Error(), step.text) || strings.ContainsAny(err.Error(), "\x1b\n") {
					t.Errorf("error %q, want one with %q", err, step.text)
				}
				if code := h.result(exit); code != step.code {
					t.Errorf("exit code %d, want %d", code, step.code)
				}
				h.wantState("a", container.StateCreated, step.code)
				h.noMachine()
				if _, err := os.Stat(h.path("run", "s", id[:12])); err == nil {
					t.Error("the runtime directory is left")
				}
				c, _ := h.find("a")
				if rec := c.snapshot(); rec.Sandbox != nil || rec.Booting {
					t.Errorf("the record still says that a VM may be there")
				}
				removed := h.waiting("gone", container.WaitConditionRemoved)
				if err := h.ContainerStart(ctx, "gone"); err == nil {
					t.Error("it starts")
				}
				h.result(removed)
				_, err = h.find("gone")
				wantNotFound(t, err)
				h.noMachine()

				h.driver.Fault(nil)
				h.driver.Refuse(nil)
				h.images.gone = false
				if step.set == nil {
					h.start("a")
				}
				for _, path := range []string{h.path("run", "s"), h.path("root", "scratch")} {
					if fi, err := os.Lstat(path); err == nil && fi.Mode().IsRegular() {
						if err := errors.Join(os.Remove(path), os.Mkdir(path, 0o755)); err != nil {
							t.Fatal(err)
						}
					}
				}
			})
		})
	}
}

// What an agent says that cannot be ends its machine, and nothing else.
func TestNonsense(t *testing.T) {
	exitCode := func(code int) func(*sandboxtest.Machine, *wire.Call) bool {
		return on(api.MethodWait, func(_ *sandboxtest.Machine, c *wire.Call) { c.Reply(api.ExitStatus{Code: code}) })
	}
	for name, fault := range map[string]func(*sandboxtest.Machine, *wire.Call) bool{
		"exit code 256":      exitCode(256),
		"negative exit code": exitCode(-1),
		"unknown process":    on(api.MethodWait, func(_ *sandboxtest.Machine, c *wire.Call) { c.Fail(api.Errorf(api.CodeNotFound, "who?")) }),
		"not even JSON": on(api.MethodWait, func(m *sandboxtest.Machine, c *wire.Call) {
			io.WriteString(c.Stream, "\x00\x00\x00\x05hello")
			m.Die(nil)
		}),
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, h *house) {
				h.driver.Fault(fault)
				id := h.run("a", "deaf")
				synctest.Wait()
				h.driver.Machine(id).Break() // else nobody asks
				if code := h.wait("a", container.WaitConditionNotRunning); code != 137 {
					t.Errorf("exit code %d", code)
				}
				h.torn(id)
				h.wantState("a", container.StateExited, 137)
				h.noMachine()
			})
		})
	}
}

// Output that cannot be is not believed; the container is not stopped by it, and its exit is not held up.
func TestNonsenseOutput(t *testing.T) {
	for name, bytes := range map[string]string{
		"impossible stream": "\x07\x00\x00\x00\x00\x00\x00\x01x",
		"impossible length": "\x01\x00\x00\x00\xff\xff\xff\xff",
		"empty record":      "\x01\x00\x00\x00\x00\x00\x00\x00",
		"half a header":     "\x01\x00\x00",
		"half a record":     "\x01\x00\x00\x00\x00\x00\x00\x09half",
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, h *house) {
				h.driver.Fault(on(api.MethodOutput, func(_ *sandboxtest.Machine, c *wire.Call) {
					c.Reply(api.OutputResult{})
					io.WriteString(c.Stream, bytes)
				}))
				id := h.run("a", "sleep")
				synctest.Wait()
				h.driver.Machine(id).Break() // else nobody asks
				time.Sleep(time.Minute)
				h.wantState("a", container.StateRunning, 0)
				if err := h.ContainerStop(context.Background(), "a", "", nil); err != nil {
					t.Fatal(err)
				}
				h.wantState("a", container.StateExited, 143)
				if got := h.output("a"); got != "" {
					t.Errorf("the log has %q", got)
				}
			})
		})
	}
}

// A guest that no longer answers can be stopped, killed and removed, in bounded time.
func TestHungGuest(t *testing.T) {
	hang := func(_ *sandboxtest.Machine, c *wire.Call) bool { <-c.Context.Done(); return true }
	for name, end := range map[string]func(h *house) error{
		"stop":   func(h *house) error { return h.ContainerStop(context.Background(), "a", "", nil) },
		"kill":   func(h *house) error { return h.ContainerKill(context.Background(), "a", "") },
		"remove": func(h *house) error { return h.ContainerRemove(context.Background(), "a", true, false) },
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, h *house) {
				id := h.run("a", "sleep")
				synctest.Wait()
				h.driver.Fault(hang)
				h.driver.Machine(id).Break() // the session with it: a new one opens, and answers nothing
				before := time.Now()
				if err := end(h); err != nil {
					t.Error(err)
				}
				if d := time.Since(before); d > 2*time.Minute {
					t.Errorf("it took %v", d)
				}
				h.torn("a")
				h.noMachine()
			})
		})
	}
}

// A container that ignores its stop signal is killed after the time it was given, and not before.
func TestStopTimeout(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		for _, seconds := range []int{0, 3} {
			id := h.run("", "deaf")
			before := time.Now()
			if err := h.ContainerStop(context.Background(), id, "", &seconds); err != nil {
				t.Fatal(err)
			}
			if d := time.Since(before); d != time.Duration(seconds)*time.Second {
				t.Errorf("killed after %v, want %d s", d, seconds)
			}
			h.wantState(id, container.StateExited, 137)
		}
		id := h.run("", "deaf")
		forever := -1
		done := make(chan error, 1)
		go func() { done <- h.ContainerStop(context.Background(), id, "", &forever) }()
		time.Sleep(time.Hour)
		h.wantState(id, container.StateRunning, 0)
		if err := h.ContainerKill(context.Background(), id, "KILL"); err != nil {
			t.Fatal(err)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// A machine that dies takes its container with it; the record says why.
func TestDeathOfMachine(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		id := h.run("a", "sleep")
		synctest.Wait()
		h.driver.Machine(id).Die(errors.New("QEMU: out of luck"))
		if code := h.wait("a", container.WaitConditionNotRunning); code != 137 {
			t.Errorf("exit code %d", code)
		}
		h.torn("a")
		if s := h.state("a"); !strings.Contains(s.Error, "out of luck") {
			t.Errorf("error %q", s.Error)
		}
		h.noMachine()
	})
}

// A removal by force does not wait for a boot that has no end.
func TestRemoveWhileStarting(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		h.driver.Fault(on(api.MethodConfigure, silence))
		h.create("a", "sleep")
		started := make(chan error, 1)
		go func() { started <- h.ContainerStart(context.Background(), "a") }()
		synctest.Wait()
		before := time.Now()
		if err := h.ContainerRemove(context.Background(), "a", true, false); err != nil {
			t.Error(err)
		}
		if d := time.Since(before); d > time.Second {
			t.Errorf("it took %v of %v", d, sandbox.BootTimeout)
		}
		if err := <-started; err == nil {
			t.Error("the start succeeds")
		}
		h.empty()
	})
}

// The daemon's end takes a start under way back; the container is as it was.
func TestCloseWhileStarting(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		h.driver.Fault(on(api.MethodConfigure, silence))
		h.create("a", "sleep")
		started := make(chan error, 1)
		go func() { started <- h.ContainerStart(context.Background(), "a") }()
		synctest.Wait()
		h.stop()
		if err := <-started; err == nil {
			t.Error("the start succeeds")
		}
		h.open()
		h.noMachine()
		h.wantState("a", container.StateCreated, 0)
	})
}
