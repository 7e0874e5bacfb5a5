package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// killDaemon kills the daemon of a house that started one on demand, as a crash would.
func (c client) killDaemon(t *testing.T) {
	t.Helper()
	if !c.house.KillDaemon() {
		t.Fatal("there is no daemon to kill")
	}
}

// What runs when the daemon is killed goes on, and the next daemon has all of it: lines, exit code.
func TestKilledDaemon(t *testing.T) {
	c := inOwn(t)
	c.ok(t, "run", "-d", "--name", "lines", "busybox", "sh", "-c",
		"i=0; while [ ! -e /stop ]; do i=$((i+1)); echo $i; sleep 0.05; done; echo end; exit 42")
	for range 3 {
		c.waitForLog(t, "lines", "1")
		c.killDaemon(t)
	}
	if got := c.ok(t, "inspect", "-f", "{{.State.Status}}", "lines"); got != "running" {
		t.Fatalf("after the kills: %s", got)
	}
	c.ok(t, "exec", "lines", "touch", "/stop")
	if got := c.ok(t, "wait", "lines"); got != "42" {
		t.Errorf("exit code %s", got)
	}
	lines := strings.Split(c.ok(t, "logs", "lines"), "\n")
	for i, line := range lines[:len(lines)-1] {
		if line != fmt.Sprint(i+1) {
			t.Fatalf("line %d is %q", i+1, line)
		}
	}
	if last := lines[len(lines)-1]; last != "end" {
		t.Errorf("the last line is %q", last)
	}
}

// A reset empties the house while things run in it, with a daemon and with one that was killed.
func TestResetOfABusyHouse(t *testing.T) {
	for _, killed := range []bool{false, true} {
		t.Run(fmt.Sprintf("killed=%v", killed), func(t *testing.T) {
			c := inOwn(t)
			c.ok(t, "run", "-d", "busybox", "sleep", "1000")
			c.ok(t, "create", "busybox")
			if killed {
				c.killDaemon(t)
			}
			c.ok(t, "system", "reset", "--force")
			if err := c.house.Leftovers(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestPrune(t *testing.T) {
	c := inOwn(t)
	c.ok(t, "run", "-d", "--name", "kept", "busybox", "sleep", "1000")
	c.ok(t, "run", "--name", "ended", "busybox", "true")
	c.ok(t, "tag", "busybox", "unused:1")
	c.ok(t, "system", "prune", "--all", "--force")
	if got := c.ok(t, "ps", "-a", "--format", "{{.Names}}"); got != "kept" {
		t.Errorf("containers after prune: %q", got)
	}
	c.ok(t, "rm", "-f", "kept")
	c.ok(t, "system", "prune", "--all", "--force")
	if got := c.ok(t, "images", "-aq"); got != "" {
		t.Errorf("images after prune: %q", got)
	}
}

// A broken guest is one clear sentence, and costs no more than its container.
func TestBrokenKernel(t *testing.T) {
	c := inShared(t, "cradle")
	dir := filepath.Join(t.TempDir(), "vm")
	c.ok(t, "summon", dir, "busybox")
	kernels, _ := filepath.Glob(filepath.Join(dir, "kernel*"))
	if len(kernels) != 1 {
		t.Fatalf("kernels: %v", kernels)
	}
	if err := os.WriteFile(kernels[0], []byte("not a kernel"), 0o644); err != nil {
		t.Fatal(err)
	}
	r := c.do(t, nil, "run", "--rm", dir, "true")
	if r.code != 125 || strings.Count(strings.TrimSpace(r.stderr), "\n") > 2 {
		t.Errorf("%+v", r)
	}
	if got := c.ok(t, "run", "--rm", "busybox", "echo", "unharmed"); got != "unharmed" {
		t.Errorf("after it: %q", got)
	}
}
