package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// redis runs a redis that has something in its memory and on its disk.
func (c client) redis(t *testing.T, name string, args ...string) {
	t.Helper()
	c.ok(t, append(append([]string{"run", "-d", "--name", name, "-m", "128m"}, args...), "redis")...)
	c.waitForLog(t, name, "eady to accept connections")
	c.ok(t, "exec", name, "redis-cli", "set", "key", "value")
	c.ok(t, "exec", name, "sh", "-c", "echo 00112233445566778899aabbccddeeff >/etc/machine-id; echo disk >/data/file; sync")
}

// identity is what tells one machine from another, in a container.
const identity = "hostname; cat /etc/hostname /etc/machine-id /proc/sys/kernel/random/boot_id /proc/sys/kernel/random/uuid; head -c 16 /dev/urandom | md5sum | cut -c1-32"

// checkClock compares a container's clock with ours.
func (c client) checkClock(t *testing.T, name string) {
	t.Helper()
	before := time.Now()
	seconds, err := strconv.ParseInt(c.ok(t, "exec", name, "date", "+%s"), 10, 64)
	if at := time.Unix(seconds, 0); err != nil || at.Before(before.Add(-2*time.Second)) || at.After(time.Now().Add(2*time.Second)) {
		t.Errorf("%s has %v, %v, not %v", name, at, err, before)
	}
}

// Clones of a redis answer with its data, are themselves, and go ways of their own.
func TestCloneOfRedis(t *testing.T) {
	c := inShared(t, "cradle")
	name := c.name(t)
	for i := range 3 {
		clone := fmt.Sprintf("%s-%d", name, i+1)
		t.Cleanup(func() { c.do(t, nil, "rm", "-f", clone) })
	}
	c.redis(t, name)
	ids := strings.Fields(c.ok(t, "clone", "-n", "3", "--name", name, name))
	if len(ids) != 3 {
		t.Fatalf("clones: %q", ids)
	}
	seen := map[string]string{}
	for _, id := range append(ids, name) {
		for i, word := range strings.Fields(c.ok(t, "exec", id, "sh", "-c", identity)) {
			if i == 1 {
				continue // /etc/hostname is the hostname
			}
			if other := seen[word]; other != "" {
				t.Errorf("%s and %s share %q", id, other, word)
			}
			seen[word] = id
		}
		if host := c.ok(t, "exec", id, "cat", "/etc/hostname"); id != name && host != id[:12] {
			t.Errorf("%s is called %s", id, host)
		}
		if got := c.ok(t, "exec", id, "redis-cli", "get", "key"); got != "value" {
			t.Errorf("%s: the key is %q", id, got)
		}
		if got := c.ok(t, "exec", id, "cat", "/data/file"); got != "disk" {
			t.Errorf("%s: the file is %q", id, got)
		}
		c.ok(t, "exec", id, "redis-cli", "set", "key", id)
		c.ok(t, "exec", id, "sh", "-c", "echo "+id+" >/data/file; sync")
		c.checkClock(t, id)
	}
	for _, id := range append(ids, name) {
		if got := c.ok(t, "exec", id, "redis-cli", "get", "key") + " " + c.ok(t, "exec", id, "cat", "/data/file"); got != id+" "+id {
			t.Errorf("%s has %q", id, got)
		}
	}
	// A clone is stopped as gracefully as any, and started again with its own disk.
	c.ok(t, "restart", ids[0])
	if got := c.ok(t, "exec", ids[0], "cat", "/data/file"); got != ids[0] {
		t.Errorf("after a restart: %q", got)
	}
	if logs := c.do(t, nil, "logs", ids[1]); strings.Contains(logs.stdout+logs.stderr, "eady to accept") {
		t.Errorf("the clone's log has the source's lines:\n%s%s", logs.stdout, logs.stderr)
	}
}

