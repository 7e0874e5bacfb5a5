package main

import (
	"context"
	"errors"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

// startCradle starts a daemon of ours in a directory of its own, with the busybox image in it.
func startCradle(ctx context.Context, e env, name string, flags ...string) (*side, error) {
	return startCradleIn(ctx, e, name, nil, flags...)
}

// startCradleIn is startCradle with more environment for the daemon.
func startCradleIn(ctx context.Context, e env, name string, environ []string, flags ...string) (*side, error) {
	dir := filepath.Join(e.dir, name)
	s := &side{name: "cradle", program: filepath.Join(e.bin, "cradle")}
	s.env = ownEnv("CRADLE_ROOT="+filepath.Join(dir, "root"), "CRADLE_RUN="+filepath.Join(dir, "run"), "CRADLE_GUEST="+e.guest,
		"DOCKER_CONFIG="+filepath.Join(e.dir, "config"))
	cmd := exec.Command(s.program, append([]string{"daemon"}, flags...)...)
	cmd.Env = append(s.env[:len(s.env):len(s.env)], environ...)
	p, err := launch(ctx, cmd, filepath.Join(e.dir, name+".log"), func(log string) bool { return strings.Contains(log, "daemon ready") })
	if err != nil {
		return nil, err
	}
	s.pids = func() []int { return []int{cmd.Process.Pid} }
	s.stop = func() error {
		// Not with ctx: what was interrupted is removed all the same.
		err := s.do(context.Background(), "system", "reset", "--force")
		machines := children(cmd.Process.Pid, "qemu-system")
		err = errors.Join(err, p.stop())
		for _, pid := range machines { // a reset that failed has left them; gone otherwise
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		return err
	}
	if err := s.do(ctx, "load", "-q", "-i", filepath.Join(e.images, "busybox.tar")); err != nil {
		return nil, errors.Join(err, s.stop())
	}
	return s, nil
}

// socket is where a daemon that startCradle started under this name listens.
func socket(e env, name string) string { return filepath.Join(e.dir, name, "run", "cradle.sock") }
