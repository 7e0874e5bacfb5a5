package qemu

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cradlevm/cradle/vm"
	"golang.org/x/sys/unix"
)

const greeting = `{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}}, "capabilities": ["oob"]}}` + "\r\n"

// socketPair returns two ends of one connection.
func socketPair(t testing.TB) (ours, theirs *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ends := make([]*net.UnixConn, 2)
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "pair")
		c, err := net.FileConn(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		ends[i] = c.(*net.UnixConn)
		t.Cleanup(func() { c.Close() })
	}
	return ends[0], ends[1]
}

// fake plays QEMU's side: it greets, accepts the capabilities, then answers each command as respond says.
func fake(t testing.TB, conn *net.UnixConn, respond func(id uint64, command string) string) {
	go func() {
		fmt.Fprint(conn, greeting)
		for lines := bufio.NewScanner(conn); lines.Scan(); {
			var c struct {
				Execute string
				ID      uint64
			}
			if err := json.Unmarshal(lines.Bytes(), &c); err != nil {
				t.Errorf("command %q: %v", lines.Bytes(), err)
				return
			}
			answer := fmt.Sprintf(`{"return": {}, "id": %d}`+"\r\n", c.ID)
			if c.Execute != "qmp_capabilities" {
				answer = respond(c.ID, c.Execute)
			}
			if answer == "" {
				conn.Close()
				return
			}
			fmt.Fprint(conn, answer)
		}
	}()
}

// opened is a monitor whose fake answers as respond says, and the events it gets.
func opened(t *testing.T, respond func(id uint64, command string) string) (*monitor, func() []string) {
	t.Helper()
	ours, theirs := socketPair(t)
	fake(t, theirs, respond)
	var mu sync.Mutex
	var events []string
	m, err := openMonitor(t.Context(), ours, func(e event) {
		mu.Lock()
		defer mu.Unlock()
		events = append(events, e.Name+string(e.Data))
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.close)
	return m, func() []string {
		mu.Lock()
		defer mu.Unlock()
		return events
	}
}

func TestMonitorCall(t *testing.T) {
	m, events := opened(t, func(id uint64, command string) string {
		switch command {
		case "refuse":
			return fmt.Sprintf(`{"id": %d, "error": {"class": "DeviceNotFound", "desc": "no such thing"}}`+"\n", id)
		default:
			// Events and a stranger's reply come before the answer, in one write.
			return `{"event": "RESUME", "data": {"a": 1}, "timestamp": {"seconds": 1}}` + "\r\n" +
				`{"return": {"wrong": true}, "id": 99999}` + "\r\n\r\n" +
				fmt.Sprintf(`{"return": {"name": %q}, "id": %d}`+"\r\n", command, id)
		}
	})
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			want := fmt.Sprintf(`{"name": "c%d"}`, i)
			got, err := m.call(t.Context(), fmt.Sprintf("c%d", i), map[string]any{"x": i})
			if err != nil || string(got) != want {
				t.Errorf("%s, %v; want %s", got, err, want)
			}
		})
	}
	wg.Wait()
	var refused *monitorError
	if err := m.run(t.Context(), "refuse", nil); !errors.As(err, &refused) || refused.Class != "DeviceNotFound" || errors.Is(err, vm.ErrExited) {
		t.Errorf("refused: %v", err)
	}
	if e := events(); len(e) != 50 || e[0] != `RESUME{"a": 1}` {
		t.Errorf("%d events, %q", len(e), e)
	}
	if len(m.waiting) != 0 {
		t.Errorf("%d waiters are left", len(m.waiting))
	}
}

func TestMonitorBreaks(t *testing.T) {
	for name, answer := range map[string]string{
		"closes":         "",
		"garbage":        "}{ nonsense\n",
		"wrong type":     `{"return": {}, "id": "seven"}` + "\n",
		"oversize":       `{"return": "` + strings.Repeat("x", maxMonitorMessage) + `", "id": 2}` + "\n",
		"oversize space": strings.Repeat(" ", maxMonitorMessage+1),
	} {
		t.Run(name, func(t *testing.T) {
			m, _ := opened(t, func(uint64, string) string { return answer })
			var wg sync.WaitGroup
			for range 5 {
				wg.Go(func() {
					if err := m.run(t.Context(), "anything", nil); !errors.Is(err, vm.ErrExited) {
						t.Errorf("%v, want ErrExited", err)
					}
				})
			}
			wg.Wait()
			if err := m.run(t.Context(), "later", nil); !errors.Is(err, vm.ErrExited) {
				t.Errorf("later: %v, want ErrExited", err)
			}
		})
	}
}

func TestMonitorCloseMidReply(t *testing.T) {
	ours, theirs := socketPair(t)
	go func() {
		fmt.Fprint(theirs, greeting+`{"return": {}, "id"`)
		theirs.Close()
	}()
	if _, err := openMonitor(t.Context(), ours, func(event) {}); !errors.Is(err, vm.ErrExited) {
		t.Errorf("%v, want ErrExited", err)
	}
}

func TestMonitorPatience(t *testing.T) {
	ours, theirs := socketPair(t)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := openMonitor(ctx, ours, func(event) {}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("no greeting: %v, want the deadline", err)
	}
	theirs.Close()

	m, _ := opened(t, func(id uint64, command string) string {
		if command == "hang" {
			return "\n"
		}
		return fmt.Sprintf(`{"return": {}, "id": %d}`+"\n", id)
	})
	ctx, cancel = context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := m.run(ctx, "hang", nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("no answer: %v, want the deadline", err)
	}
	if err := m.run(t.Context(), "next", nil); err != nil {
		t.Errorf("after a call that was given up: %v", err)
	}
}

// FuzzQMP feeds the client whatever a broken-through guest might make QEMU say.
func FuzzQMP(f *testing.F) {
	f.Add([]byte(greeting + `{"return": {}, "id": 1}` + "\n" + `{"event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-reset"}}` + "\n"))
	f.Add([]byte(greeting + greeting + `{"error": {"class": "X"}, "id": 1}`))
	f.Add([]byte(`{"QMP": null, "id": 1, "event": "DEVICE_DELETED", "data": 7}` + "\n"))
	f.Add([]byte(greeting + `{"return": null, "id": 1}` + "\n" + `{"return": [{"name": "disk-1-A"}], "id": 2}` + "\n"))
	f.Fuzz(func(t *testing.T, said []byte) {
		ours, theirs := socketPair(t)
		go func() {
			theirs.Write(said)
			theirs.CloseWrite()
		}()
		m := &machine{}
		m.disks.disks = map[string]*diskEntry{}
		m.deletions.waiting = map[string]chan struct{}{}
		var err error
		if m.mon, err = openMonitor(t.Context(), ours, m.event); err != nil {
			return
		}
		defer m.mon.close()
		if m.readDisks(t.Context()) == nil {
			for serial, e := range m.disks.disks {
				if e.slot < 0 || e.slot >= maxDisks || !m.disks.used[e.slot] {
					t.Errorf("disk %q in slot %d", serial, e.slot)
				}
			}
		}
	})
}
