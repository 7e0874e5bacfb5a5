package dockerapi

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/creack/pty"
)

// cli runs the stock docker command line against a fake.
type cli struct {
	t      *testing.T
	socket string
	config string
}

func newCLI(t *testing.T) (*cli, *fake) {
	if _, err := exec.LookPath("docker"); err != nil {
		t.Skip("no docker command line")
	}
	t.Parallel()
	f := newFake()
	return &cli{t, serve(t, f), t.TempDir()}, f
}

func (c *cli) command(args ...string) *exec.Cmd {
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
	c.t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, "docker", args...)
	cmd.Env = append(os.Environ(), "DOCKER_HOST=unix://"+c.socket, "DOCKER_CONFIG="+c.config)
	return cmd
}

// run runs docker and holds its outputs and exit code against what is expected.
func (c *cli) run(stdin string, wantCode int, wantOut, wantErr string, args ...string) string {
	c.t.Helper()
	cmd := c.command(args...)
	cmd.Stdin = strings.NewReader(stdin)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	code := 0
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		code = exit.ExitCode()
	} else if err != nil {
		c.t.Fatal(err)
	}
	if code != wantCode || !strings.Contains(stdout.String(), wantOut) || !strings.Contains(stderr.String(), wantErr) {
		c.t.Fatalf("docker %v: exit %d, want %d\nstdout %q, want %q\nstderr %q, want %q", args, code, wantCode,
			stdout.String(), wantOut, stderr.String(), wantErr)
	}
	return stdout.String()
}

func TestCLIRun(t *testing.T) {
	c, f := newCLI(t)
	c.run("", 0, "hello world\n", "", "run", "alpine", "echo", "hello", "world")
	c.run("", 0, "hello\n", "", "run", "--rm", "alpine", "echo", "hello")
	c.run("", 7, "", "", "run", "--rm", "alpine", "exit", "7")
	c.run("", 0, "out\n", "err\n", "run", "--rm", "alpine", "both")
	big := strings.Repeat("0123456789abcdef", 1<<16)
	if out := c.run(big, 0, "", "", "run", "-i", "--rm", "alpine", "cat"); out != big {
		t.Fatalf("cat gave %d of %d bytes", len(out), len(big))
	}
	c.run("", 127, "", "executable file not found", "run", "--rm", "alpine", "missing")
	c.run("", 0, "hi\n", "Downloaded newer image", "run", "--rm", "other/name:1.0", "echo", "hi")
	c.run("", 125, "", "is broken", "run", "broken", "echo", "hi")
	c.run("", 125, "", "manifest for absent:latest not found", "run", "absent", "echo", "hi")
	c.run("", 0, "", "", "run", "--platform", "linux/arm64", "alpine", "echo", "hi")
	f.eventually(t, `create "" &{arm64 linux  [] }`)
}

// TestCLICreateFlags: whatever a field means to the Backend, the API knows the ones that docker sends.
func TestCLICreateFlags(t *testing.T) {
	c, _ := newCLI(t)
	c.run("", 0, "", "", "create", "-it", "-m", "64m", "--cpus", "0.5", "--mount", "type=tmpfs,dst=/x", "-v", "/tmp:/y:ro",
		"-v", "/anonymous", "--health-cmd", "true", "--health-interval", "5s", "--health-start-interval", "1s",
		"-p", "127.0.0.1:8080:80/udp", "-P", "--expose", "9", "--dns", "1.1.1.1", "--mac-address", "02:00:00:00:00:01",
		"--network", "name=web,alias=a,ip=10.0.0.5", "--ulimit", "nofile=5:6", "--log-driver", "none", "--tmpfs", "/run:size=1m",
		"--restart", "on-failure:3", "--init", "--cap-add", "ALL", "--device", "/dev/null", "--sysctl", "net.core.somaxconn=9", "--gpus", "all",
		"--security-opt", "seccomp=unconfined", "--add-host", "h:1.2.3.4", "--stop-timeout", "3", "--label", "a=b", "-e", "A=B",
		"--annotation", "x=y", "--userns", "host", "--shm-size", "1m", "--oom-kill-disable", "--pids-limit", "5",
		"--blkio-weight", "10", "--entrypoint", "/bin/e", "-w", "/w", "-u", "1:1", "-h", "host", "--pull", "never", "alpine", "echo")
}