// A hibernated redis has no machine, and goes on with its memory after its daemon was killed.
func TestHibernatedRedis(t *testing.T) {
	c := inOwn(t)
	if err := c.house.Load(commandLimit, "redis"); err != nil {
		t.Fatal(err)
	}
	c.redis(t, "redis", "--rm")
	before := c.ok(t, "exec", "redis", "sh", "-c", "hostname; cat /proc/sys/kernel/random/boot_id")
	c.ok(t, "save-state", "redis")
	if status := c.ok(t, "ps", "-a", "--format", "{{.State}} {{.Status}}"); !strings.HasPrefix(status, "exited Hibernated") {
		t.Errorf("its status is %q", status)
	}
	if r := c.do(t, nil, "cp", "redis:/data/file", "-"); r.code == 0 || !strings.Contains(r.stderr, "hibernated") {
		t.Errorf("its files: %+v", r)
	}
	c.house.KillDaemon()
	c.ok(t, "ps")
	if machines, err := filepath.Glob(filepath.Join(c.house.Run(), "s", "*", "qemu.pid")); err != nil || len(machines) > 1 { // one may be the pool's
		t.Logf("machines: %v, %v", machines, err)
	}
	c.ok(t, "start", "redis")
	if got := c.ok(t, "exec", "redis", "redis-cli", "get", "key"); got != "value" {
		t.Errorf("the key is %q", got)
	}
	if after := c.ok(t, "exec", "redis", "sh", "-c", "hostname; cat /proc/sys/kernel/random/boot_id"); after != before {
		t.Errorf("it was %q and is %q", before, after)
	}
	c.checkClock(t, "redis")
	if logs := c.do(t, nil, "logs", "redis"); strings.Count(logs.stdout+logs.stderr, "eady to accept") != 1 {
		t.Errorf("its log:\n%s%s", logs.stdout, logs.stderr)
	}
	// What is on disk is used once. Damage is noticed.
	c.ok(t, "save-state", "redis")
	states, err := filepath.Glob(filepath.Join(c.house.Root(), "containers", "*", "state", "memory"))
	if err != nil || len(states) != 1 {
		t.Fatalf("states: %v, %v", states, err)
	}
	memory, err := os.OpenFile(states[0], os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := memory.WriteAt([]byte("damage"), 1<<20); err != nil {
		t.Fatal(err)
	}
	if err := memory.Close(); err != nil {
		t.Fatal(err)
	}
	if r := c.do(t, nil, "start", "redis"); r.code == 0 || !strings.Contains(r.stderr, "damaged") {
		t.Errorf("damaged: %+v", r)
	}
	c.ok(t, "restore-state", "--discard", "redis") // it has exited then, and --rm takes it away
	if got := c.ok(t, "ps", "-aq"); got != "" {
		t.Errorf("after its end: %q", got)
	}
}

// waitForWarm waits until the daemon has one warm image.
func (c client) waitForWarm(t *testing.T) {
	t.Helper()
	for began := time.Now(); ; time.Sleep(100 * time.Millisecond) {
		if images, err := filepath.Glob(filepath.Join(c.house.Root(), "warm", "*", "manifest")); err == nil && len(images) == 1 {
			break
		}
		if failed, err := filepath.Glob(filepath.Join(c.house.Root(), "warm", "*.failed")); err == nil && len(failed) > 0 {
			b, err := os.ReadFile(failed[0])
			t.Fatalf("the shadow failed: %s, %v", b, err)
		}
		if time.Since(began) > 2*time.Minute {
			t.Fatal("no warm image is made")
		}
	}
}

// The second redis of a kind goes on from where the first one's shadow was ready.
func TestWarmRedis(t *testing.T) {
	c := inOwn(t)
	if err := c.house.Load(commandLimit, "redis"); err != nil {
		t.Fatal(err)
	}
	run := func(name string) {
		c.ok(t, "run", "-d", "--name", name, "-m", "128m", "--warm", "--warm-ready", "redis-cli ping | grep -q PONG", "redis")
	}
	run("cold")
	c.waitForWarm(t)
	seen := map[string]bool{}
	for i := range 3 {
		if i == 2 {
			c.house.KillDaemon() // the next one has it from the disk
		}
		name := fmt.Sprintf("warm-%d", i)
		run(name)
		if got := c.ok(t, "exec", name, "redis-cli", "ping"); got != "PONG" {
			t.Errorf("%q", got)
		}
		for n, word := range strings.Fields(c.ok(t, "exec", name, "sh", "-c", strings.Replace(identity, "/etc/machine-id", "", 1))) {
			if n != 1 && seen[word] {
				t.Errorf("%s shares %q", name, word)
			}
			seen[word] = true
		}
		c.checkClock(t, name)
		if logs := c.do(t, nil, "logs", name); strings.Count(logs.stdout+logs.stderr, "eady to accept") != 1 {
			t.Errorf("its log:\n%s%s", logs.stdout, logs.stderr)
		}
		c.ok(t, "stop", name)
	}
	c.ok(t, "rm", "-f", "cold", "warm-0", "warm-1", "warm-2")
}
