package node

import (
	"context"
	"sync"

	"github.com/cradlevm/cradle/api"
)

// outcome is how a process ends. It gets known by the last record of its output or, where nobody reads that in time, by
// asking the agent: whichever is first.
type outcome struct {
	known chan struct{} // closed when what follows is
	once  sync.Once
	// status, or err as run.wait returns it.
	status api.ExitStatus
	err    error

	// ask has the agent asked, once. It does not wait for the answer.
	ask func()
}

// outcome returns the one of a process. ctx bounds the asking.
func (r *run) outcome(ctx context.Context, p api.ProcessRef) *outcome {
	e := &outcome{known: make(chan struct{})}
	asked := sync.OnceFunc(func() { go func() { e.set(r.wait(ctx, p)) }() })
	e.ask = func() {
		select {
		case <-e.known:
		default:
			asked()
		}
	}
	return e
}

// set makes it known; only the first word counts.
func (e *outcome) set(status api.ExitStatus, err error) {
	e.once.Do(func() {
		e.status, e.err = status, err
		close(e.known)
	})
}

// wait returns how the process ended, once that is known.
func (e *outcome) wait(ctx context.Context) (api.ExitStatus, error) {
	select {
	case <-e.known:
		return e.status, e.err
	case <-ctx.Done():
		return api.ExitStatus{}, ctx.Err()
	}
}
