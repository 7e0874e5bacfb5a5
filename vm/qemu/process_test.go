package qemu

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
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cradlevm/cradle/vm"
)

// sleeper is a process of ours that does nothing for a while and holds files open.
func sleeper(t *testing.T, files ...*os.File) *process {
	t.Helper()
	s := spawn{argv: []string{"/bin/sh", "-c", "echo qemu: ram_block_discard_range: Failed to fallocate ram0; echo some words; exec sleep 60"}, files: files}
	p, err := s.start()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.kill() })
	return p
}

func TestRecord(t *testing.T) {
	dir := t.TempDir()
	if _, err := findProcess(dir); !errors.Is(err, vm.ErrExited) {
		t.Errorf("no record: %v", err)
	}
	rec, err := newRecord(dir)
	if err != nil {
		t.Fatal(err)
	}
	p := sleeper(t, rec.file)
	rec.file.Close()

	// The daemon died before it could write the number.
	found, err := findProcess(dir)
	if err != nil || found.pid != p.pid {
		t.Fatalf("%v, %v; want process %d", found, err, p.pid)
	}
	found.close()
	if err := rec.write(p.pid); err != nil {
		t.Fatal(err)
	}
	if found, err = findProcess(dir); err != nil || found.pid != p.pid {
		t.Fatalf("%v, %v; want process %d", found, err, p.pid)
	}

	ticks, _ := startTime(p.pid)
	for what, text := range map[string]string{
		"another start":   fmt.Sprintf("%d %d %s\n", p.pid, ticks+1, bootID()),
		"another process": fmt.Sprintf("%d %d %s\n", os.Getppid(), ticks, bootID()), // it started earlier than this one, which may have in the same tick,
		"no such process": fmt.Sprintf("%d %d %s\n", 1<<30, ticks, bootID()),
	} {
		os.WriteFile(rec.path, []byte(text), 0o600)
		if _, err := findProcess(dir); !errors.Is(err, vm.ErrExited) {
			t.Errorf("%s: %v, want ErrExited", what, err)
		}
	}
	for _, text := range []string{"", "1 2 3\n", "x y z\n", fmt.Sprintf("%d %d other-boot\n", p.pid, ticks)} {
		if pid, _, ok := parseRecord(text); ok {
			t.Errorf("%q names process %d", text, pid)
		}
	}

	for began := time.Now(); p.lastWords() == ""; time.Sleep(time.Millisecond) {
		if time.Since(began) > 10*time.Second {
			t.Fatal("the process says nothing")
		}
	}
	// Both who started it and who found it see the end.
	over := make(chan *syscall.WaitStatus)
	go func() { over <- found.wait() }()
	if err := p.kill(); err != nil {
		t.Error(err)
	}
	if status := p.wait(); status == nil || status.Signal() != syscall.SIGKILL {
		t.Errorf("status %v, want killed", status)
	}
	select {
	case status := <-over:
		if status != nil {
			t.Errorf("status %v of a process that is not ours", status)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the end is not noticed")
	}
	if w := found.lastWords(); w != "some words" {
		t.Errorf("last words %q", w)
	}
	rec.write(p.pid)
	if _, err := findProcess(dir); !errors.Is(err, vm.ErrExited) {
		t.Errorf("after the end: %v, want ErrExited", err)
	}
	for range 2 {
		if err := found.kill(); err != nil {
			t.Error(err)
		}
		found.close()
	}
}

func TestSpawnIsolation(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("gives away privileges, so it needs some")
	}
	t.Setenv("SECRET", "x")
	s := spawn{argv: []string{"/bin/sh", "-c", "id -u; id -g; id -G; pwd; env | grep -c SECRET; ls -l /proc/self/fd/0"}, uid: 4321, gid: 1234}
	p, err := s.start()
	if err != nil {
		t.Fatal(err)
	}
	p.wait()
	if w := p.lastWords(); !strings.HasPrefix(w, "4321\n1234\n1234\n/\n0\n") || !strings.Contains(w, "/dev/null") {
		t.Errorf("the child says %q", w)
	}
	if _, err := (&spawn{argv: []string{"/nonexistent"}}).start(); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v", err)
	}
}

func TestBoundedWords(t *testing.T) {
	s := spawn{argv: []string{"/bin/sh", "-c", "head -c 1000000 /dev/zero | tr '\\0' x; true"}}
	p, err := s.start()
	if err != nil {
		t.Fatal(err)
	}
	if status := p.wait(); status.ExitStatus() != 0 {
		t.Errorf("status %v", status)
	}
	if n := len(p.lastWords()); n != maxWords {
		t.Errorf("%d bytes kept", n)
	}
}

func TestConsoleBound(t *testing.T) {
	dir := t.TempDir()
	c, err := openConsole(dir)
	if err != nil {
		t.Fatal(err)
	}
	var all bytes.Buffer
	for i := range 50000 {
		line := fmt.Sprintf("line %d\n", i)
		all.WriteString(line)
		io.WriteString(c, line)
		if i%5000 == 0 { // a new daemon goes on where the old one was
			c.close()
			if c, err = openConsole(dir); err != nil {
				t.Fatal(err)
			}
		}
	}
	c.close()
	info, err := os.Stat(filepath.Join(dir, consoleName))
	if err != nil || info.Size() > 2*consoleLimit || info.Size() < consoleLimit {
		t.Errorf("%v bytes, %v", info.Size(), err)
	}
	for _, n := range []int{0, 1, 100, consoleLimit} {
		if got := c.Tail(n); !bytes.Equal(got, all.Bytes()[all.Len()-n:]) {
			t.Errorf("Tail(%d) gives %d other bytes", n, len(got))
		}
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 1 {
		t.Errorf("%v", entries)
	}
}

func TestLongSocketPath(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("long", 25), strings.Repeat("long", 25))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	f, err := listen(dir, "x.sock")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := os.Stat(filepath.Join(dir, "x.sock"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	conn, err := connect(t.Context(), dir, "x.sock")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	l, err := net.FileListener(f)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if c, err := l.Accept(); err != nil {
		t.Error(err)
	} else {
		c.Close()
	}
}

func TestAccelerator(t *testing.T) {
	d := New(Options{})
	name, why := d.Accel(context.Background())
	if name != vm.AccelKVM && name != vm.AccelTCG || why == "" || strings.Contains(why, "\n") {
		t.Errorf("%q, %q", name, why)
	}
	t.Log(name, why)
	if q, err := d.qemu(); err == nil {
		// The probe's guest is the same under TCG, where it must always answer.
		if err := q.probe(vm.AccelTCG); err != nil {
			t.Error(err)
		}
		if err := q.probe("nonsense"); err == nil {
			t.Error("a probe of nonsense succeeds")
		}
	}
	none := New(Options{Binary: "qemu-of-nobody"})
	if _, err := none.qemu(); err == nil || !errors.Is(err, exec.ErrNotFound) || !strings.Contains(err.Error(), "qemu-system-x86") {
		t.Errorf("missing QEMU: %v", err)
	}
}
