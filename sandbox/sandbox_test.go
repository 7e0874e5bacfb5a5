package sandbox_test

import (
	"context"
	"errors"
	"os"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cradlevm/cradle/api"
	"github.com/cradlevm/cradle/api/wire"
	"github.com/cradlevm/cradle/sandbox"
	"github.com/cradlevm/cradle/sandbox/sandboxtest"
	"github.com/cradlevm/cradle/vm"
)

func TestMain(m *testing.M) {
	sandboxtest.Alone()
	os.Exit(m.Run())
}

func inBubble(t *testing.T, test func(t *testing.T, d *sandboxtest.Driver, c sandbox.Config)) {
	t.Helper()
	// yamux pools its timers, and one from a bubble may not be used outside, nor the other way. Two collections empty a
	// pool.
	emptyPools := func() { runtime.GC(); runtime.GC() }
	emptyPools()
	defer emptyPools()
	synctest.Test(t, func(t *testing.T) {
		d := sandboxtest.New()
		test(t, d, sandbox.Config{Token: sandbox.NewToken(), VM: vm.Config{ID: "a", Dir: t.TempDir(), CPUs: 1, Memory: 128 << 20, Kernel: "/dev/null"}})
		for _, m := range d.Running() {
			m.Die(nil)
		}
	})
}

func start(t *testing.T, d *sandboxtest.Driver, c sandbox.Config, args ...string) *sandbox.Sandbox {
	t.Helper()
	s, err := sandbox.Start(context.Background(), d, c)
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	if _, _, err := s.Run(ctx, api.CreateRequest{ID: "a", Spec: &specs.Spec{Process: &specs.Process{Args: args}}}); err != nil {
		t.Fatal(err)
	}
	return s
}

func silence(_ *sandboxtest.Machine, c *wire.Call) bool { <-c.Context.Done(); return true }

func TestBootThatNeverAnswers(t *testing.T) {
	inBubble(t, func(t *testing.T, d *sandboxtest.Driver, c sandbox.Config) {
		d.Fault(silence)
		begun := time.Now()
		if _, err := sandbox.Start(context.Background(), d, c); err == nil {
			t.Error("it starts")
		}
		if took := time.Since(begun); took != sandbox.BootTimeout {
			t.Errorf("after %v", took)
		}
		if len(d.Running()) > 0 {
			t.Error("the machine is left")
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if _, err := sandbox.Start(ctx, d, c); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v", err)
		}
		if len(d.Running()) > 0 {
			t.Error("the machine is left")
		}
	})
}

