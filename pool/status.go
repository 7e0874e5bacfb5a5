package pool

import (
	"cmp"
	"slices"
)

// Status is what the pool has, and what it has done.
type Status struct {
	// Off: there is no pool, and every container boots its machine.
	Off bool `json:"off,omitempty"`
	Settings
	// Used is the host's memory that ready sandboxes, those that they are copied from, and templates have together, bytes.
	Used    int64         `json:"used"`
	Classes []ClassStatus `json:"classes"`
}

// ClassStatus is Status of one size.
type ClassStatus struct {
	Class
	Template bool `json:"template"` // loaded
	Parents  int  `json:"parents"`  // frozen ones, that others are copied from
	Ready    int  `json:"ready"`
	Filling  int  `json:"filling"` // being made
	Wanted   int  `json:"wanted"`  // how many are to be ready
	// Prepared are the preparations that were wanted lately, the last one first. Those that are ready count as Ready, too.
	Prepared []PreparedStatus `json:"prepared,omitempty"`
	// Taken were ready when they were wanted, TakenPrepared of them prepared for who wanted them; Restored were made on the spot, Missed not by the
	// pool at all.
	Taken         uint64 `json:"taken"`
	TakenPrepared uint64 `json:"takenPrepared"`
	Restored      uint64 `json:"restored"`
	Missed        uint64 `json:"missed"`
	Failures      int    `json:"failures"` // in a row
	// Private is the host's memory that one ready sandbox has for itself; Shared is the template's. Bytes.
	Private int64 `json:"private"`
	Shared  int64 `json:"shared"`
}

// PreparedStatus is one preparation of a size.
type PreparedStatus struct {
	Name    string `json:"name"` // Preparation.Name
	Ready   int    `json:"ready"`
	Filling int    `json:"filling"`
}

// Status tells what there is, sizes in order.
func (p *Pool) Status() Status {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.now()
	s := Status{Settings: p.settings, Used: p.used(), Classes: []ClassStatus{}}
	s.Memory = p.budget()
	for _, c := range p.classes {
		one := ClassStatus{
			Class: c.Class, Template: c.template != nil, Parents: len(c.parents()), Ready: len(c.ready), Filling: c.filling, Wanted: p.target(c, now),
			Taken: c.taken, TakenPrepared: c.takenPrepared, Restored: c.restored, Missed: c.missed, Failures: c.failures, Private: c.private,
		}
		for _, w := range c.wishes {
			one.Prepared = append(one.Prepared, PreparedStatus{Name: w.Name, Ready: c.count(w.Key), Filling: w.filling})
		}
		if c.template != nil {
			one.Shared = c.template.size
		}
		s.Classes = append(s.Classes, one)
	}
	slices.SortFunc(s.Classes, func(a, b ClassStatus) int {
		return cmp.Or(cmp.Compare(a.Memory, b.Memory), cmp.Compare(a.CPUs, b.CPUs))
	})
	return s
}
