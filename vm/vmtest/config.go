package vmtest

import (
	"context"
	"crypto/rand"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cradlevm/cradle/api"
	"github.com/cradlevm/cradle/api/wire"
	"github.com/cradlevm/cradle/vm"
)

// testConfig checks that what cannot work is refused before anything has happened.
func (s *suite) testConfig(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "missing")
	odd := filepath.Join(t.TempDir(), "odd")
	if err := os.WriteFile(odd, make([]byte, 1000), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name   string
		change func(*vm.Config)
		word   string // what the error must mention
	}{
		{"no ID", func(c *vm.Config) { c.ID = "" }, "ID"},
		{"odd ID", func(c *vm.Config) { c.ID = "a,b" }, "ID"},
		{"relative Dir", func(c *vm.Config) { c.Dir = "x" }, "Dir"},
		{"missing Dir", func(c *vm.Config) { c.Dir = missing }, "Dir"},
		{"no CPU", func(c *vm.Config) { c.CPUs = 0 }, "CPUs"},
		{"little memory", func(c *vm.Config) { c.Memory = 1 << 20 }, "Memory"},
		{"odd memory", func(c *vm.Config) { c.Memory++ }, "Memory"},
		{"little code", func(c *vm.Config) { c.CodeCache = 1 << 20 }, "CodeCache"},
		{"odd code", func(c *vm.Config) { c.CodeCache = vm.MinCodeCache + 1 }, "CodeCache"},
		{"unknown accelerator", func(c *vm.Config) { c.Accel = "warp" }, "Accel"},
		{"no kernel", func(c *vm.Config) { c.Kernel = "" }, "Kernel"},
		{"missing kernel", func(c *vm.Config) { c.Kernel = missing }, missing},
		{"missing initrd", func(c *vm.Config) { c.Initrd = missing }, missing},
		{"two words in one", func(c *vm.Config) { c.Cmdline = []string{"a b"} }, "Cmdline"},
		{"odd serial", func(c *vm.Config) { c.Disks = []vm.Disk{{Serial: "a,b", Path: odd}} }, "serial"},
		{"missing disk", func(c *vm.Config) { c.Disks = []vm.Disk{{Serial: "d", Path: missing}} }, missing},
		{"odd disk", func(c *vm.Config) { c.Disks = []vm.Disk{{Serial: "d", Path: odd}} }, odd},
		{"same serial", func(c *vm.Config) {
			c.Disks = []vm.Disk{{Serial: "d", Path: odd}, {Serial: "d", Path: odd}}
		}, "d"},
		{"too many interfaces", func(c *vm.Config) { c.NICs = make([]vm.NIC, vm.MaxNICs+1) }, "NICs"},
		{"missing TAP", func(c *vm.Config) { c.NICs = []vm.NIC{{TAP: "cradle-no-such"}} }, "TAP cradle-no-such"},
		{"missing namespace", func(c *vm.Config) { c.NICs = []vm.NIC{{TAP: "tap0", NetNS: missing}} }, missing},
	} {
		c := s.config(t)
		dir := c.Dir
		tc.change(&c)
		v, err := s.driver.Start(within(t), c)
		if err == nil {
			v.Kill()
			t.Errorf("%s: started", tc.name)
			continue
		}
		if !errors.Is(err, vm.ErrInvalid) || !strings.Contains(err.Error(), tc.word) {
			t.Errorf("%s: %v; want ErrInvalid that says %q", tc.name, err, tc.word)
		}
		if entries, _ := os.ReadDir(dir); len(entries) != 0 {
			t.Errorf("%s: left behind: %v", tc.name, entries)
		}
	}

	c := s.config(t)
	if _, err := s.driver.Attach(within(t), c); !errors.Is(err, vm.ErrExited) {
		t.Errorf("Attach where nothing ever ran: %v, want ErrExited", err)
	}
	over, cancel := context.WithCancel(context.Background())
	cancel()
	if v, err := s.driver.Start(over, c); err == nil {
		v.Kill()
		t.Error("Start with a context that is over: no error")
	} else if entries, _ := os.ReadDir(c.Dir); len(entries) != 0 {
		t.Errorf("Start with a context that is over left %v", entries)
	}
}

// testBrokenKernel boots what is no kernel: an error of Start's, an end with a reason, or silence that ends with
// the caller's patience are all fair; what is not is a hang or a leak.
func (s *suite) testBrokenKernel(t *testing.T) {
	whole, err := os.ReadFile(s.guest.Kernel)
	if err != nil {
		t.Fatal(err)
	}
	noise := make([]byte, 1<<20)
	rand.Read(noise)
	broken := append([]byte(nil), whole...)
	for i := 0x8000; i < len(broken); i++ {
		broken[i] = 0xff
	}
	for name, image := range map[string][]byte{"noise": noise, "empty": nil, "head only": broken, "cut": whole[:len(whole)/2]} {
		c := s.config(t)
		c.Kernel = filepath.Join(t.TempDir(), "kernel")
		if err := os.WriteFile(c.Kernel, image, 0o600); err != nil {
			t.Fatal(err)
		}
		v, err := s.driver.Start(within(t), c)
		if err != nil {
			t.Logf("%s: %v", name, err)
			if !strings.Contains(strings.ToLower(err.Error()), "kernel") {
				t.Errorf("%s: %v; want an error that speaks of the kernel", name, err)
			}
			if entries, _ := os.ReadDir(c.Dir); len(entries) != 0 {
				t.Errorf("%s: left behind: %v", name, entries)
			}
			continue
		}
		m := watched(t, v, c)
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		conn, err := m.Dial(ctx, api.AgentPort)
		if err == nil {
			_, err = wire.Dial(ctx, conn, m.token)
		}
		cancel()
		if err == nil {
			t.Errorf("%s: answers", name)
		}
		if errors.Is(err, context.DeadlineExceeded) {
			t.Logf("%s: %v; still runs", name, err)
			m.Kill()
			m.end()
		} else if why := m.end(); why == nil {
			t.Errorf("%s: %v, and ended without an error", name, err)
		} else {
			t.Logf("%s: %v; %v", name, err, why)
		}
	}
}
