// Package vmtest is the conformance suite that every vm.Driver passes.
//
// It boots real guests: a kernel of the caller's and an initrd whose /init is the program testguest. Whatever a
// driver offers by assertion (vm.DiskPlugger, vm.Pauser, vm.Streamer, vm.Restorer, vm.Forker, vm.Checkpointer) is tested as well, and skipped where it is not offered.
package vmtest

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/cradlevm/cradle/api"
	"github.com/cradlevm/cradle/api/wire"
	"github.com/cradlevm/cradle/vm"
)

// Guest is what the suite boots.
type Guest struct {
	Kernel string // a bzImage
	Initrd string // a cpio archive with testguest as /init
}

// consoleName is the one file a driver may leave in a VM's directory.
const consoleName = "console.log"

// limit bounds each step that waits for a guest. A guest needs a second under emulation on an idle machine.
const limit = 90 * time.Second

// Run runs the suite. It starts the test binary once more, with -test.run set to t's name, to be the process
// whose VM is taken over: t's function must come here again and do nothing of consequence before.
func Run(t *testing.T, driver vm.Driver, guest Guest) {
	if starter() {
		startForParent(t, driver)
		return
	}
	s := &suite{driver: driver, guest: guest}
	t.Run("Config", s.testConfig)
	t.Run("Machine", s.testMachine)
	t.Run("Panic", s.testPanic)
	t.Run("Reset", s.testReset)
	t.Run("MonitorKilled", s.testMonitorKilled)
	t.Run("Silent", s.testSilent)
	t.Run("BrokenKernel", s.testBrokenKernel)
	t.Run("Attach", s.testAttach)
	t.Run("Many", s.testMany)
	t.Run("Network", s.testNetwork)
	t.Run("Restore", s.testRestore)
	t.Run("Fork", s.testFork)
	t.Run("Checkpoint", s.testCheckpoint)
	t.Run("GiveBack", s.testGiveBack)
}

type suite struct {
	driver vm.Driver
	guest  Guest
}

// config is a small VM in a directory of its own.
func (s *suite) config(t *testing.T) vm.Config {
	return vm.Config{
		ID: "vmtest", Dir: t.TempDir(), CPUs: 1, Memory: 128 << 20,
		Kernel: s.guest.Kernel, Initrd: s.guest.Initrd,
		Cmdline: []string{"printk.devkmsg=on"}, // no rate limit for what testguest prints
	}
}

// machine is a running VM as the tests see it.
type machine struct {
	vm.VM
	t      *testing.T
	dir    string
	config vm.Config
	token  wire.Token
}

// start starts c; the VM is gone when the test ends.
func (s *suite) start(t *testing.T, c vm.Config) *machine {
	t.Helper()
	v, err := s.driver.Start(within(t), c)
	if err != nil {
		t.Fatal(err)
	}
	return watched(t, v, c)
}

// watched ends v with the test and, when that has failed, shows its console.
func watched(t *testing.T, v vm.VM, c vm.Config) *machine {
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("console of %s:\n%s", c.ID, v.Console(8<<10))
		}
		if err := v.Kill(); err != nil {
			t.Error(err)
		}
	})
	return &machine{VM: v, t: t, dir: c.Dir, config: c, token: wire.Token{1, 2, 3}}
}

// within is a context for one step.
func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	t.Cleanup(cancel)
	return ctx
}

// session opens an agent session. It waits for the guest to boot.
func (m *machine) session() *wire.Client {
	m.t.Helper()
	ctx := within(m.t)
	conn, err := m.Dial(ctx, api.AgentPort)
	if err != nil {
		m.t.Fatal(err)
	}
	client, err := wire.Dial(ctx, conn, m.token)
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { client.Close() })
	return client
}

// call makes a call that must succeed.
func call(t *testing.T, c *wire.Client, method string, params, result any) {
	t.Helper()
	if err := c.Call(within(t), method, params, result); err != nil {
		t.Fatal(err)
	}
}

// askEnd makes a call that ends the guest, which may do so before its answer is on its way. That it has heard, the VM's end
// tells.
func askEnd(t *testing.T, c *wire.Client, method string) {
	t.Helper()
	var answer *api.Error
	if err := c.Call(within(t), method, nil, nil); errors.As(err, &answer) {
		t.Fatal(err)
	}
}

func ping(t *testing.T, c *wire.Client) api.PingResult {
	t.Helper()
	var p api.PingResult
	call(t, c, api.MethodPing, nil, &p)
	return p
}

// end waits for the VM's end and checks what every end has in common.
func (m *machine) end() error {
	m.t.Helper()
	select {
	case <-m.Done():
	case <-time.After(limit):
		m.t.Fatal("the VM does not end")
	}
	err := m.Wait()
	if again := m.Wait(); again != err {
		m.t.Errorf("Wait said %v, then %v", err, again)
	}
	if _, err := m.Dial(within(m.t), api.AgentPort); !errors.Is(err, vm.ErrExited) {
		m.t.Errorf("Dial after the end: %v, want ErrExited", err)
	}
	if err := m.Kill(); err != nil {
		m.t.Errorf("Kill after the end: %v", err)
	}
	if err := m.Shutdown(within(m.t)); err != nil {
		m.t.Errorf("Shutdown after the end: %v", err)
	}
	if runs(m.PID()) {
		m.t.Errorf("process %d still runs after the end", m.PID())
	}
	checkLeft(m.t, m.dir)
	return err
}

// checkLeft checks that nothing but the console is left of a VM.
func checkLeft(t *testing.T, dir string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Error(err)
	}
	for _, e := range entries {
		if e.Name() != consoleName || e.Type() != fs.FileMode(0) {
			t.Errorf("left in the VM's directory: %s (%s)", e.Name(), e.Type())
		}
	}
}

// runs reports whether a process is there and no zombie.
func runs(pid int) bool {
	stat, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return false
	}
	return !bytes.Contains(stat, []byte(") Z "))
}

// holds reports whether a process has the file open.
func holds(pid int, path string) bool {
	fds := filepath.Join("/proc", strconv.Itoa(pid), "fd")
	entries, _ := os.ReadDir(fds)
	for _, e := range entries {
		if target, err := os.Readlink(filepath.Join(fds, e.Name())); err == nil && target == path {
			return true
		}
	}
	return false
}
