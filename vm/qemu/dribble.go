package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// A container that is to stand still in a checkpoint, and not for long in life, is told so when most of the memory has
// been copied. QEMU has no such moment: it goes through memory once, and when the guest has written to little meanwhile
// it stops it there and then. So it is held up: its stream is not read for as long as the telling takes. It is surely
// in its first pass still when more pages are missing than can be on their way.

const (
	// nearPages is how many pages are missing when soon is called. On their way, 9 bytes each if they are zeros, are at most
	// the 32 KiB in QEMU's buffer, twice dribbleBuffer in the socket, dribbleRead in ours: 6,400 pages.
	nearPages     = 8192
	dribbleBuffer = 8 << 10
	dribbleRead   = 8 << 10
	// soonLimit bounds the telling, of a guest that does not answer.
	soonLimit = 10 * time.Second
)

// errTooSoon means that the guest stood still before soon had been called.
var errTooSoon = errors.New("the guest stood still too soon")

// soonError is soon's, where it comes up as the stream's.
type soonError struct{ err error }

func (e *soonError) Error() string { return e.err.Error() }
func (e *soonError) Unwrap() error { return e.err }

// soon calls f unless the guest stands still. The error is a *soonError.
func (m *machine) soon(ctx context.Context, f func(context.Context) error) error {
	stood := func() bool {
		m.mu.Lock()
		defer m.mu.Unlock()
		return !m.stood["STOP"].IsZero()
	}
	if stood() {
		return &soonError{errTooSoon}
	}
	ctx, cancel := context.WithTimeout(ctx, soonLimit)
	defer cancel()
	err := f(ctx)
	if stood() {
		return &soonError{errTooSoon}
	}
	if err != nil {
		return &soonError{err}
	}
	return nil
}

// dribble reads a stream of which little is on its way, until it is released.
type dribble struct {
	in   *os.File
	wide atomic.Bool // released

	mu     sync.Mutex
	writer int // a descriptor of the stream's other end, to widen it; -1 when it has been
	was    int // its buffer's size
}

// newDribble narrows the way to in from writer, which the caller keeps. release must be called, else the stream has no end.
func newDribble(in, writer *os.File) (*dribble, error) {
	d := &dribble{in: in}
	var err error
	if d.was, err = unix.GetsockoptInt(int(writer.Fd()), unix.SOL_SOCKET, unix.SO_SNDBUF); err != nil {
		return nil, fmt.Errorf("stream: %w", err)
	}
	if err := unix.SetsockoptInt(int(writer.Fd()), unix.SOL_SOCKET, unix.SO_SNDBUF, dribbleBuffer); err != nil {
		return nil, fmt.Errorf("stream: %w", err)
	}
	if d.writer, err = unix.FcntlInt(writer.Fd(), unix.F_DUPFD_CLOEXEC, 0); err != nil {
		return nil, fmt.Errorf("stream: %w", err)
	}
	return d, nil
}

// Read implements io.Reader.
func (d *dribble) Read(b []byte) (int, error) {
	if !d.wide.Load() {
		b = b[:min(len(b), dribbleRead)]
	}
	return d.in.Read(b)
}

// release lets the stream flow as it did.
func (d *dribble) release() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.writer < 0 {
		return nil
	}
	d.wide.Store(true)
	// The kernel doubles what it is given.
	err := unix.SetsockoptInt(d.writer, unix.SOL_SOCKET, unix.SO_SNDBUF, d.was/2)
	err = errors.Join(err, unix.Close(d.writer))
	d.writer = -1
	if err != nil {
		return fmt.Errorf("stream: %w", err)
	}
	return nil
}
