package crash

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// commandLimit is for one command on a slow machine that emulates its virtual machines, its daemon being killed
// under it.
const commandLimit = 4 * time.Minute

// house is an installation of its own, whose daemon the command line starts on demand.
type house struct {
	t   *testing.T
	dir string
	bin string
	env []string
	gen atomic.Int64 // odd while a daemon is being killed
}

func newHouse(t *testing.T) *house {
	t.Helper()
	top, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	or := func(name, fallback string) string {
		if v := os.Getenv(name); v != "" {
			return v
		}
		return filepath.Join(top, fallback)
	}
	bin, guest, images := or("CRADLE_TEST_BIN", "bin"), or("CRADLE_GUEST", "out/guest"), or("CRADLE_TEST_IMAGES", "out/images")
	image := filepath.Join(images, "busybox.tar")
	_, missing := exec.LookPath("qemu-system-x86_64")
	for _, path := range []string{filepath.Join(bin, "cradle"), filepath.Join(guest, "manifest"), image} {
		if _, err := os.Stat(path); err != nil {
			missing = fmt.Errorf("%w (make build guest images)", err)
		}
	}
	if missing != nil {
		if os.Getenv("CRADLE_TEST_BIN") != "" { // with everything promised (make test), what is missing is an error
			t.Fatal(missing)
		}
		t.Skip(missing)
	}
	dir, err := os.MkdirTemp("", "cradle-crash-")
	if err != nil {
		t.Fatal(err)
	}
	h := &house{t: t, dir: dir, bin: filepath.Join(bin, "cradle")}
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "CRADLE_") && !strings.HasPrefix(kv, "DOCKER_") {
			h.env = append(h.env, kv)
		}
	}
	h.env = append(h.env, "CRADLE_ROOT="+h.path("root"), "CRADLE_RUN="+h.path("run"), "CRADLE_GUEST="+guest, "HOME="+dir,
		"CRADLE_POOL=off") // what is counted here is the containers' own
	t.Cleanup(h.close)
	if r := h.do("load", "-q", "-i", image); r.code != 0 {
		t.Fatalf("load: %+v", r)
	}
	return h
}

func (h *house) path(elem ...string) string {
	return filepath.Join(append([]string{h.dir}, elem...)...)
}

type result struct {
	code        int
	out, stderr string
	killed      bool // a daemon was killed while the command ran
}

// do runs a command to its end.
func (h *house) do(args ...string) result {
	ctx, cancel := context.WithTimeout(context.Background(), commandLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, h.bin, args...)
	cmd.Env, cmd.WaitDelay = h.env, 5*time.Second
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	before := h.gen.Load()
	err := cmd.Run()
	r := result{out: strings.TrimSpace(out.String()), stderr: strings.TrimSpace(stderr.String()), code: cmd.ProcessState.ExitCode()}
	r.killed = before%2 == 1 || h.gen.Load() != before
	if err != nil && !errors.As(err, new(*exec.ExitError)) {
		r.stderr += " " + err.Error()
	}
	if ctx.Err() != nil {
		r.stderr += fmt.Sprintf(" (ended after %v)", commandLimit)
	}
	return r
}

// must runs a command until no daemon is killed under it; then it has to succeed. accept, when not empty, is an
// error's text that is a success as well: an earlier try may have done the work.
func (h *house) must(accept string, args ...string) (string, error) {
	for {
		r := h.do(args...)
		switch {
		case r.code == 0:
			return r.out, nil
		case accept != "" && strings.Contains(r.stderr, accept):
			return r.out, nil
		case !r.killed:
			return "", fmt.Errorf("%s: %+v", strings.Join(args, " "), r)
		}
	}
}

// killDaemon kills the daemon there is; false when there is none.
func (h *house) killDaemon() bool {
	b, err := os.ReadFile(h.path("root", "lock"))
	if err != nil {
		return false
	}
	pid, err := strconv.Atoi(strings.Split(string(b), "\n")[0])
	if err != nil || pid <= 1 {
		return false
	}
	cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil || !bytes.Contains(cmdline, []byte("daemon")) {
		return false
	}
	h.gen.Add(1)
	defer h.gen.Add(1)
	if syscall.Kill(pid, syscall.SIGKILL) != nil {
		return false
	}
	for { // until it has let go of its files
		if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)); err != nil || bytes.Contains(b, []byte(") Z ")) {
			return true
		}
		time.Sleep(time.Millisecond)
	}
}

// leftovers is what of any container is still there.
func (h *house) leftovers() []string {
	var left []string
	for _, pattern := range []string{"root/containers/*", "run/s/*", "root/scratch/templates/making-*", "root/images/tmp/*"} {
		found, _ := filepath.Glob(h.path(pattern))
		left = append(left, found...)
	}
	return append(left, h.processes("qemu")...)
}

// processes are those that belong to the house: their open files, command line or environment lead there.
func (h *house) processes(name string) []string {
	var left []string
	procs, _ := filepath.Glob("/proc/[0-9]*")
	for _, p := range procs {
		if p == fmt.Sprintf("/proc/%d", os.Getpid()) {
			continue
		}
		cmdline, _ := os.ReadFile(p + "/cmdline")
		if !bytes.Contains(cmdline, []byte(name)) {
			continue
		}
		ours := bytes.Contains(cmdline, []byte(h.dir))
		fds, _ := filepath.Glob(p + "/fd/*")
		for _, fd := range fds {
			if to, _ := os.Readlink(fd); strings.HasPrefix(to, h.dir) {
				ours = true
			}
		}
		if ours {
			left = append(left, p+": "+string(bytes.ReplaceAll(cmdline, []byte{0}, []byte{' '})))
		}
	}
	return left
}

// close empties the house as a user would, and looks for what is left of it.
func (h *house) close() {
	if h.t.Failed() {
		logs, _ := filepath.Glob(h.path("run", "*.log"))
		for _, l := range logs {
			b, _ := os.ReadFile(l)
			lines := strings.SplitAfter(string(b), "\n")
			h.t.Logf("--- %s\n%s", l, strings.Join(lines[max(0, len(lines)-60):], ""))
		}
	}
	if r := h.do("system", "reset", "--force"); r.code != 0 {
		h.t.Errorf("reset: %+v", r)
	}
	for _, dir := range []string{"root", "run"} {
		if _, err := os.Lstat(h.path(dir)); !errors.Is(err, fs.ErrNotExist) {
			h.t.Errorf("%s is left after the reset", dir)
		}
	}
	if left := h.processes(""); len(left) > 0 {
		h.t.Errorf("processes are left:\n%s", strings.Join(left, "\n"))
	}
	if err := os.RemoveAll(h.dir); err != nil {
		h.t.Error(err)
	}
}
