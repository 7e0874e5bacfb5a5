package node

import (
	"slices"
	"sync"
	"time"

	"github.com/cradlevm/cradle/pool"
)

// keptStarts is how many starts are remembered one by one.
const keptStarts = 1000

// The ways in which a container comes by its VM: also the names of the phases in which it does.
const (
	wayPrepared = "prepared" // one of the pool's was ready, prepared for the container's image
	wayTake     = "take"     // one of the pool's was ready
	wayRestore  = "restore"  // the pool made one on the spot
	wayBoot     = "boot"
)

// wayFrom is the way that a VM of the pool came.
func wayFrom(r *pool.Ready) string {
	switch {
	case r.Prepared != nil:
		return wayPrepared
	case r.Warm:
		return wayTake
	}
	return wayRestore
}

// Start is a container's start and, once that has come, its end.
type Start struct {
	Container string        `json:"container"`
	Began     time.Time     `json:"began"`
	Way       string        `json:"way"` // prepared, take, restore or boot
	Size      pool.Class    `json:"size"`
	Phases    []Phase       `json:"phases"`
	Output    time.Duration `json:"output,omitempty"` // when the first came, counted from Began; 0: none so far
}

// timings remember how long starts took.
type timings struct {
	mu     sync.Mutex
	recent []*start // the last keptStarts, in a ring
	next   int      // where in it the next one goes

	metrics *metrics
}

// start is a Start that is still growing.
type start struct {
	container string
	size      pool.Class
	phases    *phases
}

func newTimings() *timings { return &timings{metrics: newMetrics()} }

// add takes a start whose container now runs.
func (t *timings) add(container string, size pool.Class, p *phases) {
	t.mu.Lock()
	defer t.mu.Unlock()
	one := &start{container, size, p}
	if len(t.recent) < keptStarts {
		t.recent = append(t.recent, one)
	} else {
		t.recent[t.next] = one
	}
	t.next = (t.next + 1) % keptStarts
	all, _ := p.list()
	t.metrics.observe(size, all)
}

// list returns the starts that are remembered, the oldest first; with a container's id, its only.
func (t *timings) list(container string) []Start {
	t.mu.Lock()
	ordered := t.recent
	if len(t.recent) == keptStarts {
		ordered = slices.Concat(t.recent[t.next:], t.recent[:t.next])
	}
	ordered = slices.Clone(ordered)
	t.mu.Unlock()
	out := []Start{}
	for _, s := range ordered {
		if container == "" || s.container == container {
			all, first := s.phases.list()
			out = append(out, Start{
				Container: s.container, Began: s.phases.began, Way: wayOf(all), Size: s.size, Phases: all, Output: first,
			})
		}
	}
	return out
}

// wayOf tells from a start's phases how it came by its VM: the last way tried, since one may fail and another follow.
func wayOf(all []Phase) string {
	for _, p := range slices.Backward(all) {
		switch p.Name {
		case wayPrepared, wayTake, wayRestore, wayBoot:
			return p.Name
		}
	}
	return wayBoot // a VM that an earlier daemon started
}

// Starts returns the last starts, the oldest first; with a container's id, its only.
func (n *Node) Starts(container string) []Start { return n.timings.list(container) }
