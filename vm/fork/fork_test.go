package fork

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// seizeSleep makes a parent of a process that waits.
func seizeSleep(t *testing.T) (*Parent, int) {
	t.Helper()
	return seizeCommand(t, "sleep", "1000")
}

func seizeCommand(t *testing.T, name string, args ...string) (*Parent, int) {
	t.Helper()
	cmd := exec.Command(name, args...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	pidfd := openPidfd(t, cmd.Process.Pid)
	for {
		p, err := Seize(cmd.Process.Pid, pidfd)
		switch {
		case err == nil:
			return p, cmd.Process.Pid
		case errors.Is(err, ErrBusy): // it has not come to wait yet
			time.Sleep(time.Millisecond)
		case errors.Is(err, ErrUnsupported) || errors.Is(err, unix.EPERM):
			t.Skip(err)
		default:
			t.Fatal(err)
		}
	}
}

func openPidfd(t *testing.T, pid int) *os.File {
	t.Helper()
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "pidfd")
	t.Cleanup(func() { f.Close() })
	return f
}

// A process that has the number of one that has ended is not seized for it.
func TestSeizeAnother(t *testing.T) {
	over := exec.Command("sleep", "1000")
	if err := over.Start(); err != nil {
		t.Fatal(err)
	}
	pidfd := openPidfd(t, over.Process.Pid)
	over.Process.Kill()
	over.Wait()
	another := exec.Command("sleep", "1000")
	if err := another.Start(); err != nil {
		t.Fatal(err)
	}
	defer another.Wait()
	defer another.Process.Kill()
	if p, err := Seize(another.Process.Pid, pidfd); !errors.Is(err, ErrGone) {
		t.Errorf("%v, want ErrGone", err)
		if err == nil {
			p.Close()
		}
	}
	if tracer, err := exec.Command("grep", "TracerPid:\t0", fmt.Sprintf("/proc/%d/status", another.Process.Pid)).Output(); err != nil {
		t.Errorf("it is still traced: %s %v", tracer, err)
	}
}

// A parent that is killed at any moment of a copy's making leaves nothing behind.
func TestParentKilledAnytime(t *testing.T) {
	for i := range 150 {
		p, parent := seizeSleep(t)
		go func() {
			for began := time.Now(); time.Since(began) < time.Duration(i)*2*time.Microsecond; {
			}
			unix.Kill(parent, unix.SIGKILL)
		}()
		pid, pidfd, err := p.Fork(Options{})
		if err == nil {
			endCopy(t, pid, pidfd)
		}
		p.Close()
		if left := children(t); len(left) > 1 || len(left) == 1 && left[0] != parent {
			t.Fatalf("try %d: left are %v of %d, after %v", i, left, parent, err)
		}
		unix.Wait4(parent, nil, 0, nil)
	}
}

// A copy that is killed at any moment of its threads' making leaves nothing behind, and keeps nobody waiting.
func TestCopyKilledAnytime(t *testing.T) {
	const qemu = "qemu-system-x86_64" // it has a second thread from the beginning
	if _, err := exec.LookPath(qemu); err != nil {
		t.Skip(err)
	}
	p, parent := seizeCommand(t, qemu, "-M", "none", "-nodefaults", "-display", "none", "-sandbox", "on")
	defer p.Close()
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", parent))
	if err != nil || len(tasks) < 2 {
		t.Skip("QEMU has one thread", err)
	}
	made := 0
	for i := range 300 {
		pid, pidfd, err := p.Fork(Options{Filter: func(pid int) []unix.SockFilter {
			go func() {
				for began := time.Now(); time.Since(began) < time.Duration(i*i/20)*time.Microsecond; {
				}
				unix.Kill(pid, unix.SIGKILL)
			}()
			return allow()
		}})
		if err == nil {
			made++
			endCopy(t, pid, pidfd)
		}
		if left := children(t); !slices.Equal(left, []int{parent}) {
			t.Fatalf("try %d: left are %v of %d, after %v", i, left, parent, err)
		}
	}
	if made == 0 {
		t.Error("none was made: what it is killed in is not what it is made by")
	}
}

