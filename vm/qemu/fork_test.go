package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/cradlevm/cradle/vm"
	"github.com/cradlevm/cradle/vm/fork"
	"golang.org/x/sys/unix"
)

// filteredVariable has the test's program install copyFilter and then make the system call that it names.
const filteredVariable = "CRADLE_QEMU_FILTERED"

// What a copy must not do ends it; threads, and what any program does, it may.
func TestCopyFilter(t *testing.T) {
	calls := map[string]func(){
		"nothing":  func() {},
		"getpid":   func() { unix.RawSyscall(unix.SYS_GETPID, 0, 0, 0) },
		"fork":     func() { unix.RawSyscall(unix.SYS_FORK, 0, 0, 0) },
		"clone":    func() { unix.RawSyscall(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0) },
		"execve":   func() { unix.RawSyscall(unix.SYS_EXECVE, 0, 0, 0) },
		"setuid":   func() { unix.RawSyscall(unix.SYS_SETUID, 1, 0, 0) },
		"capset":   func() { unix.RawSyscall(unix.SYS_CAPSET, 0, 0, 0) },
		"unshare":  func() { unix.RawSyscall(unix.SYS_UNSHARE, unix.CLONE_NEWUSER, 0, 0) },
		"setns":    func() { unix.RawSyscall(unix.SYS_SETNS, 0, 0, 0) },
		"signalfd": func() { unix.RawSyscall6(unix.SYS_SIGNALFD4, 0, 0, 8, 0, 0, 0) },
		"socket": func() {
			if _, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0); err != unix.EPERM {
				os.Exit(3)
			}
		},
		"tkill":    func() { unix.RawSyscall(unix.SYS_TKILL, uintptr(unix.Getpid()), 0, 0) },
		"another":  func() { unix.RawSyscall(unix.SYS_KILL, uintptr(unix.Getppid()), 0, 0) },
		"group":    func() { unix.RawSyscall(unix.SYS_KILL, 0, 0, 0) },
		"itself":   func() { unix.RawSyscall(unix.SYS_TGKILL, uintptr(unix.Getpid()), uintptr(unix.Getpid()), 0) },
		"limit":    func() { unix.RawSyscall6(unix.SYS_PRLIMIT64, 0, unix.RLIMIT_CORE, 0, 0, 0, 0) },
		"limits":   func() { unix.RawSyscall6(unix.SYS_PRLIMIT64, uintptr(unix.Getppid()), unix.RLIMIT_CORE, 0, 0, 0, 0) },
		"owner":    func() { unix.FcntlInt(0, unix.F_SETOWN, os.Getppid()) },
		"signal":   func() { unix.FcntlInt(0, unix.F_SETSIG, int(unix.SIGKILL)) },
		"by ioctl": func() { unix.RawSyscall(unix.SYS_IOCTL, 0, 0x8901, 0) },
		"descriptor": func() {
			if _, err := unix.FcntlInt(0, unix.F_GETFD, 0); err != nil {
				os.Exit(3)
			}
		},
		"tty": func() { unix.IoctlGetTermios(0, unix.TCGETS) },
		"io_uring": func() {
			if _, _, errno := unix.RawSyscall(unix.SYS_IO_URING_SETUP, 0, 0, 0); errno != unix.ENOSYS {
				os.Exit(3)
			}
		},
		"ptrace": func() { unix.RawSyscall(unix.SYS_PTRACE, unix.PTRACE_TRACEME, 0, 0) },
		"x32":    func() { unix.RawSyscall(x32|unix.SYS_GETPID, 0, 0, 0) },
		"thread": func() { // Go makes one by clone, and waits for it
			done := make(chan bool)
			go func() { runtime.LockOSThread(); done <- true }()
			<-done
		},
		"clone3": func() {
			if _, _, errno := unix.RawSyscall(unix.SYS_CLONE3, 0, 0, 0); errno != unix.ENOSYS {
				os.Exit(3)
			}
		},
	}
	if name := os.Getenv(filteredVariable); name != "" {
		runtime.LockOSThread()
		filter := copyFilter(os.Getpid())
		prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			t.Fatal(err)
		}
		if _, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(&prog))); errno != 0 {
			t.Fatal(errno)
		}
		calls[name]()
		os.Exit(0)
	}
	for name := range calls {
		cmd := exec.Command(os.Args[0], "-test.run=^TestCopyFilter$")
		cmd.Env = append(os.Environ(), filteredVariable+"="+name)
		out, err := cmd.CombinedOutput()
		status := cmd.ProcessState.Sys().(syscall.WaitStatus)
		killed := status.Signaled() && status.Signal() == syscall.SIGSYS
		switch name {
		case "nothing", "getpid", "thread", "clone3", "itself", "limit", "descriptor", "tty", "io_uring", "socket":
			if err != nil {
				t.Errorf("%s: %v %s", name, err, out)
			}
		default:
			if !killed {
				t.Errorf("%s: %v, not killed for it: %s", name, err, out)
			}
		}
	}
}

// startForkable starts a VM that can be copied, as another user where that can be; it ends with the test.
func startForkable(ctx context.Context, t *testing.T) (vm.Config, vm.VM) {
	t.Helper()
	c := guestConfig(t)
	c.Forkable = true
	if os.Geteuid() == 0 {
		c.UID, c.GID = 1_900_123_400, 1_900_123_400
	}
	d := New(testOptions())
	if !d.Forks(ctx) {
		t.Skip("VMs cannot be copied here")
	}
	m, err := d.Start(ctx, c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Kill() })
	return c, m
}

