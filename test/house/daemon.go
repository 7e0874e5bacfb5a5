package house

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// StartDaemon starts a daemon of this process's and returns when it is ready. Close waits for its end.
func (h *House) StartDaemon(args ...string) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	log, err := os.OpenFile(filepath.Join(h.Dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	h.daemon = exec.Command(h.Build.Cradle(), append([]string{"daemon"}, args...)...)
	h.daemon.Env = append(h.Env[:len(h.Env):len(h.Env)], "CRADLE_READY_FD=3")
	h.daemon.ExtraFiles = []*os.File{w}
	h.daemon.Stdout, h.daemon.Stderr = log, log
	h.daemon.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = h.daemon.Start()
	_ = w.Close()
	if err != nil {
		h.daemon = nil
		return err
	}
	word := make([]byte, 16)
	if n, _ := r.Read(word); n == 0 {
		return errors.New("the daemon did not get ready")
	}
	return nil
}

// DaemonPID is the process id of the daemon that was started on demand; 0 when there is none.
func (h *House) DaemonPID() int {
	b, err := os.ReadFile(filepath.Join(h.Root(), "lock"))
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(strings.Split(string(b), "\n")[0])
	if err != nil || pid <= 1 {
		return 0
	}
	// The number may be a dead daemon's, and another process's by now.
	cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil || !bytes.Contains(cmdline, []byte("daemon")) {
		return 0
	}
	return pid
}

// KillDaemon kills the daemon that was started on demand, as a crash would, and returns when it has let go of its files;
// false when there is none.
func (h *House) KillDaemon() bool {
	pid := h.DaemonPID()
	if pid == 0 || syscall.Kill(pid, syscall.SIGKILL) != nil {
		return false
	}
	for !ended(pid) {
		time.Sleep(time.Millisecond)
	}
	return true
}

// EndDaemon asks the daemon that was started on demand to end, as an administrator would, and returns when it has: what it had
// kept ready has gone then, too. An error when that takes longer than limit. Nothing happens when there is none.
func (h *House) EndDaemon(limit time.Duration) error {
	pid := h.DaemonPID()
	if pid == 0 || syscall.Kill(pid, syscall.SIGTERM) != nil {
		return nil
	}
	for begun := time.Now(); !ended(pid); time.Sleep(10 * time.Millisecond) {
		if time.Since(begun) > limit {
			return fmt.Errorf("the daemon, process %d, has not ended %v after SIGTERM", pid, limit)
		}
	}
	return nil
}

// ended tells whether a process has let go of its files; its parent may not have come to it yet.
func ended(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err != nil || bytes.Contains(b, []byte(") Z "))
}
