package guest

import (
	"bytes"
	"io"
	"os"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// portPair is a port and the host's end of it.
func portPair(t *testing.T) (*port, *os.File) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	guest, host := os.NewFile(uintptr(fds[0]), "guest"), os.NewFile(uintptr(fds[1]), "host")
	t.Cleanup(func() { guest.Close(); host.Close() })
	p, err := newPort(guest)
	if err != nil {
		t.Fatal(err)
	}
	return p, host
}

// TestPort: what is more than a queue holds goes through in both directions, and nobody waits in a system call.
func TestPort(t *testing.T) {
	p, host := portPair(t)
	sent := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	for _, way := range []struct {
		from io.Reader
		to   io.Writer
	}{{host, p}, {p, host}} {
		got := make([]byte, len(sent))
		read := make(chan error)
		go func() {
			_, err := io.ReadFull(way.from, got)
			read <- err
		}()
		if n, err := way.to.Write(sent); n != len(sent) || err != nil {
			t.Fatal(n, err)
		}
		if err := <-read; err != nil || !bytes.Equal(got, sent) {
			t.Fatalf("%v: other bytes arrived", err)
		}
	}
}

// TestPortThatIsGone: a port that fails says so.
func TestPortThatIsGone(t *testing.T) {
	p, host := portPair(t)
	host.Close()
	if n, err := p.Write([]byte("x")); n != 0 || err == nil {
		t.Errorf("%d, %v", n, err)
	}
	p.file.Close()
	if n, err := p.Read(make([]byte, 1)); n != 0 || err == nil {
		t.Errorf("%d, %v", n, err)
	}
}

// TestCalmMonitor: one thread of this process, and no other, may be late.
func TestCalmMonitor(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	thread, err := monitor()
	if err != nil {
		t.Fatal(err)
	}
	was := slack(t, thread)
	t.Cleanup(func() { os.WriteFile(slackFile(thread), []byte(was), 0) })
	if err := calmMonitor(); err != nil {
		t.Fatal(err)
	}
	if got := slack(t, thread); got != strconv.Itoa(monitorSlack) {
		t.Errorf("the monitor's slack is %s", got)
	}
	if got := slack(t, os.Getpid()); got != was {
		t.Errorf("another thread's slack is %s, was %s", got, was)
	}
}

func slack(t *testing.T, thread int) string {
	t.Helper()
	b, err := os.ReadFile(slackFile(thread))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}
