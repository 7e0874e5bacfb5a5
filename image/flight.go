package image

import (
	"context"
	"sync"

	digest "github.com/opencontainers/go-digest"
)

// flightGroup makes operations that need the same layer at the same time do its work once.
type flightGroup struct {
	mu sync.Mutex
	m  map[digest.Digest]*flight
}

// flight is one piece of work and those who wait for it. It runs on a context of its own, which ends when the last
// of them has gone: whoever began it may leave without hurting the others.
type flight struct {
	done   chan struct{}
	err    error // valid after done
	watch  map[*watcher]bool
	cancel context.CancelFunc
	last   Status // the latest report, for those who join late
	// bound says that the work reads a stream of its starter's and ends with it.
	bound bool
}

type watcher struct{ report func(Status) }

// do runs work for key, or joins the work that runs for it already. report gets the work's reports as long as do
// waits. When work that somebody else began fails, this caller tries for itself: the cause may have been theirs
// alone (credentials, a connection). Bound work promises nothing: its end only means to look again.
func (g *flightGroup) do(ctx context.Context, key digest.Digest, report func(Status), work func(context.Context, func(Status)) error) error {
	for {
		f, w, mine := g.join(ctx, key, report, work)
		select {
		case <-f.done:
		case <-ctx.Done():
		}
		g.leave(f, w)
		if err := ctx.Err(); err != nil {
			g.settle(f)
			return err
		}
		if mine || f.err == nil && !f.bound {
			return f.err
		}
	}
}

// settle waits for the end of a flight that everybody has left, and which is therefore ending: so that nothing of
// it remains when the last of them returns.
func (g *flightGroup) settle(f *flight) {
	g.mu.Lock()
	abandoned := len(f.watch) == 0 && !f.bound
	g.mu.Unlock()
	if abandoned {
		<-f.done
	}
}

func (g *flightGroup) join(ctx context.Context, key digest.Digest, report func(Status), work func(context.Context, func(Status)) error) (f *flight, w *watcher, mine bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	w = &watcher{report: report}
	// One that everybody left is being cancelled; joining it would only bring its error.
	if f = g.m[key]; f != nil && (len(f.watch) > 0 || f.bound) {
		f.watch[w] = true
		if f.last.Status != "" {
			report(f.last)
		}
		return f, w, false
	}
	workCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	f = &flight{done: make(chan struct{}), watch: map[*watcher]bool{w: true}, cancel: cancel}
	g.put(key, f)
	go func() {
		defer cancel()
		g.end(key, f, work(workCtx, func(st Status) { g.tell(f, st) }))
	}()
	return f, w, true
}

// begin registers work that the caller does itself and that others may wait for. When somebody else's work of that
// kind runs, begin waits for its end and returns false: look again whether there is anything left to do. Work that
// is not bound is not waited for: it may be a slow download of what the caller has at hand; end is nil then too.
func (g *flightGroup) begin(ctx context.Context, key digest.Digest) (end func(), ok bool, err error) {
	g.mu.Lock()
	if f := g.m[key]; f != nil {
		g.mu.Unlock()
		if !f.bound {
			return func() {}, true, nil
		}
		select {
		case <-f.done:
			return nil, false, nil
		case <-ctx.Done():
			return nil, false, ctx.Err()
		}
	}
	defer g.mu.Unlock()
	f := &flight{done: make(chan struct{}), watch: map[*watcher]bool{}, cancel: func() {}, bound: true}
	g.put(key, f)
	return func() { g.end(key, f, nil) }, true, nil
}

func (g *flightGroup) put(key digest.Digest, f *flight) {
	if g.m == nil {
		g.m = map[digest.Digest]*flight{}
	}
	g.m[key] = f
}

func (g *flightGroup) end(key digest.Digest, f *flight, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	f.err = err
	if g.m[key] == f {
		delete(g.m, key)
	}
	close(f.done)
}

func (g *flightGroup) leave(f *flight, w *watcher) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(f.watch, w)
	if len(f.watch) == 0 && !f.bound {
		f.cancel()
	}
}

func (g *flightGroup) tell(f *flight, st Status) {
	g.mu.Lock()
	defer g.mu.Unlock()
	f.last = st
	for w := range f.watch {
		w.report(st)
	}
}
