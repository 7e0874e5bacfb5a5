package node

import (
	"context"
	"runtime"
	"sync"
	"time"
)

// startsPerCPU is how many starts may be under way for each processor: one that computes, and one that waits for a disk.
const startsPerCPU = 2

// turnLimit is how long a start counts as under way. A guest that takes longer, be it on purpose, does not keep others
// from starting.
const turnLimit = 5 * time.Second

// gate lets starts begin in the order in which they were asked for, a few at a time. When hundreds are asked for at once
// each is then as fast as alone, and none of them runs out of its time because of the others.
type gate struct {
	turns chan struct{}
	limit time.Duration // of a turn
}

func newGate() *gate {
	return &gate{turns: make(chan struct{}, startsPerCPU*runtime.NumCPU()), limit: turnLimit}
}

// enter waits for a turn, which lasts until leave is called, or until it has lasted too long. An error is ctx's.
func (g *gate) enter(ctx context.Context) (leave func(), err error) {
	select {
	case g.turns <- struct{}{}:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	free := sync.OnceFunc(func() { <-g.turns })
	overdue := time.AfterFunc(g.limit, free)
	return func() {
		overdue.Stop()
		free()
	}, nil
}
