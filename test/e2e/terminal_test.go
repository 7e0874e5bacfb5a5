package e2e

import (
	"io"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
)

// terminal is the user's side of a pseudo-terminal.
type terminal struct {
	f *os.File

	mu     sync.Mutex
	change chan struct{} // closed and replaced when there is more
	text   string        // what has come and has not been matched
}

func newTerminal(f *os.File) *terminal {
	t := &terminal{f: f, change: make(chan struct{})}
	go func() {
		b := make([]byte, 4096)
		for {
			n, err := f.Read(b)
			t.mu.Lock()
			t.text += string(b[:n])
			close(t.change)
			t.change = make(chan struct{})
			t.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	return t
}

func (t *terminal) send(tb testing.TB, s string) {
	tb.Helper()
	if _, err := io.WriteString(t.f, s); err != nil {
		tb.Fatal(err)
	}
}

// expect waits until s appears, and forgets everything up to its end.
func (t *terminal) expect(tb testing.TB, s string) {
	tb.Helper()
	limit := time.After(commandLimit)
	for {
		t.mu.Lock()
		_, rest, ok := strings.Cut(t.text, s)
		if ok {
			t.text = rest
		}
		text, change := t.text, t.change
		t.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-change:
		case <-limit:
			tb.Fatalf("the terminal does not show %q but %q", s, text)
		}
	}
}
