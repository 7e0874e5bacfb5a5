package e2e

import (
	"bufio"
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cradlevm/cradle/test/house"
)

// composeFile is a project whose redis differs with $VERSION.
const composeFile = `
services:
  web:
    image: busybox
    command: ["sh", "-c", "mkdir /w; echo served >/w/x; exec httpd -f -h /w -p 80"]
    ports: ["127.0.0.1::80"]
    networks: {front: {aliases: [www]}}
    restart: unless-stopped
    logging: {driver: json-file, options: {max-size: 1m}}
  redis:
    image: redis
    command: redis-server --protected-mode no --appendonly yes --appendfsync no
    environment: {VERSION: "${VERSION}"}
    networks: [front]
    volumes: ["data:/data"]
    healthcheck: {test: ["CMD", "redis-cli", "ping"], interval: 1s, timeout: 30s, retries: 60}
  app:
    image: busybox
    command: ["sh", "-c", "echo $$GREETING $$WHOM; exec sleep 1000"]
    environment: {GREETING: hello}
    env_file: [app.env]
    secrets: [token]
    volumes: ["./app.env:/etc/app.env:ro"]
    networks: [front]
    links: ["redis:store"]
    depends_on: {redis: {condition: service_healthy}}
networks: {front: {}}
volumes: {data: {}}
secrets: {token: {file: ./token}}
`

// compose is docker-compose, called by cradle, with a project in a directory.
type compose struct {
	client
	dir string
}

func (p compose) command(version string, args ...string) *exec.Cmd {
	cmd := p.house.Command(commandLimit, "cradle", append([]string{"compose", "-p", "shop"}, args...)...)
	cmd.Dir, cmd.Env = p.dir, append(cmd.Env, "VERSION="+version)
	return cmd
}

// says runs a command that has to succeed, and returns what it says.
func (p compose) says(t *testing.T, args ...string) string { return p.saysWith(t, "1", args...) }

func (p compose) saysWith(t *testing.T, version string, args ...string) string {
	t.Helper()
	cmd := p.command(version, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("docker-compose %s: %v\n%s%s", strings.Join(args, " "), err, stdout.Bytes(), stderr.Bytes())
	}
	return strings.TrimSpace(stdout.String())
}

// wants runs a command that has to say so among other things.
func (p compose) wants(t *testing.T, want string, args ...string) {
	t.Helper()
	if got := p.says(t, args...); !strings.Contains(got, want) {
		t.Errorf("docker-compose %s: no %q in %q", strings.Join(args, " "), want, got)
	}
}

