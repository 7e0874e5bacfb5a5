package e2e

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cradlevm/cradle/pool"
)

// poolPatience is for a template to be made and a sandbox to be warmed, on a busy machine.
const poolPatience = 3 * time.Minute

// ask decodes what the daemon answers at a path.
func (c client) ask(t *testing.T, path string, to any) {
	t.Helper()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", c.house.Socket())
	}}}
	answer, err := client.Get("http://cradle" + path)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(body, to); err != nil {
		t.Fatalf("%s: %v", body, err)
	}
}

// poolStatus is how many virtual machines are ready, all sizes together.
func (c client) poolStatus(t *testing.T) (ready int) {
	t.Helper()
	var status pool.Status
	c.ask(t, "/cradle/v1/pool", &status)
	for _, s := range status.Classes {
		ready += s.Ready
	}
	return ready
}

func (c client) awaitPool(t *testing.T, least int) {
	t.Helper()
	for began := time.Now(); c.poolStatus(t) < least; time.Sleep(20 * time.Millisecond) {
		if time.Since(began) > poolPatience {
			t.Fatalf("fewer than %d virtual machines are ready", least)
		}
	}
}

// bothWays runs a test with virtual machines that are copied where they can be, and with ones that are restored.
func bothWays(t *testing.T, test func(t *testing.T, c client)) {
	for _, copies := range []string{"auto", "off"} {
		t.Run("copies="+copies, func(t *testing.T) {
			c := inOwn(t, "CRADLE_POOL=2", "CRADLE_POOL_COPIES="+copies)
			test(t, c)
			var status pool.Status
			c.ask(t, "/cradle/v1/pool", &status)
			for _, s := range status.Classes {
				if copies == "off" && s.Parents != 0 {
					t.Errorf("others are copied from %d", s.Parents)
				}
			}
		})
	}
}

// Containers that start from one template, whether warmed or made on the spot, have nothing in common that tells
// one from another or is to be secret; and the clock is right.
func TestNoTwoAreTheSame(t *testing.T) { bothWays(t, testNoTwoAreTheSame) }

func testNoTwoAreTheSame(t *testing.T, c client) {
	// The third is what the kernel gives the very first process to draw from, by its address in the auxiliary vector (AT_RANDOM).
	const script = `cat /proc/sys/kernel/random/boot_id; cat /proc/sys/kernel/random/uuid
		at=$(od -An -v -t u8 /proc/$$/auxv | awk '{ for (i = 1; i < NF; i += 2) if ($i == 25) print $(i+1) }')
		dd if=/proc/$$/mem bs=1 skip=$at count=16 2>/dev/null | od -An -t x8 | tr -d ' '; head -c 16 /dev/urandom | md5sum; date +%s`
	seen := map[string]bool{}
	check := func() {
		t.Helper()
		lines := strings.Fields(strings.ReplaceAll(c.ok(t, "run", "--rm", "busybox", "sh", "-c", script), " -", ""))
		if len(lines) != 5 {
			t.Fatalf("the container says %q", lines)
		}
		for _, secret := range lines[:4] {
			if seen[secret] {
				t.Errorf("%s has been seen before", secret)
			}
			seen[secret] = true
		}
		if now, err := time.ParseDuration(lines[4] + "s"); err != nil || time.Since(time.Unix(0, 0).Add(now)).Abs() > time.Minute {
			t.Errorf("the container's clock says %s, it is %d (%v)", lines[4], time.Now().Unix(), err)
		}
	}
	check() // boots
	for range 3 {
		c.awaitPool(t, 2)
		for range 4 { // two that are ready, then some made on the spot
			check()
		}
	}
}

// A daemon that is killed takes its ready virtual machines with it, at the latest when the next one starts; its
// template serves the next one.
func TestKilledDaemonLeavesNothingReady(t *testing.T) {
	c := inOwn(t, "CRADLE_POOL=2")
	c.ok(t, "run", "--rm", "busybox", "true")
	c.awaitPool(t, 2)
	machines := func() []string {
		all, err := filepath.Glob(filepath.Join(c.house.Run(), "s", "*", "qemu.pid"))
		if err != nil {
			t.Fatal(err)
		}
		return all
	}
	if n := len(machines()); n < 2 {
		t.Fatalf("%d virtual machines run", n)
	}
	var pids []string
	for _, m := range machines() {
		b, err := os.ReadFile(m)
		if err != nil {
			t.Fatal(err)
		}
		pids = append(pids, strings.Fields(string(b))[0])
	}
	c.killDaemon(t)
	if got := c.ok(t, "ps", "-aq"); got != "" { // starts another daemon
		t.Errorf("containers: %s", got)
	}
	for _, pid := range pids {
		if cmdline, err := os.ReadFile(filepath.Join("/proc", pid, "cmdline")); err == nil && strings.Contains(string(cmdline), "qemu") {
			t.Errorf("process %s still runs", pid)
		}
	}
	if left := machines(); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
	if got := c.ok(t, "run", "--rm", "busybox", "echo", "fine"); got != "fine" {
		t.Errorf("after it: %q", got)
	}
}
