package rootless

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"
)

// TestOrdinaryUser is a user's first hour: load, run on a terminal, run in the background, exec, logs, stop, and all
// of it gone. The daemon starts on demand.
func TestOrdinaryUser(t *testing.T) {
	u := newUser(t)
	t.Cleanup(func() { u.reset(t) })
	u.load(t, "busybox")

	if got := u.terminal(t, "echo $((6*7)) on $(tty); exit 5\n", 5); !strings.Contains(got, "42 on /dev/pts/0") {
		t.Errorf("run -it shows %q", got)
	}
	if got := u.ok(t, "run", "--rm", "-m", "128m", "--cpus", "1", "busybox", "id", "-u"); got != "0" {
		t.Errorf("with limits: %q", got)
	}
	u.ok(t, "run", "-d", "--name", "box", "busybox", "sh", "-c", "trap 'echo bye; exit 3' TERM; echo up; while :; do sleep 0.1; done")
	if got := u.ok(t, "exec", "-u", "nobody", "-w", "/tmp", "box", "pwd"); got != "/tmp" {
		t.Errorf("exec: %q", got)
	}
	u.check(t)
	for deadline := time.Now().Add(commandLimit); u.ok(t, "logs", "box") != "up"; {
		if time.Now().After(deadline) {
			t.Fatal("no log")
		}
	}
	u.ok(t, "stop", "-t", "60", "box")
	if got := u.ok(t, "inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", "box"); got != "exited 3" {
		t.Errorf("after stop: %q", got)
	}
	if got := u.ok(t, "logs", "box"); got != "up\nbye" {
		t.Errorf("logs: %q", got)
	}
	if got := u.ok(t, "info", "-f", "{{.DockerRootDir}} {{.SecurityOptions}}"); !strings.HasPrefix(got, filepath.Join(u.home, "data", "cradle")) || !strings.Contains(got, "rootless") {
		t.Errorf("info: %q", got)
	}
	if _, err := exec.LookPath("docker"); err == nil {
		if out, code := u.do(t, nil, "docker", "run", "--rm", "busybox", "echo", "through docker"); code != 0 || out != "through docker\n" {
			t.Errorf("docker run: %d %q", code, out)
		}
	}
}

// check looks at who runs and who owns.
func (u *user) check(t *testing.T) {
	t.Helper()
	var daemon, monitor bool
	for _, p := range u.processes() {
		daemon = daemon || strings.HasPrefix(p.command, "cradle daemon")
		monitor = monitor || strings.Contains(p.command, "qemu-system-")
		if want := fmt.Sprintf("%d %d %d %d", u.uid, u.uid, u.uid, u.uid); p.uids != want || p.groups != "" || strings.Trim(p.capabilities, "0") != "" {
			t.Errorf("not the user's: %+v", p)
		}
	}
	if !daemon || !monitor {
		t.Errorf("daemon and monitor are not among %+v", u.processes())
	}
	err := filepath.WalkDir(u.home, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if st, ok := info.Sys().(*syscall.Stat_t); !ok || st.Uid != u.uid {
			t.Errorf("%s is not the user's", path)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	for _, dir := range []string{"run/cradle", "data/cradle"} {
		if _, err := os.Stat(filepath.Join(u.home, dir)); err != nil {
			t.Error(err)
		}
	}
	if info, err := os.Stat(filepath.Dir(u.socket())); err != nil || info.Mode().Perm()&0o077 != 0 {
		t.Errorf("others may reach the socket: %v %v", info.Mode(), err)
	}
}

func (u *user) load(t *testing.T, image string) {
	t.Helper()
	f, err := os.Open(u.build.Image(image))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if out, code := u.do(t, f, "cradle", "load", "-q"); code != 0 {
		t.Fatalf("load: %d %s", code, out)
	}
}

// terminal types into a shell that has a terminal, and returns what that shows.
func (u *user) terminal(t *testing.T, input string, code int) string {
	t.Helper()
	cmd := u.command(t, "cradle", "run", "--rm", "-it", "busybox", "sh")
	f, err := pty.Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString(input); err != nil {
		t.Fatal(err)
	}
	var shown strings.Builder
	b := make([]byte, 4096)
	for {
		n, err := f.Read(b)
		shown.Write(b[:n])
		if err != nil {
			break
		}
	}
	_ = cmd.Wait()
	if got := cmd.ProcessState.ExitCode(); got != code {
		t.Errorf("run -it: exit code %d, want %d: %q", got, code, shown.String())
	}
	return shown.String()
}

// reset ends it all, and nothing is left running or lying about.
func (u *user) reset(t *testing.T) {
	t.Helper()
	u.ok(t, "system", "reset", "--force")
	var left []process
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if left = u.processes(); len(left) == 0 {
			break
		}
	}
	if len(left) > 0 {
		t.Errorf("left running: %+v", left)
	}
	for _, dir := range []string{"run", "data"} {
		if entries, err := os.ReadDir(filepath.Join(u.home, dir)); err != nil || len(entries) > 0 {
			t.Errorf("left in %s: %v %v", dir, entries, err)
		}
	}
}
