package house

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// House is one installation. Its daemon is started by StartDaemon, or on demand by the first command.
type House struct {
	Build Build
	Dir   string   // all of it lies below
	Env   []string // of its commands: what leads to other daemons is taken out

	daemon *exec.Cmd
}

// New makes an empty house below a directory with this prefix.
func New(b Build, prefix string) (*House, error) { return NewIn("", b, prefix) }

// NewIn is New below another directory than the one for temporary files.
func NewIn(parent string, b Build, prefix string) (*House, error) {
	dir, err := os.MkdirTemp(parent, prefix)
	if err != nil {
		return nil, err
	}
	h := &House{Build: b, Dir: dir}
	h.Env = append(Environ(), "CRADLE_ROOT="+h.Root(), "CRADLE_RUN="+h.Run(), "CRADLE_GUEST="+b.Guest,
		"DOCKER_HOST=unix://"+h.Socket(), "DOCKER_CONFIG="+filepath.Join(dir, "config"), "HOME="+dir)
	return h, nil
}

// Environ is the caller's environment without what leads to daemons.
func Environ() []string {
	var env []string
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "CRADLE_") && !strings.HasPrefix(kv, "DOCKER_") {
			env = append(env, kv)
		}
	}
	return env
}

// Root is the directory of what lasts.
func (h *House) Root() string { return filepath.Join(h.Dir, "root") }

// Run is the directory of sockets and running VMs.
func (h *House) Run() string { return filepath.Join(h.Dir, "run") }

// Socket is the path of the daemon's socket.
func (h *House) Socket() string { return filepath.Join(h.Run(), "cradle.sock") }

// Command prepares a program, "cradle" being the build's, in the house. It is killed when it takes longer than limit.
func (h *House) Command(limit time.Duration, program string, args ...string) *exec.Cmd {
	if program == "cradle" {
		program = h.Build.Cradle()
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Cancel = func() error { defer cancel(); return cmd.Process.Kill() }
	cmd.Env, cmd.WaitDelay = h.Env, 5*time.Second
	return cmd
}

// Load loads one of the build's images.
func (h *House) Load(limit time.Duration, image string) error {
	out, err := h.Command(limit, "cradle", "load", "-q", "-i", h.Build.Image(image)).CombinedOutput()
	if err != nil {
		return fmt.Errorf("load %s: %w: %s", image, err, out)
	}
	return nil
}

// Close empties the house as a user would, and returns what is left of it as an error.
func (h *House) Close(limit time.Duration) error {
	var errs []error
	if out, err := h.Command(limit, "cradle", "system", "reset", "--force").CombinedOutput(); err != nil {
		errs = append(errs, fmt.Errorf("system reset: %w: %s", err, out))
	}
	if h.daemon != nil { // the reset has ended it
		if err := h.daemon.Wait(); err != nil {
			errs = append(errs, fmt.Errorf("the daemon ended with %w", err))
		}
		h.daemon = nil
	}
	errs = append(errs, h.Leftovers())
	return errors.Join(append(errs, os.RemoveAll(h.Dir))...)
}

// Leftovers is an error that lists the directories, processes, mounts, loop and network devices and firewalls of the house, nil
// when there are none.
func (h *House) Leftovers() error {
	var left []string
	for _, dir := range []string{h.Root(), h.Run()} {
		if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
			left = append(left, dir)
		}
	}
	for _, p := range Processes(h.Dir) {
		left = append(left, p.String())
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || strings.Contains(string(mounts), h.Dir) {
		left = append(left, "a mount below "+h.Dir)
	}
	loops, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, l := range loops {
		if b, _ := os.ReadFile(l); strings.Contains(string(b), h.Dir) {
			left = append(left, l)
		}
	}
	aliases, _ := filepath.Glob("/sys/class/net/*/ifalias") // where the networks say whose an interface is
	for _, a := range aliases {
		if b, _ := os.ReadFile(a); strings.Contains(string(b), h.Dir) {
			left = append(left, a)
		}
	}
	left = append(left, h.networks()...)
	if len(left) > 0 {
		return fmt.Errorf("left behind:\n%s", strings.Join(left, "\n"))
	}
	return nil
}

// DumpLog writes the last lines of the daemon's logs and of the guests' consoles.
func (h *House) DumpLog(w io.Writer, lines int) {
	for _, pattern := range []string{filepath.Join(h.Dir, "log"), filepath.Join(h.Run(), "*.log"), filepath.Join(h.Run(), "s", "*", "console*")} {
		found, _ := filepath.Glob(pattern)
		for _, path := range found {
			b, err := os.ReadFile(path)
			if err != nil {
				continue
			}
			all := strings.SplitAfter(string(b), "\n")
			fmt.Fprintf(w, "--- %s\n%s\n", path, strings.Join(all[max(0, len(all)-lines):], ""))
		}
	}
}
