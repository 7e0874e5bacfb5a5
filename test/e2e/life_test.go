package e2e

import (
	"bufio"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// waitForLog follows the container's log until a line contains s.
func (c client) waitForLog(t *testing.T, name, s string) {
	t.Helper()
	cmd := c.house.Command(commandLimit, c.program, "logs", "-f", name)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = cmd.Stdout
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	var seen []string
	limit := time.AfterFunc(commandLimit, func() { _ = cmd.Process.Kill() })
	defer limit.Stop()
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if strings.Contains(lines.Text(), s) {
			return
		}
		seen = append(seen, lines.Text())
	}
	t.Fatalf("the log of %s does not show %q but %q", name, s, seen)
}

func TestLifeOfAContainer(t *testing.T) {
	both(t, func(t *testing.T, c client) {
		name := c.name(t)
		id := c.ok(t, "run", "-d", "--name", name, "-l", "mine=1", "busybox", "sh", "-c", "trap 'echo bye; exit 3' TERM; echo hello; while :; do sleep 0.1; done")
		if len(id) != 64 {
			t.Fatalf("run -d printed %q", id)
		}
		c.waitForLog(t, name, "hello")
		if got := c.ok(t, "ps", "-q", "--no-trunc", "--filter", "label=mine=1"); got != id {
			t.Errorf("ps: %q", got)
		}
		var summary struct{ ID, Names, Image, State, Command string }
		if err := json.Unmarshal([]byte(c.ok(t, "ps", "--no-trunc", "--filter", "name="+name, "--format", "json")), &summary); err != nil {
			t.Error(err)
		}
		if summary.ID != id || summary.Names != name || summary.Image != "busybox" || summary.State != "running" {
			t.Errorf("ps: %+v", summary)
		}
		if got := c.ok(t, "inspect", "-f", "{{.Name}} {{.State.Running}} {{.Config.Image}} {{.Config.Labels.mine}}", id[:12]); got != "/"+name+" true busybox 1" {
			t.Errorf("inspect: %q", got)
		}

		if got := c.ok(t, "exec", "-e", "A=b", "-w", "/tmp", name, "sh", "-c", "echo $A; pwd"); got != "b\n/tmp" {
			t.Errorf("exec: %q", got)
		}
		if r := c.do(t, []byte("in"), "exec", "-i", name, "sh", "-c", "cat; exit 9"); r.code != 9 || r.stdout != "in" {
			t.Errorf("exec -i: %+v", r)
		}
		if r := c.do(t, nil, "exec", name, "nope"); r.code != 127 {
			t.Errorf("exec of nothing: %+v", r)
		}
		if r := c.do(t, nil, "exec", name, "/etc"); r.code != 126 {
			t.Errorf("exec of a directory: %+v", r)
		}
		c.ok(t, "exec", "-d", name, "touch", "/done")
		if r := c.do(t, nil, "rm", name); r.code != 1 || !strings.Contains(r.stderr, "is running") {
			t.Errorf("rm of a running container: %+v", r)
		}
		if got := c.ok(t, "top", name); !strings.Contains(got, "sleep 0.1") && !strings.Contains(got, "trap") {
			t.Errorf("top: %q", got)
		}

		c.ok(t, "stop", name)
		if got := c.ok(t, "wait", name); got != "3" {
			t.Errorf("exit code %s, want 3", got)
		}
		if got := c.ok(t, "logs", name); got != "hello\nbye" {
			t.Errorf("logs: %q", got)
		}
		c.ok(t, "start", name)
		if got := c.ok(t, "exec", name, "ls", "/done"); got != "/done" {
			t.Errorf("what was written is gone after a restart: %q", got)
		}
		c.ok(t, "rename", name, name+"2")
		c.ok(t, "rm", "-f", name+"2")
		if r := c.do(t, nil, "inspect", name); r.code != 1 {
			t.Errorf("after rm -f: %+v", r)
		}
	})
}

