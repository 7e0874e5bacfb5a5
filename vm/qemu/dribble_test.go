package qemu

import (
	"context"
	"errors"
	"io"
	"testing"
	"time"
)

// What is on its way through a dribble, beyond what its reader has taken, is little; once released, it has an end.
func TestDribble(t *testing.T) {
	ours, theirs, err := filePair()
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	d, err := newDribble(ours, theirs)
	if err != nil {
		t.Fatal(err)
	}
	const total = 1 << 20
	written := make(chan error, 1)
	go func() {
		_, err := theirs.Write(make([]byte, total))
		written <- errors.Join(err, theirs.Close())
	}()
	buf := make([]byte, 64<<10)
	n, err := d.Read(buf)
	if err != nil || n > dribbleRead {
		t.Fatalf("read %d bytes, %v", n, err)
	}
	select {
	case err := <-written:
		t.Fatalf("all of it was on its way: %v", err)
	case <-time.After(10 * time.Millisecond):
	}
	if err := errors.Join(d.release(), d.release()); err != nil {
		t.Fatal(err)
	}
	rest, err := io.Copy(io.Discard, d)
	if err = errors.Join(err, <-written); err != nil || int64(n)+rest != total {
		t.Errorf("%d of %d bytes, %v", int64(n)+rest, total, err)
	}
}

// A guest that stands still is told nothing; what the telling fails with is told from the stream's errors.
func TestSoon(t *testing.T) {
	m := &machine{stood: map[string]time.Time{}}
	refuses := errors.New("refused")
	var told *soonError
	if err := m.soon(context.Background(), func(context.Context) error { return refuses }); !errors.Is(err, refuses) || !errors.As(err, &told) {
		t.Errorf("refused: %v", err)
	}
	if err := m.soon(context.Background(), func(context.Context) error { m.stood["STOP"] = time.Now(); return refuses }); !errors.Is(err, errTooSoon) {
		t.Errorf("stopped meanwhile: %v", err)
	}
	if err := m.soon(context.Background(), func(context.Context) error { t.Error("told"); return nil }); !errors.Is(err, errTooSoon) {
		t.Errorf("stopped before: %v", err)
	}
}
