package e2e

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/creack/pty"
)

func TestExitCodes(t *testing.T) {
	both(t, func(t *testing.T, c client) {
		for _, e := range []struct {
			code   int
			stderr string
			args   []string
		}{
			{0, "", []string{"true"}},
			{7, "", []string{"sh", "-c", "exit 7"}},
			{126, "permission denied", []string{"/etc"}},
			{126, "permission denied", []string{"/etc/passwd"}},
			{127, "executable file not found", []string{"nope"}},
		} {
			r := c.do(t, nil, append([]string{"run", "--rm", "busybox"}, e.args...)...)
			if r.code != e.code || !strings.Contains(r.stderr, e.stderr) || e.stderr == "" && r.stderr != "" {
				t.Errorf("%v: %+v, want %d and %q", e.args, r, e.code, e.stderr)
			}
		}
	})
}

// A container's own end by a signal is 128 and its number, however the signal got there.
func TestSignals(t *testing.T) {
	both(t, func(t *testing.T, c client) {
		script := `trap 'echo usr1' USR1; trap 'exit 143' TERM; echo up; while :; do sleep 0.1; done`
		for signal, code := range map[string]string{"KILL": "137", "TERM": "143"} {
			name := c.name(t)
			c.ok(t, "run", "-d", "--name", name, "busybox", "sh", "-c", script)
			c.waitForLog(t, name, "up")
			c.ok(t, "kill", "-s", "USR1", name)
			c.waitForLog(t, name, "usr1")
			c.ok(t, "kill", "-s", signal, name)
			if got := c.ok(t, "wait", name); got != code {
				t.Errorf("after SIG%s: exit code %s, want %s", signal, got, code)
			}
			if got := c.ok(t, "inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", name); got != "exited "+code {
				t.Errorf("after SIG%s: %s", signal, got)
			}
			c.ok(t, "rm", name)
		}
	})
}

func TestStreams(t *testing.T) {
	both(t, func(t *testing.T, c client) {
		r := c.do(t, []byte("in"), "run", "--rm", "-i", "busybox", "sh", "-c", "cat; echo out; echo err >&2")
		if r.stdout != "inout\n" || r.stderr != "err\n" || r.code != 0 {
			t.Errorf("%+v", r)
		}
	})
}

func TestBigInputComesBackUnchanged(t *testing.T) {
	both(t, func(t *testing.T, c client) {
		data := make([]byte, 64<<20)
		_, _ = rand.Read(data)
		r := c.do(t, data, "run", "--rm", "-i", "busybox", "cat")
		if r.code != 0 || !bytes.Equal([]byte(r.stdout), data) {
			t.Errorf("exit code %d, %d of %d bytes, %q", r.code, len(r.stdout), len(data), r.stderr)
		}
	})
}

func TestTerminal(t *testing.T) {
	both(t, func(t *testing.T, c client) {
		cmd := c.house.Command(commandLimit, c.program, "run", "--rm", "-it", "busybox", "sh")
		f, err := pty.StartWithSize(cmd, &pty.Winsize{Rows: 33, Cols: 101})
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		term := newTerminal(f)
		term.expect(t, "# ")
		term.send(t, "stty size\n")
		term.expect(t, "33 101")
		if err := pty.Setsize(f, &pty.Winsize{Rows: 24, Cols: 80}); err != nil {
			t.Fatal(err)
		}
		term.send(t, "while [ \"$(stty size)\" != '24 80' ]; do sleep 0.1; done; echo resi''zed\n")
		term.expect(t, "resized")
		term.send(t, "tty; exit 5\n")
		term.expect(t, "/dev/pts/")
		_ = cmd.Wait()
		if code := cmd.ProcessState.ExitCode(); code != 5 {
			t.Errorf("exit code %d, want 5", code)
		}
	})
}

