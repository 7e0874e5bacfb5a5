package image

import (
	"io"
	"sync"
	"time"
)

// reporter hands the reports of many goroutines to one function, from one goroutine. It never blocks who reports:
// a slow reader of the progress stream must not slow a download that others share. Byte counts that were not
// delivered in time are overwritten by later ones; changes of status are all delivered.
type reporter struct {
	fn    func(Status)
	mu    sync.Mutex
	queue []Status
	wake  chan struct{}
	done  chan struct{}
}

// newReporter starts a reporter; fn may be nil.
func newReporter(fn func(Status)) *reporter {
	r := &reporter{fn: fn, wake: make(chan struct{}, 1), done: make(chan struct{})}
	if fn == nil {
		close(r.done)
		return r
	}
	go r.run()
	return r
}

func (r *reporter) report(st Status) {
	if r.fn == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := len(r.queue) - 1; i >= 0; i-- {
		if r.queue[i].ID != st.ID {
			continue
		}
		if r.queue[i].Status == st.Status {
			r.queue[i] = st
			return
		}
		break
	}
	r.queue = append(r.queue, st)
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

func (r *reporter) run() {
	defer close(r.done)
	for range r.wake {
		for {
			batch, more := r.take()
			for _, st := range batch {
				r.fn(st)
			}
			if !more {
				break
			}
		}
	}
	batch, _ := r.take()
	for _, st := range batch {
		r.fn(st)
	}
}

func (r *reporter) take() (batch []Status, more bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	batch, r.queue = r.queue, nil
	return batch, len(batch) > 0
}

// close delivers what is left and returns when fn will not be called any more. Nobody may report after it.
func (r *reporter) close() {
	if r.fn != nil {
		close(r.wake)
	}
	<-r.done
}

// counter reports how far the reading of a stream has come, ten times a second at most.
type counter struct {
	r      io.Reader
	report func(Status)
	st     Status
	next   time.Time
	atEnd  func() // may be nil; called once, at the end of the stream
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.st.Current += int64(n)
	if now := time.Now(); now.After(c.next) || err != nil {
		c.next = now.Add(100 * time.Millisecond)
		c.report(c.st)
	}
	if err == io.EOF && c.atEnd != nil {
		c.atEnd()
		c.atEnd = nil
	}
	return n, err
}