func TestImages(t *testing.T) {
	both(t, func(t *testing.T, c client) {
		saved := filepath.Join(t.TempDir(), "saved.tar")
		c.ok(t, "tag", "busybox", "copy:1")
		id := c.ok(t, "inspect", "-f", "{{.Id}}", "copy:1")
		c.ok(t, "save", "-o", saved, "copy:1")
		c.ok(t, "rmi", "copy:1")
		if r := c.do(t, nil, "inspect", "copy:1"); r.code == 0 {
			t.Errorf("after rmi: %+v", r)
		}
		if got := c.ok(t, "load", "-i", saved); got != "Loaded image: copy:1" {
			t.Errorf("load: %q", got)
		}
		if got := c.ok(t, "images", "--no-trunc", "--format", "{{.Repository}}:{{.Tag}} {{.ID}}", "copy"); got != "copy:1 "+id {
			t.Errorf("images: %q, want id %s", got, id)
		}
		c.ok(t, "history", "copy:1")
		c.ok(t, "rmi", "copy:1")
	})
}

func TestRedis(t *testing.T) {
	both(t, func(t *testing.T, c client) {
		name := c.name(t)
		c.ok(t, "run", "-d", "--name", name, "-m", "256m", "redis")
		c.waitForLog(t, name, "eady to accept connections")
		if got := c.ok(t, "exec", name, "redis-cli", "ping"); got != "PONG" {
			t.Errorf("ping: %q", got)
		}
		c.ok(t, "exec", name, "redis-cli", "set", "key", "value")
		c.ok(t, "stop", name)
		if got := c.ok(t, "wait", name); got != "0" {
			t.Errorf("exit code %s", got)
		}
		if r := c.do(t, nil, "logs", name); !strings.Contains(r.stdout+r.stderr, "Redis is now ready to exit") {
			t.Errorf("redis was not shut down gracefully: %s%s", r.stdout, r.stderr)
		}
	})
}

func TestNginx(t *testing.T) {
	both(t, func(t *testing.T, c client) {
		name := c.name(t)
		c.ok(t, "run", "-d", "--name", name, "nginx")
		get := `for i in $(seq 300); do { exec 3<>/dev/tcp/127.0.0.1/80; } 2>/dev/null && break; sleep 0.1; done
			printf 'GET / HTTP/1.0\r\n\r\n' >&3; cat <&3`
		if got := c.ok(t, "exec", name, "bash", "-c", get); !strings.HasPrefix(got, "HTTP/1.1 200 OK") || !strings.Contains(got, "nginx") {
			t.Errorf("it served %q", got)
		}
		c.ok(t, "stop", name)
		if got := c.ok(t, "wait", name); got != "0" {
			t.Errorf("exit code %s", got)
		}
	})
}

func TestSummon(t *testing.T) {
	c := inShared(t, "cradle")
	dir := filepath.Join(t.TempDir(), "vm")
	c.ok(t, "summon", dir, "busybox")
	if got := c.ok(t, "run", "--rm", dir, "echo", "summoned"); got != "summoned" {
		t.Errorf("run: %q", got)
	}
	// It is a directory to edit: another environment, seen by what runs.
	list := filepath.Join(dir, "cradle.json")
	b, err := os.ReadFile(list)
	if err != nil {
		t.Fatal(err)
	}
	var m map[string]any
	if err := json.Unmarshal(b, &m); err != nil {
		t.Fatal(err)
	}
	config, ok := m["config"].(map[string]any)["config"].(map[string]any)
	if !ok {
		t.Fatalf("no config in %s", b)
	}
	config["Env"] = []string{"PATH=/bin", "EDITED=yes"}
	if b, err = json.Marshal(m); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(list, b, 0o644); err != nil {
		t.Fatal(err)
	}
	if got := c.ok(t, "run", "--rm", dir, "sh", "-c", "echo $EDITED"); got != "yes" {
		t.Errorf("after the edit: %q", got)
	}
}
