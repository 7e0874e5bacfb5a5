package node

import (
	"log/slog"
	"slices"
	"sync"
	"time"
)

// Phase is a step of a container's start or of its end.
type Phase struct {
	Name string `json:"name"`
	// End is when it was done, counted from the start's beginning; Took is how long it took. Nanoseconds in JSON.
	End  time.Duration `json:"end"`
	Took time.Duration `json:"took"`
}

// phases says where a container's time goes: how long each step of its start and of its end took. The debug log has
// them, and the node's timings (timings.go).
type phases struct {
	mu     sync.Mutex
	began  time.Time
	all    []Phase
	logged int           // so many of them are in the log
	first  time.Duration // when the first output came, counted from began; 0: none yet
}

func newPhases() *phases { return &phases{began: time.Now()} }

// done names what was done since the step before.
func (p *phases) done(step string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	end, last := time.Since(p.began), time.Duration(0)
	if len(p.all) > 0 {
		last = p.all[len(p.all)-1].End
	}
	p.all = append(p.all, Phase{Name: step, End: end, Took: end - last})
}

// split names two steps that were done since the step before, of which the first took so long: somebody else's word,
// believed as far as it can be.
func (p *phases) split(first string, took time.Duration, second string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	end, last := time.Since(p.began), time.Duration(0)
	if len(p.all) > 0 {
		last = p.all[len(p.all)-1].End
	}
	took = min(max(0, took), end-last)
	p.all = append(p.all, Phase{Name: first, End: last + took, Took: took}, Phase{Name: second, End: end, Took: end - last - took})
}

// output notes the first output.
func (p *phases) output() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.first == 0 {
		p.first = time.Since(p.began)
	}
}

// list returns the steps so far, and when the first output came.
func (p *phases) list() ([]Phase, time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.all), p.first
}

// log writes the steps that it has not written yet.
func (p *phases) log(l *slog.Logger, what string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var attributes []any
	for _, one := range p.all[p.logged:] {
		attributes = append(attributes, slog.Duration(one.Name, one.Took.Round(10*time.Microsecond)))
	}
	p.logged = len(p.all)
	l.Debug(what, attributes...)
}
