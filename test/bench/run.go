package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// daemon is a cradle daemon of the benchmark's own.
type daemon struct {
	e   env
	env []string
	cmd *exec.Cmd
}

func startDaemon(ctx context.Context, e env, name string, flags ...string) (*daemon, error) {
	root := filepath.Join(e.dir, name)
	d := &daemon{e: e, env: append(os.Environ(),
		"CRADLE_ROOT="+filepath.Join(root, "root"), "CRADLE_RUN="+filepath.Join(root, "run"), "CRADLE_GUEST="+e.guest)}
	d.cmd = exec.Command(filepath.Join(e.bin, "cradle"), append([]string{"daemon"}, flags...)...)
	d.cmd.Env = d.env
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	log, err := d.cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	if err := d.cmd.Start(); err != nil {
		return nil, err
	}
	ready := make(chan error, 1)
	go func() {
		var said strings.Builder
		lines := bufio.NewScanner(log)
		for lines.Scan() {
			said.WriteString(lines.Text() + "\n")
			if strings.Contains(lines.Text(), "daemon ready") {
				ready <- nil
				io.Copy(io.Discard, log)
				return
			}
		}
		ready <- fmt.Errorf("the daemon did not come up: %s", said.String())
	}()
	select {
	case err = <-ready:
	case <-time.After(30 * time.Second):
		err = errors.New("the daemon is not ready after 30 s")
	}
	if err != nil {
		d.stop()
		return nil, err
	}
	return d, nil
}

// stop removes every container and ends the daemon.
func (d *daemon) stop() {
	if err := d.cradle(context.Background(), "system", "reset", "--force"); err != nil {
		fmt.Fprintln(os.Stderr, "bench: reset:", err)
		d.cmd.Process.Kill()
	}
	d.cmd.Wait() // how it ended is in its log
}

// cradle runs our command line.
func (d *daemon) cradle(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, filepath.Join(d.e.bin, "cradle"), args...)
	cmd.Env = d.env
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("cradle %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return nil
}

// runs measures the whole way of a container from the command line: cold boot, no pool yet.
func runs(ctx context.Context, e env) ([]row, error) {
	d, err := startDaemon(ctx, e, "run", "--pool", "off")
	if err != nil {
		return nil, err
	}
	defer d.stop()
	if err := d.cradle(ctx, "load", "-q", "-i", filepath.Join(e.images, "busybox.tar")); err != nil {
		return nil, err
	}
	cold, err := timed(e.runs, func() error { return d.cradle(ctx, "run", "--rm", "busybox", "true") })
	if err != nil {
		return nil, err
	}
	if err := d.cradle(ctx, "run", "-d", "--name", "exec", "busybox", "sleep", "1000"); err != nil {
		return nil, err
	}
	execs, err := timed(e.runs, func() error { return d.cradle(ctx, "exec", "exec", "true") })
	if err != nil {
		return nil, err
	}
	return []row{
		{name: "run --rm busybox true, cold boot", ours: cold},
		{name: "exec of true", ours: execs},
	}, nil
}
