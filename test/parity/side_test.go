package parity

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"
	"github.com/google/shlex"

	"github.com/cradlevm/cradle/test/house"
)

// commandLimit is for one command on a slow machine that emulates its virtual machines.
const commandLimit = 2 * time.Minute

// apiVersion is spoken to both: dockerd 20.10's newest.
const apiVersion = "1.41"

// side is one daemon and docker's command line for it.
type side struct {
	dir     string // its own, for {dir}
	env     []string
	started time.Time
}

func newSide(t *testing.T, socket string) *side {
	t.Helper()
	s := &side{dir: tempDir(t), started: time.Now()}
	s.env = append(house.Environ(), "DOCKER_HOST=unix://"+socket, "DOCKER_API_VERSION="+apiVersion,
		"DOCKER_CONFIG="+filepath.Join(s.dir, "config"), "HOME="+s.dir, "TZ=UTC", "TERM=dumb")
	for name, text := range map[string]string{
		"env":         "# a comment\nFROM_FILE=file\nEMPTY=\n",
		"bad.tar":     strings.Repeat("garbage ", 1000),
		"cid-exists":  "",
		"hello.txt":   "hello from outside\n",
		"seccomp.bad": "{",
	} {
		if err := os.WriteFile(filepath.Join(s.dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// tempDir is short, for unix sockets, and goes when the test ends.
func tempDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "cradle-parity-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// expand replaces what a line can name of its side.
func (s *side) expand(line string) string {
	return strings.NewReplacer(
		"{dir}", s.dir,
		"{start}", fmt.Sprint(s.started.Unix()),
		"{now}", fmt.Sprint(time.Now().Unix()+1),
	).Replace(line)
}

// run runs a row to its end.
func (s *side) run(r row) outcome {
	words, err := shlex.Split(s.expand(r.line))
	if err != nil {
		return outcome{failure: err.Error()}
	}
	ctx, cancel := context.WithTimeout(context.Background(), commandLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, "docker", words...)
	cmd.Env, cmd.Dir, cmd.WaitDelay = s.env, s.dir, 5*time.Second
	var stdout, stderr bytes.Buffer
	if r.tty {
		err = onTerminal(cmd, r.stdin, &stdout)
	} else {
		cmd.Stdin = strings.NewReader(r.stdin)
		cmd.Stdout, cmd.Stderr = &stdout, &stderr
		err = cmd.Run()
	}
	if err != nil && !errors.As(err, new(*exec.ExitError)) || ctx.Err() != nil {
		return outcome{failure: fmt.Sprintf("%v %v\n%s%s", err, ctx.Err(), &stdout, &stderr)}
	}
	return outcome{
		code:   cmd.ProcessState.ExitCode(),
		stdout: r.mask.hide(stdout.String(), s.dir), stderr: r.mask.hide(stderr.String(), s.dir),
	}
}

// onTerminal runs the command on a terminal of 80 columns, types input and collects what is shown.
func onTerminal(cmd *exec.Cmd, input string, shown io.Writer) error {
	f, err := pty.StartWithSize(cmd, &pty.Winsize{Rows: 24, Cols: 80})
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := io.WriteString(f, input); err != nil {
		return err
	}
	_, _ = io.Copy(shown, f) // ends with EIO when the last process has left the terminal
	return cmd.Wait()
}

// must runs a command that is no row and has to succeed.
func (s *side) must(t *testing.T, line string) {
	t.Helper()
	if o := s.run(row{line: line}); o.code != 0 || o.failure != "" {
		t.Fatalf("docker %s: %s", line, o)
	}
}

// daemon runs a daemon until the test ends, and its log is shown when the test failed.
func daemon(t *testing.T, cmd *exec.Cmd, ready func() bool) {
	t.Helper()
	log, err := os.Create(filepath.Join(tempDir(t), "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { defer close(ended); _ = cmd.Wait() }()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-ended:
		case <-time.After(30 * time.Second):
			t.Errorf("%s does not end", cmd.Args[0])
			_ = cmd.Process.Kill()
			<-ended
		}
		if b, err := os.ReadFile(log.Name()); err == nil && t.Failed() {
			lines := strings.Split(string(b), "\n")
			t.Logf("%s:\n%s", cmd.Args[0], strings.Join(lines[max(0, len(lines)-15):], "\n"))
		}
	})
	for deadline := time.Now().Add(30 * time.Second); !ready(); time.Sleep(50 * time.Millisecond) {
		select {
		case <-ended:
			b, _ := os.ReadFile(log.Name())
			t.Fatalf("%s ended:\n%s", cmd.Args[0], b)
		default:
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s is not ready", cmd.Args[0])
		}
	}
}

func sortLines(text string) string {
	lines := strings.SplitAfter(text, "\n")
	slices.Sort(lines)
	return strings.Join(lines, "")
}