// A copy runs as a user of its own, without a capability, in a session of its own, traced by nobody, filtered twice, and shares
// no socket with the VM that it is a copy of, or with its sibling.
func TestCopyIsConfined(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	c, started := startForkable(ctx, t)
	checkNoNetwork(t, started.PID())
	source, err := started.(vm.Freezer).Freeze(ctx) // it has not booted: what it does then is as good as any
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	seen := sockets(t, started.PID())
	for i := range uint32(2) {
		own := c
		own.Forkable, own.Dir = false, t.TempDir()
		own.ID = strings.Repeat(strconv.Itoa(int(i)), len(c.ID))
		if os.Geteuid() == 0 {
			own.UID, own.GID = 1_900_123_401+i, 1_900_123_401+i
		}
		copied, err := source.Restore(ctx, own)
		if err != nil {
			t.Fatal(err)
		}
		defer copied.Kill()
		pid := copied.PID()
		checkStatus(t, pid, own, 2)
		checkNoNetwork(t, pid)
		if line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); err != nil || !strings.Contains(string(line), "\x00-name\x00"+own.ID+"\x00") {
			t.Errorf("copy %d is listed as %q (%v)", i, line, err)
		}
		for s := range sockets(t, pid) {
			if seen[s] {
				t.Errorf("copy %d shares %s", i, s)
			}
			seen[s] = true
		}
	}
}

// A copy that is going to be copied as well cannot become another user, though its copies can: it has no capability in effect, nor may it
// put one into effect. Copies of it have none.
func TestCopiedParentIsConfined(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root's copies are other users")
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	c, machine := startForkable(ctx, t)
	for generation := uint32(1); generation <= 3; generation++ {
		source, err := machine.(vm.Freezer).Freeze(ctx)
		if err != nil {
			t.Fatal(err)
		}
		defer source.Close()
		own := c
		own.Dir, own.Forkable = t.TempDir(), generation < 3
		own.UID, own.GID = c.UID+generation, c.GID+generation
		if machine, err = source.Restore(ctx, own); errors.Is(err, errors.ErrUnsupported) {
			t.Skip(err)
		} else if err != nil {
			t.Fatal(err)
		}
		defer machine.Kill()
		checkStatus(t, machine.PID(), own, 1+int(generation))
	}
}

// A monitor that holds what it was not given, and can write to it, is not copied.
func TestFreezeWithMore(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	_, machine := startForkable(ctx, t)
	const words, more = 2, 60
	for {
		err := fork.Redirect(machine.PID(), words, []int{more})
		if err == nil {
			break
		}
		if !errors.Is(err, fork.ErrBusy) {
			t.Fatal(err)
		}
	}
	source, err := machine.(vm.Freezer).Freeze(ctx)
	if err == nil {
		source.Close()
	}
	if !errors.Is(err, errors.ErrUnsupported) || !strings.Contains(err.Error(), fmt.Sprintf("descriptor %d ", more)) {
		t.Errorf("froze it: %v", err)
	}
}

// checkStatus checks what the kernel says of a copy (proc(5)): all that concerns what it may do.
func checkStatus(t *testing.T, pid int, c vm.Config, filters int) {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	status := map[string]string{}
	for line := range strings.Lines(string(b)) {
		key, value, _ := strings.Cut(line, ":")
		status[key] = strings.Join(strings.Fields(value), " ")
	}
	none := fmt.Sprintf("%016x", 0)
	wants := map[string]string{"CapInh": none, "CapPrm": none, "CapEff": none, "CapAmb": none, "NoNewPrivs": "1", "Seccomp_filters": strconv.Itoa(filters),
		"TracerPid": "0", "NSsid": strconv.Itoa(pid)}
	if os.Geteuid() == 0 {
		uid, gid := fmt.Sprint(c.UID), fmt.Sprint(c.GID)
		wants["Uid"], wants["Gid"], wants["Groups"] = strings.Join([]string{uid, uid, uid, uid}, " "), strings.Join([]string{gid, gid, gid, gid}, " "), ""
		if c.Forkable {
			wants["CapPrm"] = fmt.Sprintf("%016x", 1<<unix.CAP_SETUID|1<<unix.CAP_SETGID)
		}
	}
	for key, want := range wants {
		if status[key] != want {
			t.Errorf("copy %d: %s is %q, want %q", pid, key, status[key], want)
		}
	}
}

// checkNoNetwork checks that a monitor of root's has no network but a loopback interface.
func checkNoNetwork(t *testing.T, pid int) {
	t.Helper()
	if os.Geteuid() != 0 {
		return
	}
	table, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/dev", pid))
	if err != nil {
		t.Fatal(err)
	}
	for i, line := range strings.Split(strings.TrimSpace(string(table)), "\n") {
		if name, _, _ := strings.Cut(strings.TrimSpace(line), ":"); i >= 2 && name != "lo" { // after two lines of heads
			t.Errorf("monitor %d is in a network with %s", pid, name)
		}
	}
}

// sockets are those of a process, and its eventfds' ids.
func sockets(t *testing.T, pid int) map[string]bool {
	t.Helper()
	all := map[string]bool{}
	paths, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil || len(paths) == 0 {
		t.Fatal(err, len(paths))
	}
	for _, path := range paths {
		if to, err := os.Readlink(path); err == nil && strings.HasPrefix(to, "socket:") {
			all[to] = true
		}
		info, _ := os.ReadFile(strings.Replace(path, "/fd/", "/fdinfo/", 1))
		for line := range strings.Lines(string(info)) {
			if strings.HasPrefix(line, "eventfd-id:") {
				all[line] = true
			}
		}
	}
	return all
}