func TestCLIContainers(t *testing.T) {
	c, f := newCLI(t)
	c.run("", 0, "", "", "run", "-d", "--name", "box", "alpine", "size")
	c.run("", 0, "box", "", "ps")
	c.run("", 0, "", "", "ps", "-a", "--filter", "label=a=b", "--filter", "status=running", "-n", "3")
	f.eventually(t, "list true 3 false map[label:map[a=b:true] status:map[running:true]]")
	c.run("", 0, "10.1.2.3", "", "inspect", "-f", "{{.NetworkSettings.IPAddress}}", "box")
	c.run("", 0, "both ways\n", "", "exec", "box", "echo", "both", "ways")
	c.run("input", 0, "input", "", "exec", "-i", "box", "cat")
	c.run("", 3, "", "", "exec", "box", "exit", "3")
	c.run("", 127, "executable file not found", "", "exec", "box", "missing")
	c.run("", 1, "", "409", "exec", "box", "conflict")
	c.run("", 0, "", "", "exec", "-d", "box", "echo", "x")
	c.run("", 0, "-ef", "", "top", "box")
	c.run("", 0, "box", "", "stats", "--no-stream", "box")
	c.run("", 0, "", "", "start", "box") // 304
	c.run("", 0, "", "", "pause", "box")
	c.run("", 0, "", "", "unpause", "box")
	c.run("", 0, "", "", "rename", "box", "crate")
	c.run("", 0, "crate", "", "update", "--memory", "1g", "crate")
	c.run("", 1, "", "is running", "rm", "crate")
	c.run("", 0, "", "", "kill", "-s", "USR1", "crate")
	c.run("", 0, "42", "", "wait", "crate")
	c.run("", 0, "signal USR1", "", "logs", "crate")
	c.run("", 0, "signal USR1", "", "logs", "-f", "--tail", "10", "--since", "5m", "crate")
	c.run("", 0, "crate", "", "stop", "-t", "3", "crate") // 304
	c.run("", 0, "", "", "rm", "-f", "crate")
	c.run("", 1, "", "No such container: crate", "rm", "crate")
}

func TestCLIImages(t *testing.T) {
	c, f := newCLI(t)
	c.run("", 0, "alpine", "", "images")
	c.run("", 0, "", "", "pull", "team/app:2")
	f.eventually(t, "pull team/app:2 <nil> <nil>")
	c.run("", 0, "amd64", "", "image", "inspect", "-f", "{{.Architecture}}", "team/app:2")
	c.run("", 1, "", "Pulling all tags", "pull", "-a", "alpine")
	c.run("tar", 0, "Loaded image: alpine:latest", "", "load")
	c.run("", 0, "tar of alpine", "", "save", "alpine")
	c.run("", 0, "ADD", "", "history", "alpine")
	c.run("", 0, "", "", "tag", "alpine", "x/y:z")
	f.eventually(t, "tag alpine x/y:z")
	c.run("", 0, "Untagged", "", "rmi", "team/app:2")
	c.run("body", 0, "", "", "import", "-c", "CMD a", "-m", "msg", "-", "imp:1")
	f.eventually(t, `import imp:1 "msg" ["CMD a"] "body"`)
	c.run("", 1, "", "Pushing an image is not supported by cradle yet", "push", "alpine")
	c.run("", 1, "", "Searching a registry is not supported", "search", "x")
	c.run("", 1, "", "No such image: nope:latest", "history", "nope")
}

