package e2e

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// ways are two spellings of one command: the first is done before docker's library is loaded (cmd/cradle/front), the second
// by it.
func ways() [][]string { return [][]string{{"run"}, {"container", "run"}} }

// What a run says and returns does not depend on who does it.
func TestRunInFront(t *testing.T) {
	c := inShared(t, "cradle")
	ids := regexp.MustCompile(`[0-9a-f]{64}`)
	for line, front := range map[string]bool{ // and whether the front does it
		"--rm busybox true":                                        true,
		"--rm --network none busybox sh -c exit${_}7":              true,
		"--rm --network=none -e A=b busybox sh -c set|grep${_}^A=": true,
		"--rm busybox sh -c echo${_}a;ls${_}/nope":                 true,
		"--rm busybox seq 100000":                                  true,
		"--rm --network none busybox nope":                         true,
		"--rm busybox /etc":                                        true,
		"-d --rm busybox true":                                     true,
		"-d --rm busybox nope":                                     true,
		"--rm --network nobodys busybox true":                      true,
		"--rm Busybox true":                                        false,
		"--rm --name _a busybox true":                              false,
		"--rm --read-only busybox touch a":                         false,
	} {
		t.Run(line, func(t *testing.T) {
			var said []result
			for i, way := range ways() {
				words := strings.Fields(line)
				for i := range words {
					words[i] = strings.ReplaceAll(words[i], "${_}", " ")
				}
				r, loaded := c.traced(append(way, words...)...)
				if loaded != (i == 1 || !front) {
					t.Errorf("%q loads docker's library: %v", way, loaded)
				}
				said = append(said, result{ids.ReplaceAllString(r.stdout, "ID"), ids.ReplaceAllString(r.stderr, "ID"), r.code})
			}
			if said[0] != said[1] {
				t.Errorf("it says\n%.2000s, want\n%.2000s", fmt.Sprint(said[0]), fmt.Sprint(said[1]))
			}
		})
	}
	if left := c.ok(t, "ps", "-aq", "--filter", "status=created"); left != "" {
		t.Errorf("left behind: %s", left)
	}
}

// traced is what a command says and returns, and whether docker's library was loaded for it.
func (c client) traced(args ...string) (r result, loaded bool) {
	cmd := c.house.Command(commandLimit, c.program, args...)
	cmd.Env = append(slices.Clone(cmd.Env), "GODEBUG=inittrace=1")
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	_ = cmd.Run() // its code is the caller's to look at
	text := ""
	for s := range strings.Lines(stderr.String()) {
		if strings.HasPrefix(s, "init ") {
			loaded = loaded || strings.HasPrefix(s, "init github.com/docker/cli/")
			continue
		}
		text += s
	}
	return result{stdout.String(), text, cmd.ProcessState.ExitCode()}, loaded
}

// What is listed does not depend on who lists it.
func TestListInFront(t *testing.T) {
	c := inShared(t, "cradle")
	name := c.name(t)
	c.ok(t, "run", "-d", "--name", name, "--network", "none", "busybox", "sleep", "100000")
	t.Cleanup(func() { c.do(t, nil, "rm", "-f", name+"_") })
	c.ok(t, "create", "--name", name+"_", "-l", "a=b", "-p", "81:82", "busybox", "sh", "-c", "echo some more words than there is room for")
	for line, front := range map[string]bool{
		"": true, "-a": true, "-q": true, "-aq": true, "-a --no-trunc": true, "--all --filter label=a": true, "-qf label=a": false,
		"-q --all --filter=status=created": true, "-f status=paused": true, "-f a=b": false, "-f a": false, "-a --format {{.Names}}": false,
	} {
		words := append(strings.Fields(line), "-f", "name="+name) // other tests have containers, too
		first, loaded := c.traced(append([]string{"ps"}, words...)...)
		if loaded == front {
			t.Errorf("ps %s loads docker's library: %v", line, loaded)
		}
		second, _ := c.traced(append([]string{"container", "ls"}, words...)...)
		second.stderr = strings.ReplaceAll(second.stderr, "container ls", "ps")
		times := regexp.MustCompile(`\d+ seconds|About a minute`)
		first.stdout, second.stdout = times.ReplaceAllString(first.stdout, "TIME"), times.ReplaceAllString(second.stdout, "TIME")
		if first != second {
			t.Errorf("ps %s says\n%s\nwant\n%s", line, fmt.Sprint(first), fmt.Sprint(second))
		}
	}
}