// A guest whose kernel has lost its timer is powered on again, as one that only says nothing is not.
func TestBootWithoutTimer(t *testing.T) {
	const lost = "PCI: none\nAPIC frequency too slow, disabling apic timer\nand so on\n"
	for _, tc := range []struct {
		name        string
		bad, booted int
	}{{"never", 0, 1}, {"once", 1, 2}, {"always", 1000, 4}} {
		t.Run(tc.name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, d *sandboxtest.Driver, c sandbox.Config) {
				d.Fault(func(m *sandboxtest.Machine, call *wire.Call) bool {
					if d.Started() > tc.bad {
						return false
					}
					m.Print(lost)
					return silence(m, call)
				})
				begun := time.Now()
				s, err := sandbox.Start(context.Background(), d, c)
				if d.Started() != tc.booted {
					t.Errorf("powered on %d times", d.Started())
				}
				if took := time.Since(begun); took > sandbox.BootTimeout/10 {
					t.Errorf("it took %v", took)
				}
				if tc.bad >= tc.booted {
					if !errors.Is(err, sandbox.ErrTimer) || len(d.Running()) > 0 {
						t.Errorf("%v; %d machines are left", err, len(d.Running()))
					}
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				if s.Boots() != tc.booted {
					t.Errorf("it tells of %d boots", s.Boots())
				}
				if _, err := s.Ping(context.Background()); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// An agent whose answer is lost is asked again by another connection, soon.
func TestLostAnswer(t *testing.T) {
	inBubble(t, func(t *testing.T, d *sandboxtest.Driver, c sandbox.Config) {
		s := start(t, d, c, "lines", "3")
		s.Disconnect()
		again, err := sandbox.Attach(context.Background(), d, c)
		if err != nil {
			t.Fatal(err)
		}
		d.Deafen(2)
		begun := time.Now()
		if _, err := again.Ping(context.Background()); err != nil {
			t.Error(err)
		}
		if took := time.Since(begun); took > 5*time.Second {
			t.Errorf("it took %v", took)
		}
		// Whoever loses patience before has his own reason.
		d.Deafen(100)
		again.Disconnect()
		synctest.Wait()
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if _, err := again.Ping(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("nobody answers: %v", err)
		}
		d.Deafen(0)
	})
}

// A guest that answers nobody holds up none but those who wait for it, and each of those no longer than they like.
func TestHungGuest(t *testing.T) {
	inBubble(t, func(t *testing.T, d *sandboxtest.Driver, c sandbox.Config) {
		s := start(t, d, c, "deaf")
		d.Fault(silence)
		d.Machine("a").Break()
		synctest.Wait()
		forever := make(chan error, 1)
		go func() { _, err := s.Wait(context.Background(), api.ProcessRef{ID: "a"}); forever <- err }()
		synctest.Wait()
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		begun := time.Now()
		if err := s.Signal(ctx, api.ProcessRef{ID: "a"}, 9, false); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v", err)
		}
		if time.Since(begun) != time.Second {
			t.Errorf("after %v", time.Since(begun))
		}
		if err := s.Kill(); err != nil {
			t.Error(err)
		}
		if err := <-forever; !errors.Is(err, sandbox.ErrGone) {
			t.Errorf("the wait ends with %v", err)
		}
		if _, err := s.Ping(context.Background()); !errors.Is(err, sandbox.ErrGone) {
			t.Errorf("a call after the end: %v", err)
		}
	})
}

// Attach asks nothing of the guest: it may be paused. The first call opens the session.
// A guest whose calls arrive late is told the time again, until it has it right; one whose calls always do is not told for ever.
func TestLateClock(t *testing.T) {
	const late = time.Second
	for _, test := range []struct{ late, asked int }{{0, 1}, {1, 2}, {3, 4}, {1000, 6}} { // 6: once with all else, and clockTries
		inBubble(t, func(t *testing.T, d *sandboxtest.Driver, c sandbox.Config) {
			asked := 0
			d.Fault(func(_ *sandboxtest.Machine, call *wire.Call) bool {
				if call.Method == api.MethodConfigure {
					if asked++; asked <= test.late {
						time.Sleep(late)
					}
				}
				return false
			})
			s, err := sandbox.Start(context.Background(), d, c)
			if err != nil {
				t.Fatal(err)
			}
			told := time.Unix(0, d.Running()[0].Identity().UnixNanos)
			if behind := time.Since(told); asked != test.asked || test.late < asked && behind != 0 {
				t.Errorf("%d late calls: the guest is told the time %d times, and is %v behind", test.late, asked, behind)
			}
			if err := s.Kill(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestAttach(t *testing.T) {
	inBubble(t, func(t *testing.T, d *sandboxtest.Driver, c sandbox.Config) {
		s := start(t, d, c, "lines", "3")
		if err := s.Pause(context.Background()); err != nil {
			t.Fatal(err)
		}
		s.Disconnect()
		again, err := sandbox.Attach(context.Background(), d, c)
		if err != nil {
			t.Fatal(err)
		}
		if err := again.Resume(context.Background()); err != nil {
			t.Fatal(err)
		}
		out, err := again.Output(context.Background(), api.ProcessRef{ID: "a"}, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, payload, _, err := out.Next(); err != nil || string(payload) != "1\n" {
			t.Errorf("%q, %v", payload, err)
		}
		if err := out.Acknowledge(); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		first := out.Offset()
		out.Close()
		var answered *api.Error
		if _, err := again.Output(context.Background(), api.ProcessRef{ID: "a"}, 0); !errors.As(err, &answered) || answered.Code != api.CodeFailedPrecondition {
			t.Errorf("what was acknowledged: %v", err)
		}
		left, err := again.OutputLeft(context.Background(), api.ProcessRef{ID: "a"}, 0)
		if err != nil || left.Offset() != first {
			t.Errorf("what is left begins at %d, %v", left.Offset(), err)
		}
		if err := again.Stop(context.Background()); err != nil {
			t.Error(err)
		}
		if _, err := sandbox.Attach(context.Background(), d, c); !errors.Is(err, vm.ErrExited) {
			t.Errorf("after the end: %v", err)
		}
	})
}

// Next returns when the output is closed under it.
func TestCloseOutput(t *testing.T) {
	inBubble(t, func(t *testing.T, d *sandboxtest.Driver, c sandbox.Config) {
		s := start(t, d, c, "sleep")
		out, err := s.Output(context.Background(), api.ProcessRef{ID: "a"}, 0)
		if err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() { _, _, _, err := out.Next(); ended <- err }()
		synctest.Wait()
		out.Close()
		if err := <-ended; err == nil {
			t.Error("a record out of nowhere")
		}
	})
}
