package e2e

import (
	"encoding/json"
	"strings"
	"testing"
)

// A process that wants more memory than its container may have is killed; the machine, and what else runs, goes on.
func TestMemoryLimit(t *testing.T) {
	both(t, func(t *testing.T, c client) {
		// tail keeps a line without an end.
		name := c.name(t)
		if r := c.do(t, nil, "run", "--name", name, "-m", "64m", "busybox", "tail", "/dev/zero"); r.code != 137 {
			t.Errorf("code %d: %s", r.code, r.stderr)
		}
		if got := c.ok(t, "inspect", "-f", "{{.State.ExitCode}} {{.State.OOMKilled}} {{.State.Status}}", name); strings.TrimSpace(got) != "137 true exited" {
			t.Errorf("state %s", got)
		}
		child := name + "-child"
		t.Cleanup(func() { c.do(t, nil, "rm", "-f", child) })
		c.ok(t, "run", "-d", "--name", child, "-m", "64m", "busybox", "sh", "-c", "tail /dev/zero; echo code $?; while [ ! -e /over ]; do sleep .1; done; exit 3")
		c.waitForLog(t, child, "code 137")
		if got := c.ok(t, "exec", child, "echo", "alive"); got != "alive" {
			t.Errorf("afterwards: %q", got)
		}
		c.ok(t, "exec", child, "touch", "/over")
		c.ok(t, "wait", child)
		if got := c.ok(t, "inspect", "-f", "{{.State.ExitCode}} {{.State.OOMKilled}}", child); got != "3 true" {
			t.Errorf("state %s of one whose child was killed", got)
		}
	})
}

// What a container costs is more than what it uses, and what its machine has from the template is shared.
func TestCostOfAContainer(t *testing.T) {
	c := inShared(t, "cradle")
	name := c.name(t)
	c.ok(t, "run", "-d", "--name", name, "busybox", "sleep", "1000")
	var row map[string]any
	if err := json.Unmarshal([]byte(c.ok(t, "cost", "--format", "json", name)), &row); err != nil || row["Name"] != name {
		t.Fatalf("%v, %v", row, err)
	}
	for _, field := range []string{"GuestMemory", "MachineMemory", "HostPrivate", "HostShared"} {
		if text, _ := row[field].(string); text == "" || text == "0B" {
			t.Errorf("%s is %q", field, text)
		}
	}
	if !strings.Contains(c.ok(t, "cost"), name) {
		t.Error("it is not among all")
	}
	if text := c.ok(t, "stats", "--host", "--no-stream", "--format", "{{.Name}} {{.HostPrivate}} {{.HostShared}}", name); len(strings.Fields(text)) != 3 || strings.Contains(text, " 0B") {
		t.Errorf("stats: %q", text)
	}
	if r := c.do(t, nil, "cost", "nobody"); r.code != 1 || !strings.Contains(r.stderr, "No such container: nobody") {
		t.Errorf("%+v", r)
	}
}