func TestCLISystem(t *testing.T) {
	c, _ := newCLI(t)
	c.run("", 0, "1.2.3", "", "version")
	c.run("", 0, "Server Version: 1.2.3", "", "info")
	c.run("", 0, "container start abc", "", "events", "--since", "1h", "--until", "0s")
	c.run("", 0, "Images", "", "system", "df")
	c.run("", 0, "Images space usage", "", "system", "df", "-v")
	c.run("", 0, "none", "", "network", "ls")
	c.run("", 0, "null", "", "network", "inspect", "none")
	c.run("", 1, "", "network web not found", "network", "inspect", "web")
	c.run("", 0, "0000", "", "network", "create", "web")
	c.run("", 0, "", "", "network", "connect", "--alias", "a", "web", "x")
	c.run("", 1, "", "none is a pre-defined network", "network", "rm", "none")
	c.run("", 0, "", "", "volume", "ls")
	c.run("", 0, "v", "", "volume", "create", "v")
	c.run("", 0, "local", "", "volume", "inspect", "data")
	c.run("", 1, "", "no such volume", "volume", "rm", "v")
	c.run("", 0, "", "", "plugin", "ls")
	c.run("", 1, "", "not a swarm manager", "service", "ls")
	c.run("", 1, "", "Swarm mode is not supported", "swarm", "init")
	c.run("", 0, "Total reclaimed space: 0B", "", "system", "prune", "-f", "-a", "--volumes")
}

// TestCLITerminal runs docker on a terminal: the window's size and the signals must reach the container.
func TestCLITerminal(t *testing.T) {
	c, f := newCLI(t)
	cmd := c.command("run", "-it", "--name", "term", "alpine", "size")
	tty, err := pty.StartWithSize(cmd, &pty.Winsize{Rows: 31, Cols: 77})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tty.Close() }()
	output := make(chan string, 64)
	go func() {
		buf := make([]byte, 4096)
		for {
			n, err := tty.Read(buf)
			if n > 0 {
				output <- string(buf[:n])
			}
			if err != nil {
				close(output)
				return
			}
		}
	}()
	seen := ""
	expect := func(want string, again func()) {
		t.Helper()
		deadline := time.After(10 * time.Second)
		for !strings.Contains(seen, want) {
			select {
			case text, ok := <-output:
				if !ok {
					t.Fatalf("terminal ended; want %q in %q", want, seen)
				}
				seen += text
			case <-time.After(100 * time.Millisecond):
				again()
			case <-deadline:
				t.Fatalf("no %q in %q", want, seen)
			}
		}
	}
	nothing := func() {}
	expect("size 31x77", nothing)
	resize := func() { // docker listens for changes only some time after it has told the first size
		for _, columns := range []uint16{61, 60} {
			if err := pty.Setsize(tty, &pty.Winsize{Rows: 20, Cols: columns}); err != nil {
				t.Fatal(err)
			}
		}
	}
	resize()
	expect("size 20x60", resize)
	c.run("", 0, "", "", "kill", "-s", "INT", "term")
	f.eventually(t, "kill INT")
	expect("signal INT", nothing)
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) || exit.ExitCode() != 42 {
		t.Fatalf("docker run -it ended with %v, want exit code 42", err)
	}
}

// TestCLISignalProxy sends a signal to docker run without a terminal, which passes it on.
func TestCLISignalProxy(t *testing.T) {
	c, f := newCLI(t)
	cmd := c.command("run", "--name", "sig", "alpine", "sleep")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for range 400 {
		if r, err := f.ContainerInspect(t.Context(), "sig", false); err == nil && r.State.Running {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	time.Sleep(200 * time.Millisecond) // docker listens for signals a little after the start
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	f.eventually(t, "kill INT")
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) || exit.ExitCode() != 137 {
		t.Fatalf("docker run ended with %v, want exit code 137", err)
	}
}
