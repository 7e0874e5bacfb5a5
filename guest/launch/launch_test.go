package launch

import (
	"errors"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// start runs s with its output in a pipe and returns what it said and how it ended.
func start(t *testing.T, s *Spec) (string, unix.WaitStatus) {
	t.Helper()
	return startBy(t, Start, s)
}

// startBy is start by means of something that does as Start.
func startBy(t *testing.T, begin func(*Spec) (pid, pidfd int, err error), s *Spec) (string, unix.WaitStatus) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	s.Stdio = [3]int{int(null.Fd()), int(w.Fd()), int(w.Fd())}
	proc, err := unix.Open("/proc", unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(proc)
	s.Proc = proc
	pid, pidfd, err := begin(s)
	w.Close()
	if err != nil {
		r.Close()
		t.Fatalf("Start: %v", err)
	}
	defer unix.Close(pidfd)
	var b strings.Builder
	buf := make([]byte, 4096)
	for {
		n, err := r.Read(buf)
		b.Write(buf[:n])
		if err != nil {
			break
		}
	}
	r.Close()
	var ws unix.WaitStatus
	if _, err := unix.Wait4(pid, &ws, 0, nil); err != nil {
		t.Fatal(err)
	}
	return b.String(), ws
}

func sh(script string) *Spec {
	return &Spec{Path: "/bin/sh", Args: []string{"sh", "-c", script}, Env: []string{"PATH=/usr/bin:/bin"}}
}

func asRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
}

func TestExitCodes(t *testing.T) {
	asRoot(t)
	for script, want := range map[string]int{"exit 0": 0, "exit 7": 7} {
		if _, ws := start(t, sh(script)); !ws.Exited() || ws.ExitStatus() != want {
			t.Errorf("%s: %v", script, ws)
		}
	}
	if _, ws := start(t, sh("kill -TERM $$")); !ws.Signaled() || ws.Signal() != unix.SIGTERM {
		t.Errorf("kill: %v", ws)
	}
}

func TestFailedStepIsNamed(t *testing.T) {
	asRoot(t)
	cases := []struct {
		change func(*Spec)
		step   string
		errno  unix.Errno
	}{
		{func(s *Spec) { s.Path = "/nonexistent" }, "exec", unix.ENOENT},
		{func(s *Spec) { s.Path = "/etc/passwd" }, "exec", unix.EACCES},
		{func(s *Spec) { s.Dir = "/nonexistent" }, "chdir to /nonexistent", unix.ENOENT},
		{func(s *Spec) { s.Mounts = []Mount{{Source: "x", Target: "/nonexistent", Type: "tmpfs"}} }, "mount /nonexistent", unix.ENOENT},
	}
	for _, c := range cases {
		s := sh("true")
		null, _ := os.OpenFile("/dev/null", os.O_RDWR, 0)
		fd := int(null.Fd())
		s.Stdio = [3]int{fd, fd, fd}
		c.change(s)
		_, _, err := Start(s)
		var e *Error
		if !errors.As(err, &e) || e.Step != c.step || e.Errno != c.errno {
			t.Errorf("got %v, want %s: %v", err, c.step, c.errno)
		}
		null.Close()
	}
}

func TestUserCapsAndLimits(t *testing.T) {
	asRoot(t)
	s := sh("id -u; id -g; id -G; umask; ulimit -n; grep -E 'Cap|NoNewPrivs|SigBlk|SigIgn' /proc/self/status; cat /proc/self/oom_score_adj; pwd")
	umask, adj := uint32(0o027), 123
	s.UID, s.GID, s.Groups, s.Umask = 1234, 567, []uint32{8, 9}, &umask
	s.Rlimits = []Rlimit{{unix.RLIMIT_NOFILE, 77, 88}}
	s.OOMScoreAdj = &adj
	s.Dir = "/usr"
	s.NoNewPrivs = true
	chown, kill := CapSet(1), CapSet(1<<5)
	s.Caps = &Caps{Bounding: chown | kill, Permitted: chown, Effective: chown, Inheritable: chown, Ambient: chown}
	out, ws := start(t, s)
	if ws != 0 {
		t.Fatalf("%v: %s", ws, out)
	}
	want := []string{"1234", "567", "567 8 9", "0027", "77", "SigBlk:\t0000000000000000", ignoredSignals(t),
		"CapInh:\t0000000000000001", "CapPrm:\t0000000000000001", "CapEff:\t0000000000000001",
		"CapBnd:\t0000000000000021", "CapAmb:\t0000000000000001", "NoNewPrivs:\t1", "123", "/usr"}
	if got := strings.TrimSpace(out); got != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", got, strings.Join(want, "\n"))
	}
}

