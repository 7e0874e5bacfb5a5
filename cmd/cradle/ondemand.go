package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	startLimit    = 30 * time.Second
	startTries    = 10
	idleOnDemand  = 60 * time.Second
	startLockName = "start.lock"
	daemonLogName = "daemon.log"
	maxDaemonLog  = 1 << 20

	// envReadyFD names the descriptor to which the daemon writes readyWord once its socket answers.
	envReadyFD = "CRADLE_READY_FD"
	readyWord  = "ready\n"
)

// startDaemon starts this program as a daemon that ends by itself once idle, and returns when its socket
// answers. Of several callers one starts it, the others find it.
func startDaemon(ctx context.Context, run string) error {
	if err := claimRun(run, os.Geteuid()); err != nil {
		return err
	}
	lock, err := waitLock(ctx, filepath.Join(run, startLockName))
	if err != nil {
		return fmt.Errorf("waiting for another cradle to start the daemon: %w", err)
	}
	defer lock.Close()
	if conn, err := net.Dial("unix", filepath.Join(run, socketName)); err == nil {
		return conn.Close()
	}
	return spawn(ctx, run, exec.Command("/proc/self/exe"))
}

// spawn runs cmd as the daemon, in a session of its own with its output in the log, and waits for its word.
func spawn(ctx context.Context, run string, cmd *exec.Cmd) error {
	log, from, err := openDaemonLog(filepath.Join(run, daemonLogName))
	if err != nil {
		return err
	}
	defer log.Close()
	ready, readyW, err := os.Pipe()
	if err != nil {
		return err
	}
	defer ready.Close()

	cmd.Args = []string{"cradle", "daemon", "--run", run, "--idle-timeout", idleOnDemand.String()}
	cmd.Env = append(os.Environ(), cmd.Env...)
	cmd.Env = append(cmd.Env, envReadyFD+"=3")
	cmd.ExtraFiles = []*os.File{readyW}
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := keepDescriptors(); err != nil {
		return err
	}
	err = cmd.Start()
	_ = readyW.Close()
	if err != nil {
		return fmt.Errorf("starting the cradle daemon: %w", err)
	}
	go func() { _ = cmd.Wait() }() // reaped, should it end before this command does

	stop := context.AfterFunc(ctx, func() { _ = ready.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	word, err := io.ReadAll(ready)
	switch {
	case string(word) == readyWord:
		return nil
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("the cradle daemon did not get ready: %w (its log is %s)", context.Cause(ctx), log.Name())
	}
	return fmt.Errorf("the cradle daemon did not start: %s (its log is %s)", lastWords(log.Name(), from), log.Name())
}

// keepDescriptors keeps what this process executes from inheriting descriptors that it was itself started with, a shell's locks and pipes for
// example: a daemon, and the monitors that it starts, would hold them for as long as they run.
func keepDescriptors() error {
	entries, err := os.ReadDir("/proc/self/fd")
	for _, e := range entries {
		if fd, err := strconv.Atoi(e.Name()); err == nil && fd > 2 {
			syscall.CloseOnExec(fd)
		}
	}
	return err
}

// openDaemonLog opens the log for appending and tells where the new part begins. A log that has grown makes way.
func openDaemonLog(path string) (*os.File, int64, error) {
	if info, err := os.Stat(path); err == nil && info.Size() > maxDaemonLog {
		if err := os.Rename(path, path+".1"); err != nil {
			return nil, 0, err
		}
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, 0, err
	}
	info, err := f.Stat()
	if err != nil {
		_ = f.Close()
		return nil, 0, err
	}
	return f, info.Size(), nil
}

// lastWords is why a daemon ended, out of what it wrote to the log after from: its last line, or the first of a
// crash.
func lastWords(path string, from int64) string {
	const limit = 64 << 10
	f, err := os.Open(path)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil {
		from = max(from, info.Size()-limit)
	}
	b, err := io.ReadAll(io.NewSectionReader(f, from, limit))
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(string(bytes.TrimSpace(b)), "\n")
	for _, line := range lines {
		if strings.HasPrefix(line, "panic: ") || strings.HasPrefix(line, "fatal error: ") {
			return line
		}
	}
	if last := lines[len(lines)-1]; last != "" {
		return last
	}
	return "it said nothing"
}
