package pool

import (
	"errors"
	"fmt"
	"time"
)

// Bounds of Settings.
const (
	// MaxReady is the most that may be kept ready of one size.
	MaxReady = 1000
	// DefaultMin and DefaultMax are what a daemon that was told nothing keeps ready of a size in demand.
	DefaultMin, DefaultMax = 2, 16
)

// Settings say how much the pool keeps ready. They change while it runs.
type Settings struct {
	// Min and Max are how many of each size in demand are kept ready: as many as recent demand says, within them. With
	// a Max of 0 every Take restores on the spot.
	Min int `json:"min"`
	Max int `json:"max"`
	// Memory (bytes) is how much of the host's memory the ready ones and the templates may have together, measured,
	// not what the guests believe to have. 0: an eighth of the host's.
	Memory int64 `json:"memory"`
}

// Check reports settings that make no sense.
func (s Settings) Check() error {
	switch {
	case s.Min < 0 || s.Max < 0 || s.Memory < 0:
		return errors.New("minimum, maximum and memory of the pool must not be negative")
	case s.Max > MaxReady:
		return fmt.Errorf("a pool keeps %d of a size ready at most", MaxReady)
	case s.Min > s.Max:
		return fmt.Errorf("the pool's minimum of %d is more than its maximum of %d", s.Min, s.Max)
	}
	return nil
}

// Change is a request to the pool. What is nil, or false, is left as it is.
type Change struct {
	Min    *int   `json:"min,omitempty"`
	Max    *int   `json:"max,omitempty"`
	Memory *int64 `json:"memory,omitempty"`
	Drain  bool   `json:"drain,omitempty"`
	Refill bool   `json:"refill,omitempty"`
}

// With is s after what c sets. A maximum below the minimum takes the minimum with it, and the other way round, unless both
// are given.
func (s Settings) With(c Change) Settings {
	if c.Min != nil {
		s.Min = *c.Min
		if c.Max == nil {
			s.Max = max(s.Max, s.Min)
		}
	}
	if c.Max != nil {
		s.Max = *c.Max
		if c.Min == nil {
			s.Min = min(s.Min, s.Max)
		}
	}
	if c.Memory != nil {
		s.Memory = *c.Memory
	}
	return s
}

// Apply does what c asks for: settings first, then Drain, then Refill. Errors: Settings.Check's; nothing has happened then.
func (p *Pool) Apply(c Change) error {
	if err := p.Set(p.Settings().With(c)); err != nil {
		return err
	}
	if c.Drain {
		p.Drain()
	}
	if c.Refill {
		p.Refill()
	}
	return nil
}

// Settings are those in force.
func (p *Pool) Settings() Settings {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.settings
}

// Set puts s into force. Errors: Check's.
func (p *Pool) Set(s Settings) error {
	if err := s.Check(); err != nil {
		return err
	}
	p.mu.Lock()
	p.settings = s
	p.mu.Unlock()
	p.nudge()
	return nil
}

// Drain ends all that is ready and lets go of the templates in memory. What is on disk stays; a size is filled again
// when it is wanted again.
func (p *Pool) Drain() {
	p.mu.Lock()
	var all []*class
	for _, c := range p.classes {
		c.wanted, c.demand = time.Time{}, demand{}
		all = append(all, c)
	}
	p.mu.Unlock()
	for _, c := range all {
		p.drain(c)
	}
}

// Refill makes every size that the pool knows, the usual one at least, wanted now, also one that has failed too often.
func (p *Pool) Refill() {
	p.mu.Lock()
	p.class(p.o.Usual)
	for _, c := range p.classes {
		c.wanted, c.failures = p.now(), 0
	}
	p.mu.Unlock()
	p.nudge()
}
