package vmtest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cradlevm/cradle/api"
	"github.com/cradlevm/cradle/api/wire"
	"github.com/cradlevm/cradle/vm"
	"github.com/cradlevm/cradle/vm/vmtest/guestapi"
)

// testMachine tests on one VM everything that needs no end of it, and then its power-off.
func (s *suite) testMachine(t *testing.T) {
	c := s.config(t)
	c.CPUs, c.Memory = 2, 256<<20
	c.Cmdline = append(c.Cmdline, "vmtest.word=a,b=c")
	fixed, scratch := newDisk(t, "FIXED", 1<<20), newDisk(t, "SCRATCH", 16<<20)
	fixed.ReadOnly = true
	c.Disks = []vm.Disk{fixed, scratch}
	began := time.Now()
	m := s.start(t, c)
	started := time.Since(began)
	client := m.session()
	p := ping(t, client)
	t.Logf("start %v, agent ready %v (of that, %v in the guest), kernel %s",
		started.Round(time.Millisecond), time.Since(began).Round(time.Millisecond), time.Duration(p.ReadyNanos).Round(time.Millisecond), p.Kernel)
	if p.Protocol != api.ProtocolVersion {
		t.Errorf("protocol %d", p.Protocol)
	}

	t.Run("Size", func(t *testing.T) { testSize(t, client, c) })
	t.Run("Busy", func(t *testing.T) { s.testBusy(t, c) })
	t.Run("Console", func(t *testing.T) { testConsole(t, m, client) })
	t.Run("BootDisks", func(t *testing.T) { testBootDisks(t, m, client, fixed, scratch) })
	t.Run("Plug", func(t *testing.T) { testPlug(t, m, client) })
	t.Run("FullDisk", func(t *testing.T) { testFullDisk(t, m, client) })
	t.Run("Pause", func(t *testing.T) { testPause(t, m, client) })
	t.Run("Echo", func(t *testing.T) { testEcho(t, client) })
	t.Run("SecondDial", func(t *testing.T) { testSecondDial(t, m, client) })
	t.Run("Reconnect", func(t *testing.T) { testReconnect(t, m) })

	askEnd(t, m.session(), guestapi.MethodPowerOff)
	if err := m.end(); err != nil {
		t.Errorf("after a power-off: %v", err)
	}
	if len(m.Console(16)) != 16 {
		t.Errorf("the console after the end: %q", m.Console(16))
	}
}

func testSize(t *testing.T, client *wire.Client, c vm.Config) {
	var info guestapi.Info
	call(t, client, guestapi.MethodInfo, nil, &info)
	if info.CPUs != c.CPUs {
		t.Errorf("%d CPUs, want %d", info.CPUs, c.CPUs)
	}
	if info.MemoryBytes > c.Memory || info.MemoryBytes < c.Memory*3/4 {
		t.Errorf("%d bytes of memory, want somewhat less than %d", info.MemoryBytes, c.Memory)
	}
	for _, word := range c.Cmdline {
		if !slices.Contains(info.Cmdline, word) {
			t.Errorf("command line %q lacks %q", info.Cmdline, word)
		}
	}
}

// testBusy checks that a directory holds one VM.
func (s *suite) testBusy(t *testing.T, c vm.Config) {
	v, err := s.driver.Start(within(t), c)
	if err == nil {
		v.Kill()
	}
	if !errors.Is(err, vm.ErrInvalid) {
		t.Errorf("a second VM in the same directory: %v, want ErrInvalid", err)
	}
}

func testConsole(t *testing.T, m *machine, client *wire.Client) {
	const lines = 4000 // more than any driver keeps whole in one buffer of its
	var text strings.Builder
	for i := range lines {
		fmt.Fprintf(&text, "line %d of the console test\n", i)
	}
	call(t, client, guestapi.MethodPrint, guestapi.Print{Text: text.String()}, nil)
	last := fmt.Sprintf("line %d of the console test", lines-1)
	for began := time.Now(); !strings.Contains(string(m.Console(4096)), last); time.Sleep(time.Millisecond) {
		if time.Since(began) > limit {
			t.Fatalf("the console's end is %q", m.Console(100))
		}
	}
	if n := len(m.Console(100)); n != 100 {
		t.Errorf("Console(100) gave %d bytes", n)
	}
	if n := len(m.Console(0)); n != 0 {
		t.Errorf("Console(0) gave %d bytes", n)
	}
	if n := len(m.Console(1 << 30)); n < 32<<10 || n > 1<<20 {
		t.Errorf("the console keeps %d bytes, want some tens of thousands", n)
	}
}

