package guest

import (
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"
)

// TestEnding: a process that runs is not ending; one that is a zombie, or that has been reaped, is.
func TestEnding(t *testing.T) {
	proc, err := unix.Open("/proc", unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(proc)
	cmd := exec.Command("cat")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pid := cmd.Process.Pid
	p := &process{pid: pid, pidfd: 0} // any descriptor: it has not been reaped
	if p.ending(proc) {
		t.Error("it runs, and is said to end")
	}
	in.Close()
	if err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil); err != nil {
		t.Fatal(err)
	}
	if !p.ending(proc) {
		t.Error("a zombie is said not to end")
	}
	cmd.Wait()
	if p.pidfd = -1; !p.ending(proc) {
		t.Error("what has been reaped is said not to end")
	}
}