// ignoredSignals is the line of what this process ignores, as whoever started the test has left it: a child inherits
// that.
func ignoredSignals(t *testing.T) string {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if strings.HasPrefix(line, "SigIgn:") {
			return strings.TrimSpace(line)
		}
	}
	t.Fatal("no SigIgn in /proc/self/status")
	return ""
}

func TestNewPIDNamespace(t *testing.T) {
	asRoot(t)
	s := sh("echo $$; cat /proc/self/stat | cut -d' ' -f1")
	s.NewPID = true
	out, _ := start(t, s)
	if !strings.HasPrefix(out, "1\n") {
		t.Errorf("got %q", out)
	}
}

func TestSeccomp(t *testing.T) {
	asRoot(t)
	// Refuse uname(2) with EPERM, allow all else: ld [0]; jeq #63,0,1; ret ERRNO|1; ret ALLOW.
	filter := []byte{
		0x20, 0, 0, 0, 0, 0, 0, 0,
		0x15, 0, 0, 1, unix.SYS_UNAME, 0, 0, 0,
		0x06, 0, 0, 0, 1, 0, 5, 0,
		0x06, 0, 0, 0, 0, 0, 0xff, 0x7f,
	}
	for _, nnp := range []bool{false, true} {
		s := sh("uname; grep Seccomp: /proc/self/status")
		s.Seccomp, s.NoNewPrivs = filter, nnp
		s.Caps = &Caps{}
		out, _ := start(t, s)
		if !strings.Contains(out, "Seccomp:\t2") || strings.Contains(out, "Linux") {
			t.Errorf("no_new_privs %v: %q", nnp, out)
		}
	}
	s := sh("true")
	s.Seccomp = filter[:5]
	s.Stdio = [3]int{3, 3, 3}
	if _, _, err := Start(s); err == nil {
		t.Error("an odd filter was taken")
	}
}

// TestConcurrent starts many at once while the collector works: no start may disturb another or the runtime.
func TestConcurrent(t *testing.T) {
	asRoot(t)
	var wg sync.WaitGroup
	stop := make(chan struct{})
	go func() {
		for {
			select {
			case <-stop:
				return
			default:
				runtime.GC()
			}
		}
	}()
	for range 4 {
		wg.Go(func() {
			for range 20 {
				if out, ws := start(t, sh("echo hi")); out != "hi\n" || ws != 0 {
					t.Errorf("%q %v", out, ws)
				}
			}
		})
	}
	wg.Wait()
	close(stop)
}

func TestParseCaps(t *testing.T) {
	if set, err := ParseCaps([]string{"CAP_CHOWN", "CAP_CHECKPOINT_RESTORE"}); err != nil || set != 1|1<<40 {
		t.Errorf("%x %v", set, err)
	}
	if _, err := ParseCaps([]string{"CAP_NONE"}); err == nil {
		t.Error("CAP_NONE was taken")
	}
}

// TestConfine: what the thread has given up, its children need not.
func TestConfine(t *testing.T) {
	asRoot(t)
	set := CapSet(1 | 1<<5)
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocked: the thread ends with this goroutine
		if err := Confine(set); err != nil {
			t.Error(err)
			return
		}
		s := sh("grep -E 'Cap(Bnd|Eff|Amb)' /proc/self/status")
		s.Caps, s.Confined = &Caps{Bounding: set, Permitted: 1, Effective: 1}, true
		out, _ := start(t, s)
		if want := "CapEff:\t0000000000000021\nCapBnd:\t0000000000000021\nCapAmb:\t0000000000000000\n"; out != want {
			t.Errorf("got %q", out)
		}
	}()
	<-done
}
