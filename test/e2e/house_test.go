package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// commandLimit is for one command on a slow machine that emulates its virtual machines.
const commandLimit = 3 * time.Minute

// shared is what all tests use: TestMain makes it.
type suite struct {
	bin, guest, images string
	missing            string // why virtual machines cannot be tested here
	house              *house
}

var shared suite //nolint:gochecknoglobals // the one place TestMain can leave it

func TestMain(m *testing.M) { os.Exit(mainCode(m)) }

func mainCode(m *testing.M) int {
	err := shared.find()
	if shared.missing != "" || err != nil {
		// With everything promised (make test), what is missing is an error; else a reason to skip.
		if err != nil || os.Getenv("CRADLE_TEST_BIN") != "" {
			fmt.Fprintln(os.Stderr, "e2e:", shared.missing, err)
			return 1
		}
		return m.Run()
	}
	h, err := newHouse()
	if err == nil {
		err = h.startDaemon()
	}
	for _, image := range []string{"busybox", "debian", "redis", "nginx"} {
		if err == nil {
			err = h.load(image)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		if h != nil {
			h.dumpLog(os.Stderr)
			_ = h.close()
		}
		return 1
	}
	shared.house = h
	code := m.Run()
	if err := h.close(); err != nil {
		fmt.Fprintln(os.Stderr, "e2e: at the end:", err)
		code = max(code, 1)
	}
	return code
}

// find looks for the programs, the guest and the images; programs are built where none are given.
func (s *suite) find() error {
	top, err := filepath.Abs("../..")
	if err != nil {
		return err
	}
	or := func(name, fallback string) string {
		if v := os.Getenv(name); v != "" {
			return v
		}
		return filepath.Join(top, fallback)
	}
	s.bin, s.guest, s.images = or("CRADLE_TEST_BIN", "bin"), or("CRADLE_GUEST", "out/guest"), or("CRADLE_TEST_IMAGES", "out/images")
	if os.Geteuid() != 0 {
		s.missing = "needs root"
	}
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		s.missing = err.Error()
	}
	for _, path := range []string{filepath.Join(s.bin, "cradle"), filepath.Join(s.guest, "manifest"), filepath.Join(s.images, "redis.tar")} {
		if _, err := os.Stat(path); err != nil {
			s.missing = err.Error() + " (make build guest images)"
		}
	}
	return nil
}

// house is an installation of its own: root and runtime directory, and maybe a daemon that this process started.
type house struct {
	dir    string
	env    []string
	daemon *exec.Cmd
}

func newHouse() (*house, error) {
	dir, err := os.MkdirTemp("", "cradle-e2e-")
	if err != nil {
		return nil, err
	}
	h := &house{dir: dir}
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "CRADLE_") && !strings.HasPrefix(kv, "DOCKER_") {
			h.env = append(h.env, kv)
		}
	}
	h.env = append(h.env,
		"CRADLE_ROOT="+h.root(), "CRADLE_RUN="+h.run(), "CRADLE_GUEST="+shared.guest,
		"DOCKER_HOST=unix://"+h.socket(), "DOCKER_CONFIG="+filepath.Join(dir, "config"), "HOME="+dir)
	return h, nil
}

func (h *house) root() string   { return filepath.Join(h.dir, "root") }
func (h *house) run() string    { return filepath.Join(h.dir, "run") }
func (h *house) socket() string { return filepath.Join(h.run(), "cradle.sock") }

// startDaemon starts a daemon and waits until it is ready.
func (h *house) startDaemon() error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	log, err := os.OpenFile(filepath.Join(h.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	h.daemon = exec.Command(filepath.Join(shared.bin, "cradle"), "daemon")
	h.daemon.Env = append(h.env[:len(h.env):len(h.env)], "CRADLE_READY_FD=3")
	h.daemon.ExtraFiles = []*os.File{w}
	h.daemon.Stdout, h.daemon.Stderr = log, log
	h.daemon.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = h.daemon.Start()
	_ = w.Close()
	if err != nil {
		return err
	}
	word := make([]byte, 16)
	if n, _ := r.Read(word); n == 0 {
		return errors.New("the daemon did not get ready")
	}
	return nil
}

func (h *house) load(image string) error {
	out, err := h.command("cradle", "load", "-q", "-i", filepath.Join(shared.images, image+".tar")).CombinedOutput()
	if err != nil {
		return fmt.Errorf("load %s: %w: %s", image, err, out)
	}
	return nil
}

// close empties the house as a user would, and looks for what is left of it.
func (h *house) close() error {
	var errs []error
	reset := h.command("cradle", "system", "reset", "--force")
	if out, err := reset.CombinedOutput(); err != nil {
		errs = append(errs, fmt.Errorf("system reset: %w: %s", err, out))
	}
	if h.daemon != nil {
		// The reset has ended it.
		if err := h.daemon.Wait(); err != nil {
			errs = append(errs, fmt.Errorf("the daemon ended with %w", err))
		}
		h.daemon = nil
	}
	errs = append(errs, h.leftovers())
	return errors.Join(append(errs, os.RemoveAll(h.dir))...)
}

// leftovers finds files, processes, mounts and loop devices of the house.
func (h *house) leftovers() error {
	var left []string
	for _, dir := range []string{h.root(), h.run()} {
		if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
			left = append(left, dir)
		}
	}
	procs, _ := filepath.Glob("/proc/[0-9]*")
	for _, p := range procs {
		cmdline, _ := os.ReadFile(p + "/cmdline")
		cwd, _ := os.Readlink(p + "/cwd")
		if p != fmt.Sprintf("/proc/%d", os.Getpid()) && (bytes.Contains(cmdline, []byte(h.dir+"/")) || strings.HasPrefix(cwd, h.dir+"/")) {
			left = append(left, p+": "+string(bytes.ReplaceAll(cmdline, []byte{0}, []byte{' '})))
		}
	}
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	if bytes.Contains(mounts, []byte(h.dir)) {
		left = append(left, "a mount below "+h.dir)
	}
	loops, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, l := range loops {
		if b, _ := os.ReadFile(l); bytes.Contains(b, []byte(h.dir)) {
			left = append(left, l)
		}
	}
	if len(left) > 0 {
		return fmt.Errorf("left behind:\n%s", strings.Join(left, "\n"))
	}
	return nil
}

// command prepares one of the command lines, "cradle" or "docker", in the house.
func (h *house) command(program string, args ...string) *exec.Cmd {
	path := program
	if program == "cradle" {
		path = filepath.Join(shared.bin, "cradle")
	}
	ctx, cancel := context.WithTimeout(context.Background(), commandLimit)
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Cancel = func() error { defer cancel(); return cmd.Process.Kill() }
	cmd.Env = h.env
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

func (h *house) dumpLog(w interface{ Write([]byte) (int, error) }) {
	logs, _ := filepath.Glob(filepath.Join(h.dir, "log"))
	more, _ := filepath.Glob(filepath.Join(h.run(), "*.log"))
	consoles, _ := filepath.Glob(filepath.Join(h.run(), "s", "*", "console*"))
	for _, path := range append(append(logs, more...), consoles...) {
		b, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		lines := strings.SplitAfter(string(b), "\n")
		fmt.Fprintf(w, "--- %s\n%s\n", path, strings.Join(lines[max(0, len(lines)-15):], ""))
	}
}
