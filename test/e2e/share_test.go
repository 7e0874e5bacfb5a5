package e2e

import (
	"strings"
	"testing"
	"time"
)

// TestShare: two containers in one machine speak over the loopback interface, keep their own files and processes, outlive the
// daemon, and end with the machine's owner.
func TestShare(t *testing.T) { share(t, inOwn(t)) }

func share(t *testing.T, c client) {
	c.ok(t, "network", "create", "web")
	c.ok(t, append([]string{"run", "-d", "--name", "owner", "--hostname", "www", "--network", "web", "-p", "127.0.0.1::80"}, serve("owner")...)...)
	c.ok(t, "run", "-d", "--name", "side", "--network", "container:owner", "-m", "64m", "busybox", "sh", "-c",
		"test -e /kept || echo kept >/kept; echo line; while :; do echo side | nc -l -p 81; done")
	if got := c.fetchFrom(t, "side", "127.0.0.1"); got != "owner" {
		t.Errorf("from side: %q", got)
	}
	talk := "for i in $(seq 100); do nc 127.0.0.1 81 </dev/null 2>/dev/null && exit; sleep 0.1; done; exit 1"
	if got := c.ok(t, "exec", "owner", "sh", "-c", talk); got != "side" {
		t.Errorf("from the owner: %q", got)
	}
	for _, file := range []string{"/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/proc/sys/kernel/hostname"} {
		if a, b := c.ok(t, "exec", "owner", "cat", file), c.ok(t, "exec", "side", "cat", file); a != b {
			t.Errorf("%s of the owner:\n%s\nof the other:\n%s", file, a, b)
		}
	}
	if got := c.ok(t, "exec", "owner", "sh", "-c", "ls /kept 2>&1; ps"); !strings.Contains(got, "No such file") || strings.Contains(got, "nc -l") {
		t.Errorf("the owner sees\n%s", got)
	}
	if got := c.ok(t, "exec", "side", "cat", "/sys/fs/cgroup/memory.max"); got != "67108864" {
		t.Errorf("memory limit %s", got)
	}
	if got := c.ok(t, "inspect", "-f", "{{.HostConfig.NetworkMode}} {{len .NetworkSettings.Networks}}", "side"); got != "container:"+c.ok(t, "inspect", "-f", "{{.Id}}", "owner")+" 0" {
		t.Errorf("inspect: %s", got)
	}
	if r := c.do(t, nil, "pause", "owner"); r.code == 0 || !strings.Contains(r.stderr, "shares its virtual machine") {
		t.Errorf("pause: %+v", r)
	}
	c.killDaemon(t)
	if got := c.ok(t, "exec", "owner", "sh", "-c", talk); got != "side" {
		t.Errorf("after the daemon's end: %q", got)
	}
	c.ok(t, "stop", "-t", "0", "side")
	if got := fetch(t, c.ok(t, "port", "owner", "80")); got != "owner" {
		t.Errorf("without the other: %q", got)
	}
	c.ok(t, "start", "side")
	if got := c.ok(t, "exec", "side", "cat", "/kept"); got != "kept" {
		t.Errorf("its file: %q", got)
	}
	if got := c.ok(t, "run", "--rm", "--network", "container:side", "busybox", "wget", "-qO-", "http://127.0.0.1/x"); got != "owner" {
		t.Errorf("a third: %q", got)
	}
	c.ok(t, "stop", "-t", "0", "owner")
	c.ok(t, "wait", "side")
	if got := c.ok(t, "inspect", "-f", "{{.State.Status}} {{.State.ExitCode}} {{.State.Error}}", "side"); got != "exited 137 the container whose virtual machine it shared has ended" {
		t.Errorf("after the owner's end: %s", got)
	}
	if r := c.do(t, nil, "start", "side"); r.code == 0 || !strings.Contains(r.stderr, "cannot join network of a non running container: ") {
		t.Errorf("start without the owner: %+v", r)
	}
	c.ok(t, "start", "owner", "side")
	if got := c.ok(t, "exec", "side", "cat", "/kept"); got != "kept" {
		t.Errorf("its file, the machine having gone: %q", got)
	}
	c.ok(t, "rm", "-f", "owner")
	for end := time.Now().Add(time.Minute); c.ok(t, "inspect", "-f", "{{.State.Status}}", "side") != "exited"; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it runs without a machine")
		}
	}
	c.ok(t, "rm", "side")
	c.ok(t, "network", "rm", "web")
}
