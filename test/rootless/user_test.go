package rootless

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cradlevm/cradle/test/house"
)

// commandLimit is for one command on a slow machine that emulates its virtual machines.
const commandLimit = 2 * time.Minute

// user is somebody whom no account knows, with directories of their own below one that everybody may pass through.
type user struct {
	uid   uint32
	build house.Build
	dir   string
	home  string
	env   []string
}

// newUser makes a user, who has the program and the guest to read and nothing else of the machine's.
func newUser(t *testing.T) *user {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, to become somebody else")
	}
	b, err := house.Find([]string{"busybox"})
	if err != nil && house.Promised() {
		t.Fatal(err)
	} else if err != nil {
		t.Skip(err)
	}
	dir, err := os.MkdirTemp("", "cradle-rootless-")
	if err != nil {
		t.Fatal(err)
	}
	// Out of the reach of accounts and of what systemd hands out, and another one for each test process.
	u := &user{build: b, uid: 1_850_000_000 + uint32(os.Getpid()), dir: dir, home: filepath.Join(dir, "home")}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	copyFile(t, b.Cradle(), filepath.Join(dir, "cradle"), 0o755)
	entries, err := os.ReadDir(b.Guest)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "guest"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		copyFile(t, filepath.Join(b.Guest, e.Name()), filepath.Join(dir, "guest", e.Name()), 0o644)
	}
	for _, sub := range []string{"home", "home/run", "home/data"} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(filepath.Join(dir, sub), int(u.uid), int(u.uid)); err != nil {
			t.Fatal(err)
		}
	}
	// As a login has it: no sbin in the path.
	u.env = []string{"PATH=/usr/local/bin:/usr/bin:/bin", "HOME=" + u.home, "TERM=xterm", "CRADLE_GUEST=" + filepath.Join(dir, "guest"),
		"XDG_RUNTIME_DIR=" + filepath.Join(u.home, "run"), "XDG_DATA_HOME=" + filepath.Join(u.home, "data"),
		"DOCKER_HOST=unix://" + u.socket()}
	return u
}

func (u *user) socket() string { return filepath.Join(u.home, "run", "cradle", "cradle.sock") }

func copyFile(t *testing.T, from, to string, mode os.FileMode) {
	t.Helper()
	in, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_EXCL, mode)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(out, in); err != nil {
		t.Fatal(err)
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
}

// command is one of the user's: without root's groups, and without its capabilities, which go with its user id.
func (u *user) command(t *testing.T, program string, args ...string) *exec.Cmd {
	t.Helper()
	if program == "cradle" {
		program = filepath.Join(u.dir, "cradle")
	}
	ctx, cancel := context.WithTimeout(context.Background(), commandLimit)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env, cmd.Dir, cmd.WaitDelay = u.env, u.home, 5*time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: u.uid, Gid: u.uid}}
	return cmd
}

// ok runs a command that has to succeed, and returns its trimmed output.
func (u *user) ok(t *testing.T, args ...string) string {
	t.Helper()
	out, code := u.do(t, nil, "cradle", args...)
	if code != 0 {
		t.Fatalf("cradle %s: exit code %d\n%s", strings.Join(args, " "), code, out)
	}
	return strings.TrimSpace(out)
}

func (u *user) do(t *testing.T, input io.Reader, program string, args ...string) (string, int) {
	t.Helper()
	cmd := u.command(t, program, args...)
	var out bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = input, &out, &out
	if err := cmd.Run(); err != nil && !errors.As(err, new(*exec.ExitError)) {
		t.Fatalf("%s %s: %v\n%s", program, strings.Join(args, " "), err, &out)
	}
	return out.String(), cmd.ProcessState.ExitCode()
}

// process is one of the chain: the daemon, a virtual machine monitor, whatever else is the user's or has the user's
// directory in its command line or environment or for its own.
type process struct{ command, uids, groups, capabilities string }

func (u *user) processes() []process {
	var found []process
	for _, f := range house.ProcessesWhere(func(p house.Process, environ, cwd string) bool {
		of := p.Command + "\x00" + environ + "\x00" + cwd + "/"
		return strings.Contains(of, u.home+"/") || strings.Contains(p.Status, fmt.Sprintf("\nUid:\t%d\t", u.uid))
	}) {
		p := process{command: f.Command}
		for line := range strings.Lines(f.Status) {
			key, value, _ := strings.Cut(line, ":")
			value = strings.Join(strings.Fields(value), " ")
			switch key {
			case "Uid":
				p.uids = value
			case "Groups":
				p.groups = value
			case "CapEff":
				p.capabilities = value
			}
		}
		found = append(found, p)
	}
	return found
}