func testPause(t *testing.T, m *machine, client *wire.Client) {
	p, ok := m.VM.(vm.Pauser)
	if !ok {
		t.Skip("the driver has no Pauser")
	}
	for range 2 {
		if err := p.Pause(within(t)); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	if err := client.Call(ctx, api.MethodPing, nil, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("ping of a paused VM: %v, want the deadline", err)
	}
	for range 2 {
		if err := p.Resume(within(t)); err != nil {
			t.Fatal(err)
		}
	}
	ping(t, client)
}

func (s *suite) testPanic(t *testing.T) {
	m := s.start(t, s.config(t))
	askEnd(t, m.session(), guestapi.MethodPanic)
	err := m.end()
	if !errors.Is(err, vm.ErrExited) || !strings.Contains(err.Error(), "Kernel panic") {
		t.Errorf("after a panic: %v; want ErrExited with the console's end", err)
	}
	if !strings.Contains(string(m.Console(8<<10)), "testguest: about to panic") {
		t.Errorf("the console lacks what came before the panic")
	}
}

func (s *suite) testReset(t *testing.T) {
	m := s.start(t, s.config(t))
	askEnd(t, m.session(), guestapi.MethodReset)
	if err := m.end(); !errors.Is(err, vm.ErrExited) {
		t.Errorf("after a restart of the guest: %v; want ErrExited", err)
	}
}

func (s *suite) testMonitorKilled(t *testing.T) {
	m := s.start(t, s.config(t))
	client := m.session()
	call(t, client, guestapi.MethodPrint, guestapi.Print{Text: "famous last words\n"}, nil)
	began := time.Now()
	syscall.Kill(m.PID(), syscall.SIGKILL)
	err := m.end()
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("noticed after %v", took)
	}
	if !errors.Is(err, vm.ErrExited) || !strings.Contains(err.Error(), "famous last words") || !strings.Contains(err.Error(), "killed") {
		t.Errorf("after kill -9: %v; want ErrExited with signal and console", err)
	}
	if p, ok := m.VM.(vm.Pauser); ok {
		if err := p.Pause(within(t)); !errors.Is(err, vm.ErrExited) {
			t.Errorf("Pause after the end: %v, want ErrExited", err)
		}
	}
}

// testSilent checks that a guest that never answers costs its caller no more than patience.
func (s *suite) testSilent(t *testing.T) {
	c := s.config(t)
	c.Cmdline = append(c.Cmdline, guestapi.Silent)
	m := s.start(t, c)
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	conn, err := m.Dial(ctx, api.AgentPort)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := wire.Dial(ctx, conn, m.token); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("session with a silent guest: %v, want the deadline", err)
	}
	if err := m.Shutdown(within(t)); err != nil {
		t.Error(err)
	}
	if err := m.end(); err != nil {
		t.Errorf("after Shutdown: %v", err)
	}
}

// testMany runs ten VMs at once and kills each twice at the same time.
func (s *suite) testMany(t *testing.T) {
	const machines = 10
	var wg sync.WaitGroup
	began := time.Now()
	for i := range machines {
		c := s.config(t)
		c.ID = fmt.Sprintf("vmtest-%d", i)
		c.Memory = 96 << 20
		m := s.start(t, c)
		wg.Go(func() {
			ctx := within(t)
			conn, err := m.Dial(ctx, api.AgentPort)
			if err != nil {
				t.Error(err)
				return
			}
			client, err := wire.Dial(ctx, conn, m.token)
			if err != nil {
				t.Error(err)
				return
			}
			if err := client.Call(ctx, api.MethodPing, nil, nil); err != nil {
				t.Error(err)
			}
		})
		t.Cleanup(func() {
			var kills sync.WaitGroup
			for range 2 {
				kills.Go(func() {
					if err := m.Kill(); err != nil {
						t.Error(err)
					}
				})
			}
			kills.Wait()
			if err := m.end(); err != nil {
				t.Errorf("after Kill: %v", err)
			}
		})
	}
	wg.Wait()
	t.Logf("%d VMs ready after %v", machines, time.Since(began).Round(time.Millisecond))
}
