package launch

import (
	"errors"
	"runtime"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

func TestParked(t *testing.T) {
	asRoot(t)
	s := sh("echo $$; ls /proc/self/fd | wc -l; exit 3")
	s.NewPID = true
	k := Park(s)
	go k.Run()
	s.Dir = "/usr"
	if out, ws := startBy(t, k.Start, s); out != "1\n4\n" || ws.ExitStatus() != 3 { // ls has one open beside the three
		t.Errorf("%q %v", out, ws.ExitStatus())
	}
}

// A process that is told nothing ends when it is to, before it is there and after.
func TestParkedEnds(t *testing.T) {
	asRoot(t)
	for i := range 50 {
		k := Park(&Spec{NewPID: true})
		go k.Run()
		for i%2 == 1 && atomic.LoadInt32(k.fd) < 0 {
			runtime.Gosched()
		}
		k.End()
		k.End()
		if k.err != nil || k.pid == 0 || *k.fd != -1 {
			t.Errorf("process %d, descriptor %d: %v", k.pid, *k.fd, k.err)
		}
		unix.Wait4(k.pid, nil, 0, nil)
	}
}

func TestParkedCannotExec(t *testing.T) {
	asRoot(t)
	s := sh("true")
	k := Park(s)
	go k.Run()
	null, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(null)
	s.Path, s.Stdio = "/nowhere", [3]int{null, null, null}
	var e *Error
	if _, _, err := k.Start(s); !errors.As(err, &e) || e.Step != "exec" || e.Errno != unix.ENOENT {
		t.Errorf("%v", err)
	}
}
