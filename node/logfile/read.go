package logfile

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/cradlevm/cradle/api"
)

// ReadOptions say what Read delivers.
type ReadOptions struct {
	Since, Until   time.Time // inclusive; zero: no bound
	Tail           int       // only the last so many lines of those asked for; below 0: all
	Follow         bool      // go on with what is appended, until Close, Until or the context's end
	Stdout, Stderr bool
}

// Record is one line of output or a piece of one.
type Record struct {
	Time      time.Time
	Stream    byte   // api.Stdout or api.Stderr
	Data      []byte // with the newline, when the line ends here; valid during the call only
	Partial   bool   // the line goes on in the stream's next record
	Continues bool   // the line began in an earlier one
}

// Read calls fn with the records asked for, oldest first, and ends with fn's error or the context's. It holds one
// file and 64 KiB whatever the log's size and however slow fn is. A follower that is slower than the writer by the
// whole log misses what rotation has removed. Errors: ErrCorrupt, after all that could be read; the file system's.
func (l *Log) Read(ctx context.Context, o ReadOptions, fn func(Record) error) error {
	r := &reader{log: l, o: o, fn: fn}
	defer r.close()
	if !o.Until.IsZero() && o.Follow {
		var cancel context.CancelFunc
		outer := ctx
		ctx, cancel = context.WithDeadline(ctx, o.Until)
		defer cancel()
		err := r.run(ctx)
		if errors.Is(err, context.DeadlineExceeded) && outer.Err() == nil {
			return nil
		}
		return err
	}
	return r.run(ctx)
}

// reader is one Read under way.
type reader struct {
	log     *Log
	o       ReadOptions
	fn      func(Record) error
	number  uint64 // of the file being read
	scan    scanner
	end     int64         // of what is known to be there of that file
	started [streams]bool // a line's beginning was delivered, or need not be waited for
	damage  error
}

func (r *reader) run(ctx context.Context) error {
	for i := range r.started {
		r.started[i] = true
	}
	if there, err := r.log.await(r.o.Follow); err != nil || !there {
		return err
	}
	if err := r.seek(ctx); err != nil {
		return err
	}
	for n := 0; r.scan.file != nil; n++ {
		if n%64 == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		e, err := r.scan.next(r.end)
		switch {
		case err == nil:
			err = r.deliver(&e)
		case errors.Is(err, io.EOF):
			var more bool
			if more, err = r.further(ctx); err == nil && !more {
				return r.damage
			}
		case errors.Is(err, errTorn):
			r.damage = fmt.Errorf("%w: %s at %d", ErrCorrupt, r.log.path(r.number), r.scan.pos)
			r.scan.pos, r.scan.buf, err = r.end, nil, nil
		default:
			err = fmt.Errorf("read log: %w", err)
		}
		if errors.Is(err, errPast) {
			return r.damage
		}
		if err != nil {
			return err
		}
	}
	return r.damage
}

// await tells whether there is a file to read, and makes it for a reader who stays until there is something in it.
func (l *Log) await(follow bool) (bool, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file != nil || l.closed || !follow {
		return l.file != nil, nil
	}
	if err := l.begin(1); err != nil {
		return false, fmt.Errorf("begin log: %w", err)
	}
	return true, nil
}

// further is called where everything known to be there has been read: it finds out whether there is more by now, goes
// on to the next file, or waits. False when there will be no more.
func (r *reader) further(ctx context.Context) (bool, error) {
	l := r.log
	l.mu.Lock()
	if r.number != l.last {
		l.mu.Unlock()
		fi, err := r.scan.file.Stat()
		if err != nil {
			return false, fmt.Errorf("read log: %w", err)
		}
		// Finished since: what was added before that is still to be read.
		if fi.Size() > r.scan.pos {
			r.end = fi.Size()
			return true, nil
		}
		return r.advance()
	}
	defer l.mu.Unlock()
	if l.size > r.scan.pos {
		r.end = l.size
		return true, nil
	}
	// The tail is behind; whatever comes now is new, in the middle of a line or not.
	r.started = [streams]bool{true, true, true}
	if !r.o.Follow || l.closed {
		return false, nil
	}
	if l.grown == nil {
		l.grown = make(chan struct{})
	}
	grown := l.grown
	l.mu.Unlock()
	defer l.mu.Lock()
	select {
	case <-grown:
		return true, nil
	case <-ctx.Done():
		return false, ctx.Err()
	}
}

