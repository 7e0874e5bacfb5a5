package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

func TestDaemonStartsOnDemandAndEndsIdle(t *testing.T) {
	h := newHouse(t)
	if r := h.cradle(t, nil, "ps", "-q"); r.code != 0 || r.stdout != "" || r.stderr != "" {
		t.Fatalf("first command: %+v", r)
	}
	if r := h.cradle(t, nil, "info", "--format", "{{.ServerVersion}}"); r.stdout != "fake\n" {
		t.Fatalf("second command: %+v", r)
	}
	if n := h.daemons(t); n != 1 {
		t.Errorf("%d daemons were started, want 1", n)
	}
	h.endDaemon(t)
	if _, err := os.Lstat(filepath.Join(h.run(), socketName)); !os.IsNotExist(err) {
		t.Errorf("the idle daemon left its socket: %v", err)
	}
	if r := h.cradle(t, nil, "ps", "-q"); r.code != 0 {
		t.Fatalf("after the idle end: %+v", r)
	}
}

func TestRacingCommandsStartOneDaemon(t *testing.T) {
	h := newHouse(t)
	// Long enough that the slowest of them still finds the daemon of the first.
	env := []string{"CRADLE_TEST_IDLE=5s"}
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			if r := h.cradle(t, env, "ps", "-q"); r.code != 0 {
				t.Errorf("%+v", r)
			}
		})
	}
	all.Wait()
	if n := h.daemons(t); n != 1 {
		t.Errorf("%d daemons were started, want 1", n)
	}
}

// Commands that come while the daemon decides to end must never see it: at this idle time most of them do.
func TestCommandsAroundTheIdleEnd(t *testing.T) {
	h := newHouse(t)
	for i := range 15 {
		if r := h.cradle(t, []string{"CRADLE_TEST_IDLE=10ms"}, "ps", "-q"); r.code != 0 {
			t.Fatalf("command %d: %+v", i, r)
		}
	}
}

func TestDaemonThatDoesNotStart(t *testing.T) {
	for as, want := range map[string]string{
		asBroken:   brokenSentence,
		asCrashing: "panic: a bug",
	} {
		h := newHouse(t)
		r := h.cradle(t, []string{envAs + "=" + as}, "ps")
		if r.code != 1 || !strings.HasPrefix(r.stderr, "the cradle daemon did not start: "+want) {
			t.Errorf("%s: %+v", as, r)
		}
		r = h.cradle(t, []string{envAs + "=" + as}, "run", "busybox")
		if r.code != 125 || !strings.HasPrefix(r.stderr, "cradle: the cradle daemon did not start: "+want) {
			t.Errorf("%s: run: %+v", as, r)
		}
	}
}

func TestStaleSocketIsReplaced(t *testing.T) {
	h := newHouse(t)
	if err := claimRun(h.run(), os.Geteuid()); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(h.run(), socketName)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	_ = l.Close()
	if r := h.cradle(t, nil, "ps", "-q"); r.code != 0 {
		t.Fatalf("%+v", r)
	}
}

func TestKilledDaemonIsReplaced(t *testing.T) {
	h := newHouse(t)
	cmd := h.command([]string{"CRADLE_TEST_IDLE=1h"}, "daemon")
	startReady(t, cmd)
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if r := h.cradle(t, nil, "ps", "-q"); r.code != 0 || h.daemons(t) != 2 {
		t.Fatalf("%+v, %d daemons", r, h.daemons(t))
	}
}

func TestNamedDaemonIsNotStarted(t *testing.T) {
	h := newHouse(t)
	host := "unix://" + filepath.Join(h.dir, "nobody.sock")
	for _, r := range []result{
		h.cradle(t, []string{envHost + "=" + host}, "ps"),
		h.cradle(t, nil, "-H", host, "ps"),
	} {
		want := "Cannot connect to the cradle daemon at " + host + ". Is the cradle daemon running?\n"
		if r.code != 1 || !strings.HasSuffix(r.stderr, want) && !strings.Contains(r.stderr, "failed to connect to the cradle API at "+host) {
			t.Errorf("%+v", r)
		}
	}
	if r := h.cradle(t, []string{envHost + "=" + host}, "run", "busybox"); r.code == 0 {
		t.Errorf("run without a daemon: %+v", r)
	}
	if isDir(h.root()) {
		t.Error("a daemon was started")
	}
}

func TestDockersEnvironmentStaysOut(t *testing.T) {
	h := newHouse(t)
	env := []string{"DOCKER_HOST=tcp://192.0.2.1:1", "DOCKER_CONTEXT=elsewhere", "DOCKER_TLS_VERIFY=1", "DOCKER_API_VERSION=1.40", "DOCKER_CUSTOM_HEADERS=bad"}
	if r := h.cradle(t, env, "info", "--format", "{{.ServerVersion}} {{.ClientInfo.Context}}"); r.stdout != "fake default\n" || r.stderr != "" {
		t.Errorf("%+v", r)
	}
}

func TestSocketNobodyMayUse(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to become somebody else")
	}
	h := newHouse(t)
	cmd := h.command([]string{"CRADLE_TEST_IDLE=1h"}, "daemon")
	startReady(t, cmd)
	defer func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
	}()
	if err := os.Chmod(h.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	// The test binary may lie where the other user cannot reach it; its open file can be run all the same.
	other := h.command([]string{envHost + "=unix://" + filepath.Join(h.run(), socketName)}, "ps")
	other.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	r := finish(t, other)
	if r.code != 1 || !strings.Contains(r.stderr, "permission denied") {
		t.Errorf("%+v", r)
	}
}

// What a command was started with beside its standard streams goes neither to the daemon that it starts nor, from a daemon, to what that starts.
func TestDescriptorsStay(t *testing.T) {
	h := newHouse(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	cmd := h.command([]string{"CRADLE_TEST_IDLE=10s"}, "ps", "-q")
	cmd.ExtraFiles = []*os.File{w, w, w} // the daemon has some of these numbers for itself
	got := finish(t, cmd)
	w.Close()
	if got.code != 0 {
		t.Fatalf("%+v", got)
	}
	_ = r.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := r.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the daemon holds the command's pipe: %v", err)
	}
	// One that is started by hand has them, and keeps them to itself.
	other := newHouse(t)
	cmd = other.command([]string{"CRADLE_TEST_IDLE=1h"}, "daemon")
	cmd.ExtraFiles = []*os.File{r}
	startReady(t, cmd)
	info, err := os.ReadFile(fmt.Sprintf("/proc/%d/fdinfo/3", cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	var position, flags int
	if _, err := fmt.Sscanf(string(info), "pos: %d\nflags: %o", &position, &flags); err != nil || flags&syscall.O_CLOEXEC == 0 {
		t.Errorf("the descriptor that the daemon was started with: %q, %v", info, err)
	}
	_ = cmd.Process.Signal(syscall.SIGTERM)
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}