// TestCompose: Debian's docker-compose drives a project of three services through its life.
func TestCompose(t *testing.T) {
	if _, err := exec.LookPath("docker-compose"); err != nil {
		if house.Promised() {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	c := inOwn(t)
	if err := c.house.Load(commandLimit, "redis"); err != nil {
		t.Fatal(err)
	}
	p := compose{c, t.TempDir()}
	for name, text := range map[string]string{"docker-compose.yml": composeFile, "app.env": "WHOM=world\n", "token": "sesame\n", "Dockerfile": "FROM busybox\n",
		"build.yml": "version: \"3.8\"\nservices: {made: {build: .}}\n"} {
		if err := os.WriteFile(filepath.Join(p.dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	p.says(t, "up", "-d")
	p.talks(t)
	p.lives(t)
	p.outlivesTheDaemon(t)
	cmd := p.command("1", "-f", "build.yml", "build")
	if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "not supported by cradle") {
		t.Errorf("a build: %v, %s", err, out)
	}
	p.says(t, "down", "-v", "--remove-orphans", "-t", "1")
	for _, list := range [][]string{{"ps", "-aq"}, {"volume", "ls", "-q"}, {"network", "ls", "-q", "--filter", "type=custom"}} {
		if got := c.ok(t, list...); got != "" {
			t.Errorf("down leaves %v: %s", list, got)
		}
	}
}

// talks looks at what the services say to each other and to the world.
func (p compose) talks(t *testing.T) {
	t.Helper()
	p.wants(t, "served", "exec", "-T", "app", "sh", "-c", "for i in $(seq 100); do wget -qO- http://www/x 2>/dev/null && exit; sleep 0.1; done; exit 1")
	p.wants(t, "Address", "exec", "-T", "app", "nslookup", "store")
	p.wants(t, "hello world", "logs", "app")
	p.wants(t, "sesame\nWHOM=world", "exec", "-T", "app", "cat", "/run/secrets/token", "/etc/app.env")
	p.wants(t, "PONG", "exec", "-T", "redis", "redis-cli", "-h", "redis", "ping")
	p.wants(t, "OK", "exec", "-T", "redis", "redis-cli", "set", "k", "kept")
	if got := fetch(t, p.says(t, "port", "web", "80")); got != "served" {
		t.Errorf("the published port says %q", got)
	}
	p.wants(t, "one-off", "run", "--rm", "-T", "app", "echo", "one-off")
	p.wants(t, "redis-server", "top")
	p.wants(t, "busybox", "images")
}

// lives takes the services through what can be done with them, and looks at the events meanwhile.
func (p compose) lives(t *testing.T) {
	t.Helper()
	events := p.command("1", "events", "--json", "app")
	out, err := events.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := events.Start(); err != nil {
		t.Fatal(err)
	}
	said := make(chan bool, 100)
	go func() {
		for lines := bufio.NewScanner(out); lines.Scan(); { // health checks, too
			if line := lines.Text(); strings.Contains(line, "pause") && strings.Contains(line, "shop") && strings.Contains(line, `"app"`) {
				said <- true
			}
		}
		said <- false
	}()
	for listens := false; !listens; {
		p.says(t, "pause", "app")
		p.says(t, "unpause", "app")
		select {
		case listens = <-said:
			if !listens {
				t.Fatal("the events ended")
			}
		case <-time.After(time.Second):
		}
	}
	_ = events.Process.Kill()
	_ = events.Wait()

	p.says(t, "up", "-d", "--scale", "app=2")
	if got := strings.Fields(p.says(t, "ps", "-q", "app")); len(got) != 2 {
		t.Errorf("scaled to 2: %q", got)
	}
	p.says(t, "stop", "-t", "1", "app")
	p.says(t, "start", "app")
	p.says(t, "restart", "-t", "1", "web")
	p.says(t, "kill", "-s", "SIGKILL", "app")
	if got := p.client.ok(t, "ps", "-q", "--filter", "label=com.docker.compose.service=app"); got != "" {
		t.Errorf("killed, and still running: %s", got)
	}

	// A changed service is made anew; its volume is the one it had.
	before := p.says(t, "ps", "-q", "redis")
	p.saysWith(t, "2", "up", "-d")
	if after := p.says(t, "ps", "-q", "redis"); after == before {
		t.Error("a changed service was not made anew")
	}
	p.wants(t, "kept", "exec", "-T", "redis", "sh", "-c", "until redis-cli ping | grep -q PONG; do sleep 0.1; done; redis-cli get k")
}

// outlivesTheDaemon kills the daemon; the next one has the project.
func (p compose) outlivesTheDaemon(t *testing.T) {
	t.Helper()
	before := p.says(t, "ps", "-q")
	p.killDaemon(t)
	p.client.ok(t, "ps") // starts another
	if after := p.says(t, "ps", "-q"); after != before {
		t.Errorf("before %q, after %q", before, after)
	}
	p.wants(t, "kept", "exec", "-T", "redis", "redis-cli", "get", "k")
	p.saysWith(t, "2", "up", "-d")
	if after := p.says(t, "ps", "-q"); after != before {
		t.Errorf("up made something anew: before %q, after %q", before, after)
	}
}