// One container with everything the issue names, and what its process sees of it.
func TestRunFlags(t *testing.T) {
	both(t, func(t *testing.T, c client) {
		envFile := filepath.Join(t.TempDir(), "env")
		if err := os.WriteFile(envFile, []byte("# a comment\nFROM_FILE=file\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		script := `echo "$FROM_FLAG $FROM_FILE"; pwd; id -u; id -g; hostname; ulimit -n; cat /proc/sys/kernel/hostname
			touch /x 2>/dev/null || echo read-only; touch /scratch/x && echo writable
			grep CapBnd /proc/self/status; nproc; uname -r`
		out := c.ok(t, "run", "--rm", "-e", "FROM_FLAG=flag", "--env-file", envFile, "-w", "/var", "-u", "1234:4321",
			"-h", "guesthost", "--ulimit", "nofile=777:888", "--read-only", "--tmpfs", "/scratch:mode=1777", "--cap-drop", "ALL", "--cap-add", "NET_RAW",
			"-m", "128m", "--cpus", "1", "--entrypoint", "/bin/sh", "busybox", "-c", script)
		release, err := os.ReadFile(filepath.Join(shared.build.Guest, "release"))
		if err != nil {
			t.Fatal(err)
		}
		want := []string{"flag file", "/var", "1234", "4321", "guesthost", "777", "guesthost", "read-only", "writable",
			"CapBnd:\t0000000000002000", "1", strings.TrimSpace(string(release))}
		if got := strings.Split(out, "\n"); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("got  %q\nwant %q", got, want)
		}
		if out := c.ok(t, "run", "--rm", "--privileged", "busybox", "sh", "-c", "mkdir /m; mount -t tmpfs none /m && echo may mount"); out != "may mount" {
			t.Errorf("--privileged: %q", out)
		}
	})
}

func TestBadInput(t *testing.T) {
	garbage := filepath.Join(t.TempDir(), "garbage.tar")
	if err := os.WriteFile(garbage, bytes.Repeat([]byte("garbage "), 1000), 0o644); err != nil {
		t.Fatal(err)
	}
	truncated := filepath.Join(t.TempDir(), "truncated.tar")
	if b, err := os.ReadFile(shared.build.Image("busybox")); err == nil {
		if err := os.WriteFile(truncated, b[:len(b)/2], 0o644); err != nil {
			t.Fatal(err)
		}
	}
	both(t, func(t *testing.T, c client) {
		name := c.name(t)
		c.ok(t, "create", "--name", name, "busybox", "true")
		before := c.ok(t, "images", "-q", "--no-trunc")
		for _, e := range []struct {
			code   int
			stderr string
			args   []string
		}{
			{125, "", []string{"run", "--rm", "127.0.0.1:1/missing"}},
			{125, "No such image", []string{"run", "--rm", "--pull", "never", "missing"}},
			{125, "is already in use by container", []string{"run", "--name", name, "busybox"}},
			{125, "unknown flag: --nonsense", []string{"run", "--nonsense", "busybox"}},
			{127, "no such file or directory", []string{"run", "--rm", "busybox", "/no/such/program"}},
			{125, "unable to find user nobodyhere", []string{"run", "--rm", "-u", "nobodyhere", "busybox", "true"}},
			{125, "invalid reference format", []string{"run", "--rm", "Not_Valid", "true"}},
			{1, "No such container: missing", []string{"start", "missing"}},
			{1, "No such container: missing", []string{"rm", "missing"}},
			{1, "No such container: missing", []string{"exec", "missing", "true"}},
			{1, "is not running", []string{"exec", name, "true"}},
			{1, "No such image: missing", []string{"rmi", "missing"}},
			{1, "", []string{"load", "-i", garbage}},
			{1, "", []string{"load", "-i", truncated}},
			{1, "no such file or directory", []string{"load", "-i", "/no/such/file"}},
			{1, "", []string{"tag", "missing", "other"}},
			{1, "", []string{"inspect", "missing"}},
		} {
			r := c.do(t, nil, e.args...)
			if r.code != e.code || !strings.Contains(r.stderr, e.stderr) || r.stderr == "" {
				t.Errorf("%v: %+v, want %d and %q", e.args, r, e.code, e.stderr)
			}
		}
		if after := c.ok(t, "images", "-q", "--no-trunc"); after != before {
			t.Errorf("the failures changed the images from %q to %q", before, after)
		}
		if left := c.ok(t, "ps", "-aq"); strings.Count(left, "\n") > 0 {
			t.Errorf("the failures left containers: %s", c.ok(t, "ps", "-a"))
		}
	})
}
