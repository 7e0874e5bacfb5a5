package incoming

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"sync/atomic"
	"testing"
	"time"
)

// flaky fails every other time.
type flaky struct {
	net.Listener
	turn atomic.Int64
}

func (f *flaky) Accept() (net.Conn, error) {
	if f.turn.Add(1)%2 == 1 {
		return nil, errors.New("out of descriptors")
	}
	return f.Listener.Accept()
}

// Errors do not end the loop, no more are served than there are places, and the end waits for what was begun.
func TestServe(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var served, open atomic.Int64
	done := make(chan struct{})
	go func() {
		defer close(done)
		Serve(ctx, &flaky{Listener: l}, 2, slog.New(slog.DiscardHandler), func(c net.Conn) {
			defer c.Close()
			open.Add(1)
			defer open.Add(-1)
			served.Add(1)
			c.Write([]byte("x"))
			io.Copy(io.Discard, c)
		})
	}()
	dial := func() (c net.Conn, answered bool) {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(10 * time.Second))
		n, _ := c.Read(make([]byte, 1))
		return c, n == 1
	}
	first, ok := dial()
	if _, also := dial(); !ok || !also {
		t.Fatal("not served")
	}
	if _, third := dial(); third {
		t.Error("three are served in two places")
	}
	first.Close()
	for end := time.Now().Add(10 * time.Second); open.Load() != 1; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the first does not end")
		}
	}
	last, ok := dial()
	for tries := 0; !ok && tries < 100; tries++ { // its place is free a little later
		last, ok = dial()
	}
	if !ok {
		t.Fatal("the place of one that has gone is not free")
	}
	cancel()
	l.Close()
	select {
	case <-done:
		t.Error("it ends before what it began")
	case <-time.After(20 * time.Millisecond):
	}
	_ = last
}
