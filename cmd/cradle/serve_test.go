package main

import (
	"bufio"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// startReady starts cmd as a daemon and returns when it says that it is ready. What it logs is the test's output,
// its end is the caller's.
func startReady(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.ExtraFiles = append(cmd.ExtraFiles, w)
	cmd.Stderr = t.Output()
	cmd.Env = append(cmd.Env, envReadyFD+"="+string(rune('2'+len(cmd.ExtraFiles))))
	err = cmd.Start()
	_ = w.Close()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	word, err := io.ReadAll(r)
	_ = r.Close()
	if err != nil || string(word) != readyWord {
		t.Fatalf("the daemon did not get ready: %q, %v", word, err)
	}
}

func TestDaemonEndsOnSIGTERM(t *testing.T) {
	h := newHouse(t)
	cmd := h.command([]string{"CRADLE_TEST_IDLE=1h"}, "daemon")
	startReady(t, cmd)

	// A stream without an end must not hold it up.
	events := h.command(nil, "events")
	out, err := events.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := events.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || !strings.Contains(line, "container start") {
		t.Fatalf("%q, %v", line, err)
	}
	began := time.Now()
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("the daemon ended with %v", err)
	}
	if took := time.Since(began); took > closePatience {
		t.Errorf("the daemon took %s to end", took)
	}
	_ = events.Wait()
	if _, err := os.Lstat(filepath.Join(h.run(), socketName)); !os.IsNotExist(err) {
		t.Errorf("the socket is left: %v", err)
	}
}

func TestSecondDaemonIsRefused(t *testing.T) {
	h := newHouse(t)
	cmd := h.command([]string{"CRADLE_TEST_IDLE=1h"}, "daemon")
	startReady(t, cmd)
	for name, args := range map[string][]string{
		"same place":  {"daemon"},
		"same root":   {"daemon", "--run", filepath.Join(h.dir, "run2")},
		"same socket": {"daemon", "--root", filepath.Join(h.dir, "root2")},
		"same run":    {"daemon", "--root", filepath.Join(h.dir, "root3"), "--host", filepath.Join(h.dir, "other.sock"), "--idle-timeout", "1ms"},
	} {
		r := h.cradle(t, nil, args...)
		lines := strings.Split(strings.TrimSpace(r.stderr), "\n")
		last := lines[len(lines)-1]
		if r.code != 1 || !strings.HasPrefix(last, "another cradle daemon (pid ") {
			t.Errorf("%s: %+v", name, r)
		}
	}
	_ = cmd.Process.Signal(syscall.SIGTERM)
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}

func TestBusyDaemonStays(t *testing.T) {
	h := newHouse(t)
	cmd := h.command([]string{envAs + "=" + asBusy, "CRADLE_TEST_IDLE=1ms"}, "daemon")
	startReady(t, cmd)
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case err := <-ended:
		t.Fatalf("a busy daemon ended by itself: %v", err)
	case <-time.After(300 * time.Millisecond):
	}
	_ = cmd.Process.Signal(syscall.SIGTERM)
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestSocketActivation(t *testing.T) {
	h := newHouse(t)
	path := filepath.Join(h.dir, "activated.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	f, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	// Like systemd: the process learns its own number, and the socket is its descriptor 3.
	cmd := exec.Command("/bin/sh", "-c", `LISTEN_PID=$$ LISTEN_FDS=1 exec "$0" daemon`, self(t))
	cmd.Env = append(append([]string(nil), h.env...), "CRADLE_TEST_IDLE=1h")
	cmd.ExtraFiles = []*os.File{f}
	startReady(t, cmd)
	if r := h.cradle(t, []string{envHost + "=" + path}, "info", "--format", "{{.ServerVersion}}"); r.stdout != "fake\n" {
		t.Errorf("%+v", r)
	}
	_ = cmd.Process.Signal(syscall.SIGTERM)
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("systemd's socket was removed: %v", err)
	}
	if _, err := os.Lstat(filepath.Join(h.run(), socketName)); !os.IsNotExist(err) {
		t.Errorf("a second socket was made: %v", err)
	}
}

func self(t *testing.T) string {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return exe
}

func TestSocketPermissions(t *testing.T) {
	path := filepath.Join(shortDir(t), socketName)
	l, made, err := listen(path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	info, err := os.Lstat(path)
	if err != nil || info.Mode() != os.ModeSocket|0o660 || made != path {
		t.Errorf("%v, %v, made %q", info.Mode(), err, made)
	}
}

func TestFileInTheSocketsPlace(t *testing.T) {
	path := filepath.Join(shortDir(t), socketName)
	if err := os.WriteFile(path, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := listen(path); err == nil || !strings.Contains(err.Error(), "in the way") {
		t.Errorf("%v", err)
	}
	if b, _ := os.ReadFile(path); string(b) != "mine" {
		t.Error("the file was touched")
	}
}

func TestSystemdIsNotified(t *testing.T) {
	path := filepath.Join(shortDir(t), "notify")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := announceReady(func(name string) string { return map[string]string{"NOTIFY_SOCKET": path}[name] }); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 64)
	n, err := bufio.NewReader(l).Read(b)
	if err != nil || string(b[:n]) != "READY=1" {
		t.Errorf("%q, %v", b[:n], err)
	}
}
