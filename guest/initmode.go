package guest

import (
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"
)

// InitMode as the first argument makes cradle-init a container's first process (docker's --init): what follows is a
// program's path and its arguments.
const InitMode = "container-init"

// initProgram returns a descriptor of this very program for execveat, as a sealed copy in memory: a container that can
// open its first process's /proc/1/exe must not be able to change the agent.
func (a *Agent) initProgram() (int, error) {
	a.initOnce.Do(func() { a.initFD, a.initErr = sealedSelf() })
	return a.initFD, a.initErr
}

func sealedSelf() (int, error) {
	self, err := os.Open("/proc/self/exe")
	if err != nil {
		return -1, err
	}
	defer self.Close()
	fd, err := unix.MemfdCreate("cradle-init", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return -1, fmt.Errorf("memfd: %w", err)
	}
	copied := os.NewFile(uintptr(dup(fd)), "cradle-init")
	_, err = io.Copy(copied, self)
	copied.Close()
	if err == nil {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SEAL|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_WRITE)
	}
	if err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("copy the init program: %w", err)
	}
	return fd, nil
}

// ContainerInit runs a program as its child, hands on the signals it gets, takes away every zombie of the container,
// and returns the child's exit code when that has ended.
func ContainerInit(path string, argv []string) int {
	// For ps: the kernel names the process by the descriptor that it was executed from.
	_ = os.WriteFile("/proc/self/comm", []byte("cradle-init"), 0)
	signals := make(chan os.Signal, 64)
	signal.Notify(signals)
	// In a process group of its own, and in the foreground of the terminal if there is one: what is typed there
	// then reaches the child, and not twice.
	attr := &syscall.ProcAttr{Env: os.Environ(), Files: []uintptr{0, 1, 2}, Sys: &syscall.SysProcAttr{Setpgid: true}}
	if _, err := unix.IoctlGetTermios(0, unix.TCGETS); err == nil {
		attr.Sys = &syscall.SysProcAttr{Foreground: true, Ctty: 0}
	}
	child, err := syscall.ForkExec(path, argv, attr)
	if err != nil {
		fmt.Fprintf(os.Stderr, "exec %s: %v\n", path, err)
		if err == syscall.ENOENT {
			return 127
		}
		return 126
	}
	for {
		for {
			var ws unix.WaitStatus
			pid, err := unix.Wait4(-1, &ws, unix.WNOHANG, nil)
			if err == unix.EINTR {
				continue
			}
			if pid <= 0 {
				break
			}
			if pid == child && ws.Signaled() {
				return 128 + int(ws.Signal())
			}
			if pid == child && ws.Exited() {
				return ws.ExitStatus()
			}
		}
		switch s := (<-signals).(syscall.Signal); s {
		case unix.SIGCHLD, unix.SIGURG, unix.SIGTTOU, unix.SIGTTIN: // SIGURG is the Go runtime's own
		default:
			syscall.Kill(child, s)
		}
	}
}

func dup(fd int) int {
	n, _ := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
	return n
}
