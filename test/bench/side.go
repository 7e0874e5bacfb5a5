package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// commandLimit bounds one command; on a busy machine that emulates its virtual machines many at once take their time.
const commandLimit = 10 * time.Minute

// side is a daemon under measurement and a command line for it. Ours and docker's take the same words.
type side struct {
	name    string
	program string
	env     []string
	pids    func() []int // of the daemon's processes
	stop    func() error // removes all that it has made, and the daemon
}

// command runs the command line with these words and returns its standard output.
func (s *side) command(ctx context.Context, words ...string) (string, error) {
	return output(ctx, s.env, s.program, words...)
}

// do is command for those who do not care what it printed.
func (s *side) do(ctx context.Context, words ...string) error {
	_, err := s.command(ctx, words...)
	return err
}

// enter makes the side a contestant that runs one command a turn. s may be nil, with err the reason.
func (s *side) enter(name string, err error, words ...string) contestant {
	c := contestant{name: name, ours: s != nil && s.name == "cradle", err: err}
	c.once = func(ctx context.Context) error { return s.do(ctx, words...) }
	return c
}

func output(ctx context.Context, env []string, program string, words ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, commandLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, words...)
	cmd.Env = env
	cmd.WaitDelay = 5 * time.Second
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", filepath.Base(program), strings.Join(words, " "), err, tail(stdout.String()+stderr.String(), 500))
	}
	return stdout.String(), nil
}

// ownEnv is this process's environment without what would lead a client or a daemon elsewhere, and with more.
func ownEnv(more ...string) []string {
	var env []string
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "CRADLE_") && !strings.HasPrefix(kv, "DOCKER_") && !strings.HasPrefix(kv, "CONTAINERD_") {
			env = append(env, kv)
		}
	}
	return append(env, more...)
}

// process is a daemon that runs until stop.
type process struct {
	cmd   *exec.Cmd
	log   string // path of its output
	ended chan struct{}
}

// launch starts a daemon in a session of its own, so that the terminal's SIGINT is for us alone and we can end it in
// order, and returns when it is ready. cmd dies with us, whatever ends us.
func launch(ctx context.Context, cmd *exec.Cmd, logPath string, ready func(log string) bool) (*process, error) {
	log, err := os.Create(logPath)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = new(syscall.SysProcAttr)
	}
	cmd.SysProcAttr.Setsid, cmd.SysProcAttr.Pdeathsig = true, syscall.SIGTERM
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &process{cmd: cmd, log: logPath, ended: make(chan struct{})}
	go func() { defer close(p.ended); _ = cmd.Wait() }() // how it ended is in its log
	limit := time.After(time.Minute)
	for !ready(p.said()) {
		select {
		case <-time.After(20 * time.Millisecond): // daemons tell when they are ready in ways of their own
			continue
		case <-p.ended:
			err = fmt.Errorf("%s ended: %s", cmd.Path, tail(p.said(), 500))
		case <-limit:
			err = fmt.Errorf("%s is not ready after a minute: %s", cmd.Path, tail(p.said(), 500))
		case <-ctx.Done():
			err = context.Cause(ctx)
		}
		return nil, errors.Join(err, p.stop())
	}
	return p, nil
}

func (p *process) said() string {
	b, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// stop ends the daemon and waits for its end.
func (p *process) stop() error {
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // fails when it has ended
	select {
	case <-p.ended:
		return nil
	case <-time.After(30 * time.Second):
		_ = p.cmd.Process.Kill()
		<-p.ended
		return fmt.Errorf("%s did not end on SIGTERM", p.cmd.Path)
	}
}

// apart makes the command that starts a daemon of containers with mounts of its own, which go with it and its
// containers. Shims have their sockets in shims, wherever their daemon's directories are: a file system there goes too.
func apart(prepare, program string, words ...string) (*exec.Cmd, error) {
	const shims = "/run/containerd"
	if err := os.MkdirAll(shims, 0o711); err != nil {
		return nil, err
	}
	cmd := exec.Command("sh", append([]string{"-ec", prepare + `mount -t tmpfs -o mode=711 tmpfs ` + shims + `; exec "$0" "$@"`, program}, words...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	return cmd, nil
}

// endBelow kills what names a file below dir on its command line: what a daemon that did not end well left running.
func endBelow(dir string) error {
	var err error
	for _, p := range processes() {
		if p.pid != os.Getpid() && strings.Contains(p.cmdline, dir+"/") {
			err = errors.Join(err, fmt.Errorf("left running: %d %s", p.pid, tail(p.cmdline, 200)))
			_ = syscall.Kill(p.pid, syscall.SIGKILL)
		}
	}
	return err
}

// unmountBelow undoes mounts that were left below dir.
func unmountBelow(dir string) error {
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	lines := strings.Split(string(table), "\n")
	slices.Reverse(lines) // those on top first
	for _, line := range lines {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], dir+"/") {
			err = errors.Join(err, syscall.Unmount(f[4], syscall.MNT_DETACH))
		}
	}
	return err
}

// running is a process of the machine.
type running struct {
	pid     int
	cmdline string // words with spaces between
}

func processes() []running {
	var out []running
	paths, _ := filepath.Glob("/proc/[0-9]*")
	for _, p := range paths {
		cmdline, err := os.ReadFile(p + "/cmdline")
		pid, notPID := strconv.Atoi(filepath.Base(p))
		if err == nil && notPID == nil {
			out = append(out, running{pid, strings.ReplaceAll(string(cmdline), "\x00", " ")})
		}
	}
	return out
}

// children are the processes that pid is the parent of and whose program's name begins so.
func children(pid int, program string) []int {
	var out []int
	for _, p := range processes() {
		if !strings.HasPrefix(filepath.Base(strings.Split(p.cmdline, " ")[0]), program) {
			continue
		}
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.pid))
		if err != nil {
			continue // gone
		}
		// pid (name) state ppid …; the name may contain anything.
		after := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
		if len(after) > 1 && after[1] == strconv.Itoa(pid) {
			out = append(out, p.pid)
		}
	}
	return out
}

// removeCgroups removes the empty cgroup of that name, and those in it, from every hierarchy.
func removeCgroups(name string) error {
	left := func() (n int) {
		for _, pattern := range []string{"/sys/fs/cgroup/", "/sys/fs/cgroup/*/"} {
			for _, below := range []string{"/*/*", "/*", ""} {
				dirs, _ := filepath.Glob(pattern + name + below)
				for _, dir := range dirs {
					if fi, err := os.Stat(dir); err == nil && fi.IsDir() && syscall.Rmdir(dir) != nil {
						n++
					}
				}
			}
		}
		return n
	}
	for range 100 {
		if left() == 0 {
			return nil
		}
		time.Sleep(50 * time.Millisecond) // the kernel tells nobody that a cgroup is empty at last
	}
	return fmt.Errorf("cgroup %s cannot be removed", name)
}