// started starts a command that says "up", and returns when it has, and the rest of what it says.
func (c client) started(t *testing.T, args ...string) (*exec.Cmd, *bufio.Reader) {
	t.Helper()
	cmd := c.house.Command(commandLimit, c.program, args...)
	cmd.Stderr = new(bytes.Buffer)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	lines := bufio.NewReader(out)
	expectLine(t, lines, "up\n")
	return cmd, lines
}

func expectLine(t *testing.T, lines *bufio.Reader, want string) {
	t.Helper()
	if got, err := lines.ReadString('\n'); got != want {
		t.Fatalf("%q, want %q, %v", got, want, err)
	}
}

func signalTo(t *testing.T, cmd *exec.Cmd, signals ...syscall.Signal) {
	t.Helper()
	for _, s := range signals {
		if err := cmd.Process.Signal(s); err != nil {
			t.Fatal(err)
		}
	}
}

// A run's signals are its container's; three that ask for an end are the end of the client, and of nothing else.
func TestRunPassesSignalsOn(t *testing.T) {
	c := inShared(t, "cradle")
	script := `trap 'echo usr1' USR1; trap 'echo int' INT; trap 'echo term; exit 9' TERM; trap 'echo hup' HUP; echo up; while :; do sleep 0.1; done`
	for _, way := range ways() {
		t.Run(strings.Join(way, " "), func(t *testing.T) {
			cmd, lines := c.started(t, append(way, "--rm", "--network", "none", "--name", c.name(t), "busybox", "sh", "-c", script)...)
			for s, want := range map[syscall.Signal]string{syscall.SIGUSR1: "usr1\n", syscall.SIGHUP: "hup\n", syscall.SIGINT: "int\n"} {
				signalTo(t, cmd, s)
				expectLine(t, lines, want)
			}
			signalTo(t, cmd, syscall.SIGTERM)
			expectLine(t, lines, "term\n")
			_, _ = io.Copy(io.Discard, lines)
			if _ = cmd.Wait(); cmd.ProcessState.ExitCode() != 9 {
				t.Errorf("%v, %v", cmd.ProcessState, cmd.Stderr)
			}
		})
	}
	for _, way := range ways() {
		t.Run("impatient "+strings.Join(way, " "), func(t *testing.T) {
			name := c.name(t)
			cmd, lines := c.started(t, append(way, "--network", "none", "--name", name, "busybox", "sh", "-c", script)...)
			for range 2 {
				signalTo(t, cmd, syscall.SIGINT)
				expectLine(t, lines, "int\n")
			}
			signalTo(t, cmd, syscall.SIGINT)
			_, _ = io.Copy(io.Discard, lines)
			_ = cmd.Wait()
			if text := cmd.Stderr.(*bytes.Buffer).String(); cmd.ProcessState.ExitCode() != 1 || text != "\ngot 3 SIGTERM/SIGINTs, forcefully exiting\n" {
				t.Errorf("%v, %q", cmd.ProcessState, text)
			}
			if got := c.ok(t, "inspect", "-f", "{{.State.Status}}", name); got != "running" {
				t.Errorf("the container is %s", got)
			}
		})
	}
}

// A container goes on when who ran it has gone, or takes no more of what it says.
func TestRunOutlivesItsClient(t *testing.T) {
	c := inShared(t, "cradle")
	for _, way := range ways() {
		t.Run("killed "+strings.Join(way, " "), func(t *testing.T) {
			name := c.name(t)
			cmd, _ := c.started(t, append(way, "--network", "none", "--name", name, "busybox", "sh", "-c", "trap 'echo still' USR1; echo up; while :; do sleep 0.1; done")...)
			signalTo(t, cmd, syscall.SIGKILL)
			_ = cmd.Wait()
			c.ok(t, "kill", "-s", "USR1", name)
			c.waitForLog(t, name, "still")
		})
	}
	var said []result
	for _, way := range ways() {
		t.Run("closed "+strings.Join(way, " "), func(t *testing.T) {
			name := c.name(t)
			cmd := c.house.Command(commandLimit, c.program, append(way, "--network", "none", "--name", name, "busybox", "sh", "-c", "echo up; while :; do echo more; sleep 0.1; done")...)
			var stderr bytes.Buffer
			cmd.Stderr = &stderr
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			expectLine(t, bufio.NewReader(out), "up\n")
			_ = out.Close()
			_ = cmd.Wait()
			said = append(said, result{stderr: stderr.String(), code: cmd.ProcessState.ExitCode()})
			if got := c.ok(t, "inspect", "-f", "{{.State.Status}}", name); got != "running" {
				t.Errorf("the container is %s", got)
			}
		})
	}
	if len(said) == 2 && said[0] != said[1] {
		t.Errorf("%+v, want %+v", said[0], said[1])
	}
}
