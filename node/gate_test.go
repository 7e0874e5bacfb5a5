package node

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// As many go as there are turns; the others wait until one has left.
func TestGateLetsAFewIn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &gate{turns: make(chan struct{}, 2), limit: time.Hour}
		leave, _ := g.enter(t.Context())
		if _, err := g.enter(t.Context()); err != nil {
			t.Fatal(err)
		}
		entered := make(chan struct{})
		go func() {
			if _, err := g.enter(t.Context()); err == nil {
				close(entered)
			}
		}()
		synctest.Wait()
		select {
		case <-entered:
			t.Fatal("a third has entered while two are in")
		default:
		}
		leave()
		leave() // counts once
		<-entered
		if n := len(g.turns); n != 2 {
			t.Errorf("%d turns are taken, not 2", n)
		}
		synctest.Wait()
	})
}

// One that takes too long keeps nobody out, and its leaving later frees nobody else's turn.
func TestGateForgetsTheSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &gate{turns: make(chan struct{}, 1), limit: time.Second}
		slow, _ := g.enter(t.Context())
		began := time.Now()
		if _, err := g.enter(t.Context()); err != nil {
			t.Fatal(err)
		}
		if waited := time.Since(began); waited != time.Second {
			t.Errorf("waited %v", waited)
		}
		slow()
		if n := len(g.turns); n != 1 {
			t.Errorf("%d turns are taken, not 1", n)
		}
	})
}

// Who gives up waiting is told why, and has taken nothing.
func TestGateGivenUp(t *testing.T) {
	g := &gate{turns: make(chan struct{}, 1), limit: time.Hour}
	leave, _ := g.enter(t.Context())
	defer leave()
	why := errors.New("removed")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(why)
	if _, err := g.enter(ctx); !errors.Is(err, why) {
		t.Errorf("error %v, not %v", err, why)
	}
	if n := len(g.turns); n != 1 {
		t.Errorf("%d turns are taken, not 1", n)
	}
}
