package e2e

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cradlevm/cradle/test/house"
)

// onTmpfs is a client in a house of its own, with busybox, whose state is on a file system of this size, which is filled by
// fill and emptied by free. What is running is elsewhere, in run.
func onTmpfs(t *testing.T, size string) (c client, run string, fill, free func()) {
	t.Helper()
	if shared.missing != nil {
		t.Skip(shared.missing)
	}
	disk, dir := t.TempDir(), t.TempDir()
	run = filepath.Join(dir, "r")
	if err := syscall.Mount("tmpfs", disk, "tmpfs", 0, "size="+size); err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(disk, 0); err != nil {
			t.Errorf("unmount: %v", errors.Join(err, syscall.Unmount(disk, syscall.MNT_DETACH)))
		}
	})
	h, err := house.NewIn(disk, shared.build, "h")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			log, err := os.ReadFile(filepath.Join(run, "daemon.log"))
			t.Logf("%s%v", log, err)
		}
		if err := h.Close(commandLimit); err != nil {
			t.Error(err)
		}
	})
	h.Env = append(h.Env, "CRADLE_RUN="+run)
	if err := h.Load(commandLimit, "busybox"); err != nil {
		t.Fatal(err)
	}
	ballast := filepath.Join(disk, "ballast")
	fill = func() {
		f, err := os.OpenFile(ballast, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		for _, n := range []int{1 << 20, 4096} {
			for chunk := make([]byte, n); err == nil; {
				_, err = f.Write(chunk)
			}
			if !errors.Is(err, syscall.ENOSPC) {
				t.Fatal(err)
			}
			err = nil
		}
	}
	free = func() {
		if err := os.Remove(ballast); err != nil {
			t.Fatal(err)
		}
	}
	return client{"cradle", h}, run, fill, free
}

// counted are the numbers in a container's log.
func (c client) counted(t *testing.T, name string) (numbers []int) {
	t.Helper()
	for _, line := range strings.Fields(c.ok(t, "logs", name)) {
		n, err := strconv.Atoi(line)
		if err != nil {
			t.Fatalf("the log has %q", line)
		}
		numbers = append(numbers, n)
	}
	return numbers
}

// The disk of the state fills up under a daemon and its containers: what is refused is refused in one sentence, what runs goes
// on, and is told of what it cannot write, what is told then is true under the next daemon, and all is as ever when there is room again.
func TestStateDiskFillsUp(t *testing.T) {
	t.Parallel()
	c, run, fill, free := onTmpfs(t, "400m")
	c.ok(t, "run", "-d", "--name", "printer", "busybox", "sh", "-c", "i=0; while :; do for j in 0 1 2 3 4 5 6 7 8 9; do echo $i; i=$((i+1)); done; sleep 0.1; done")
	c.ok(t, "run", "-d", "--name", "ending", "busybox", "sh", "-c", "while ! test -e /end; do sleep 0.1; done; exit 7")
	c.ok(t, "run", "-d", "--name", "stopped", "busybox", "sleep", "1000000")
	c.ok(t, "run", "-d", "--name", "going", "--rm", "busybox", "sleep", "1000000")
	c.waitForLog(t, "printer", "5")
	before := c.counted(t, "printer")
	fill()
	made := map[string]bool{}
	for _, name := range []string{"x", "y", "z"} { // the state has some room of its own; no name may begin an id
		r := c.do(t, nil, "run", "-d", "--name", name, "busybox", "dd", "if=/dev/zero", "of=/file", "bs=1M", "count=4")
		if r.code != 0 && (!strings.Contains(r.stderr, "no space left") && !strings.Contains(r.stderr, "disk is full") || strings.Count(strings.TrimSpace(r.stderr), "\n") > 2) {
			t.Errorf("run: %+v", r)
		}
		r = c.do(t, nil, "container", "inspect", name)
		made[name] = r.code == 0
	}
	fill()
	// A stop tells of itself when it is over; this one needs nothing of the disk.
	c.ok(t, "stop", "-t", "0", "stopped", "going")
	fill()
	c.do(t, nil, "exec", "ending", "mkdir", "/end") // its disk is on the full one: the directory may or may not be there
	killed := c.do(t, nil, "kill", "ending")
	code := c.ok(t, "wait", "ending")
	if code != "7" && (code != "137" || killed.code != 0) {
		t.Errorf("it ended with %s; kill: %+v", code, killed)
	}
	if got := c.ok(t, "exec", "printer", "echo", "alive"); got != "alive" {
		t.Errorf("the printer says %q", got)
	}
	full := c.do(t, nil, "exec", "printer", "dd", "if=/dev/zero", "of=/file", "bs=1M", "count=4", "conv=fsync")
	if full.code == 0 || full.code > 125 || strings.Count(full.stderr, "dd: ") != 1 {
		t.Errorf("writing on the full disk: %+v", full)
	}
	t.Logf("a container that writes is told: %s", full.stderr)
	free()
	if got := c.ok(t, "run", "--rm", "busybox", "echo", "again"); got != "again" {
		t.Errorf("afterwards a container says %q", got)
	}
	during := c.counted(t, "printer")
	last := during[len(during)-1]
	for began := time.Now(); during[len(during)-1] < last+5; during = c.counted(t, "printer") {
		if time.Since(began) > commandLimit {
			t.Fatalf("the printer's log does not go on after %d", last)
		}
	}
	if log, err := os.ReadFile(filepath.Join(run, "daemon.log")); err != nil || strings.Count(string(log), "no space left") > 20 {
		t.Errorf("the daemon's log: %s, %v", log, err)
	}
	time.Sleep(3 * time.Second) // what was not saved is saved a second later
	if !c.house.KillDaemon() {
		t.Error("there was no daemon any more")
	}
	after := c.counted(t, "printer")
	for i, n := range before {
		if after[i] != n {
			t.Fatalf("line %d was %d and is %d", i, n, after[i])
		}
	}
	for i := 1; i < len(after); i++ {
		if after[i] <= after[i-1] {
			t.Errorf("the log has %d after %d", after[i], after[i-1])
		}
	}
	t.Logf("the log has %d of %d lines", len(after), after[len(after)-1]+1)
	if got := c.ok(t, "inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", "ending"); got != "exited "+code {
		t.Errorf("ending: %s, it was %s", got, code)
	}
	if got := c.ok(t, "inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", "stopped"); got != "exited 137" {
		t.Errorf("stopped: %s", got)
	}
	if r := c.do(t, nil, "inspect", "going"); r.code == 0 {
		t.Error("what was to be removed is there")
	}
	for name, was := range made {
		if r := c.do(t, nil, "container", "inspect", name); (r.code == 0) != was {
			t.Errorf("%s was there: %v, now: %+v", name, was, r)
		}
	}
	c.ok(t, "start", "stopped")
	c.ok(t, "restart", "-t", "0", "printer")
	if got := c.ok(t, "exec", "printer", "sh", "-c", "echo again > /file && sync -d /file && cat /file"); got != "again" {
		t.Errorf("the printer's file, after a restart, has %q", got)
	}
	c.ok(t, "rm", "-f", "printer", "stopped")
}