// children are this process's.
func children(t *testing.T) (all []int) {
	t.Helper()
	paths, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		b, _ := os.ReadFile(path) // the thread may have ended
		for _, word := range strings.Fields(string(b)) {
			pid, err := strconv.Atoi(word)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, pid)
		}
	}
	return all
}

// allow is a filter that allows all.
func allow() []unix.SockFilter {
	return []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW}}
}

// there tells whether a process is there, a zombie included.
func there(pid int) bool { return unix.Kill(pid, 0) != unix.ESRCH }

// endCopy ends a copy as its maker does.
func endCopy(t *testing.T, pid int, pidfd *os.File) {
	t.Helper()
	defer pidfd.Close()
	if err := unix.PidfdSendSignal(int(pidfd.Fd()), unix.SIGKILL, nil, 0); err != nil {
		t.Error(err)
	}
	if got, err := unix.Wait4(pid, nil, 0, nil); got != pid {
		t.Error(got, err)
	}
}

// A copy that is killed while it is made is an error, and nothing is left of it. The next one is made as ever.
func TestCopyKilledMidway(t *testing.T) {
	p, _ := seizeSleep(t)
	defer p.Close()
	var killed int
	_, _, err := p.Fork(Options{Filter: func(pid int) []unix.SockFilter {
		killed = pid
		unix.Kill(pid, unix.SIGKILL)
		return allow()
	}})
	if !errors.Is(err, ErrGone) {
		t.Errorf("a copy that was killed: %v, want ErrGone", err)
	}
	if there(killed) {
		t.Errorf("process %d is left", killed)
	}
	pid, pidfd, err := p.Fork(Options{})
	if err != nil {
		t.Fatal(err)
	}
	endCopy(t, pid, pidfd)
}

// A parent that is killed while it is copied makes no more; the copy is whole, or there is none.
func TestParentKilledMidway(t *testing.T) {
	p, parent := seizeSleep(t)
	defer p.Close()
	var made int
	pid, pidfd, err := p.Fork(Options{Filter: func(pid int) []unix.SockFilter {
		made = pid
		unix.Kill(parent, unix.SIGKILL)
		return allow()
	}})
	if err != nil && there(made) {
		t.Errorf("process %d is left of %v", made, err)
	}
	if err == nil {
		endCopy(t, pid, pidfd)
	}
	if _, _, err := p.Fork(Options{}); !errors.Is(err, ErrGone) {
		t.Errorf("a copy of a parent that was killed: %v, want ErrGone", err)
	}
}

// dyingVariable has the test's program die while it makes a copy.
const dyingVariable = "CRADLE_FORK_DYING"

// With who makes a copy, and is killed meanwhile, end the parent and the copy.
func TestMakerKilledMidway(t *testing.T) {
	if os.Getenv(dyingVariable) != "" {
		p, parent := seizeSleep(t)
		_, _, err := p.Fork(Options{Filter: func(pid int) []unix.SockFilter {
			fmt.Printf("%d %d\n", parent, pid)
			unix.Kill(os.Getpid(), unix.SIGKILL)
			select {}
		}})
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestMakerKilledMidway$")
	cmd.Env = append(os.Environ(), dyingVariable+"=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var parent, made int
	line, _ := bufio.NewReader(out).ReadString('\n')
	_, scanned := fmt.Sscanf(line, "%d %d", &parent, &made)
	cmd.Wait()
	if scanned != nil {
		t.Skipf("processes cannot be copied here: %q", line)
	}
	for _, pid := range []int{parent, made} {
		for end := time.Now().Add(20 * time.Second); runs(pid); time.Sleep(10 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("process %d is left", pid)
			}
		}
	}
}

// runs tells whether a process is there and no zombie: another than we may have to wait for it.
func runs(pid int) bool {
	var state byte
	b, err := os.ReadFile(filepath.Join("/proc", fmt.Sprint(pid), "stat"))
	if err != nil {
		return false
	}
	_, err = fmt.Sscanf(string(b), fmt.Sprintf("%d (sleep) %%c", pid), &state)
	return err == nil && state != 'Z' && state != 'X'
}
