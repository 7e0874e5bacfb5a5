package node

import (
	"log/slog"
	"sync"
	"time"
)

// phases says where a container's time goes: how long each step of its start and of its end took. The debug log has
// them.
type phases struct {
	mu    sync.Mutex
	last  time.Time
	steps []any // slog attributes
}

func newPhases() *phases { return &phases{last: time.Now()} }

// done names what was done since the step before.
func (p *phases) done(step string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	p.steps = append(p.steps, slog.Duration(step, now.Sub(p.last).Round(10*time.Microsecond)))
	p.last = now
}

// log writes the steps so far and begins anew.
func (p *phases) log(l *slog.Logger, what string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	l.Debug(what, p.steps...)
	p.steps = nil
}