// errPast ends a reading at its Until.
var errPast = errors.New("past the end asked for")

func (r *reader) deliver(e *entry) error {
	if !r.wants(e) {
		return nil
	}
	t := e.time()
	if !r.o.Until.IsZero() && t.After(r.o.Until) {
		if r.o.Follow {
			return errPast
		}
		return nil // the clock may have been put back since
	}
	if e.begins() {
		r.started[e.stream] = true
	}
	// A tail does not begin in the middle of another stream's line.
	if !r.started[e.stream] {
		return nil
	}
	return r.fn(Record{
		Time: t, Stream: e.stream, Data: e.data,
		Partial: e.flags&flagPartial != 0, Continues: e.flags&flagContinues != 0,
	})
}

// wants looks at everything but Until.
func (r *reader) wants(e *entry) bool {
	switch e.stream {
	case api.Stdout:
		if !r.o.Stdout {
			return false
		}
	case api.Stderr:
		if !r.o.Stderr {
			return false
		}
	default:
		return false
	}
	return r.o.Since.IsZero() || !e.time().Before(r.o.Since)
}

// advance goes on to the next file that is still there; false when there is none.
func (r *reader) advance() (bool, error) {
	for {
		r.log.mu.Lock()
		first, last := r.log.first, r.log.last
		r.log.mu.Unlock()
		if r.number >= last {
			return false, nil
		}
		err := r.open(max(r.number+1, first), fileHeaderSize)
		if err == nil {
			return true, nil
		}
		// Rotation may have removed it since; then the next one will do. All are gone when the container was removed.
		if !errors.Is(err, os.ErrNotExist) {
			return false, err
		}
	}
}

func (r *reader) open(n uint64, pos int64) error {
	r.close()
	r.number = n
	f, err := os.Open(r.log.path(n))
	if err != nil {
		return err
	}
	r.scan.file, r.scan.pos, r.scan.buf, r.end = f, pos, nil, pos
	return nil
}

func (r *reader) close() {
	if r.scan.file != nil {
		r.scan.file.Close()
		r.scan.file = nil
	}
}

// seek opens the first file to be read and finds the place in it.
func (r *reader) seek(ctx context.Context) error {
	l := r.log
	l.mu.Lock()
	first, last, size := l.first, l.last, l.size
	l.mu.Unlock()
	if r.o.Tail >= 0 {
		return r.seekTail(ctx, first, last, size)
	}
	r.number = first - 1
	_, err := r.advance()
	return err
}

// seekTail goes back from the end until Tail lines of those asked for lie ahead.
func (r *reader) seekTail(ctx context.Context, first, last uint64, size int64) error {
	lines := 0
	for n := last; ; n-- {
		if err := r.open(n, size); err != nil {
			if !errors.Is(err, os.ErrNotExist) {
				return err
			}
			// Rotation took it meanwhile: the tail begins where the log does.
			_, err := r.advance()
			return err
		}
		if n != last {
			fi, err := r.scan.file.Stat()
			if err != nil {
				return err
			}
			r.scan.pos, r.end = fi.Size(), fi.Size()
		}
		back := backScanner{file: r.scan.file, end: r.scan.pos}
		for lines < r.o.Tail {
			if err := ctx.Err(); err != nil {
				return err
			}
			e, err := back.prev()
			if err != nil {
				if !errors.Is(err, io.EOF) && !errors.Is(err, errTorn) {
					return fmt.Errorf("read log: %w", err)
				}
				break
			}
			r.scan.pos, r.end = back.end, back.end
			if e.begins() && r.wants(&e) && (r.o.Until.IsZero() || !e.time().After(r.o.Until)) {
				lines++
			}
		}
		if lines >= r.o.Tail {
			r.started = [streams]bool{}
			return nil
		}
		// What lies before a damaged place in this file cannot be read backwards, and is left out; forwards reading would
		// meet the same damage.
		if n == first {
			return nil
		}
	}
}
