package network

import (
	"log/slog"
	"slices"
	"sync"
)

// deletionsAtOnce is how many TAPs are deleted side by side. Nearly all of the 20 to 30 ms that one takes is waiting for the kernel to
// be sure that nobody uses it, without the lock that other changes of interfaces need.
const deletionsAtOnce = 32

// spares are the TAPs that no machine has: those that are made before they are asked for, and those that machines have left, which
// are being deleted. What one guest has had no other gets: frames may wait in it, and its monitor could set filters and more on it.
type spares struct {
	links  *links
	log    *slog.Logger
	ahead  int           // how many are made before they are asked for
	places chan struct{} // of deletions

	step sync.RWMutex // shared while one TAP is made or deleted: who has it alone finds each TAP in one of the lists, or gone

	mu     sync.Mutex
	free   []string
	left   map[string]bool // by their machines, until they are deleted
	making bool
	closed bool
	work   sync.WaitGroup
}

func newSpares(l *links, log *slog.Logger, ahead int) *spares {
	return &spares{links: l, log: log, ahead: ahead, left: map[string]bool{}, places: make(chan struct{}, deletionsAtOnce)}
}

// take returns a TAP that passes nothing, if there is one.
func (s *spares) take() (string, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer s.fill()
	for len(s.free) > 0 {
		name := s.free[len(s.free)-1]
		s.free = s.free[:len(s.free)-1]
		if linkExists(name) { // nobody has deleted it meanwhile
			return name, true
		}
	}
	return "", false
}

// fill has TAPs made until there are enough. It is called with s.mu held.
func (s *spares) fill() {
	if s.making || s.closed || len(s.free) >= s.ahead {
		return
	}
	s.making = true
	s.work.Go(func() {
		for s.make() {
		}
	})
}

// make makes one TAP, and tells whether there is another to make.
func (s *spares) make() bool {
	s.step.RLock()
	defer s.step.RUnlock()
	name, err := s.links.makeTAP()
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil {
		s.free = append(s.free, name)
	} else { // it would be tried again and again
		s.log.Warn("no TAP is made ahead", "error", err)
	}
	s.making = err == nil && !s.closed && len(s.free) < s.ahead
	return s.making
}

// remove deletes a TAP, down and on no bridge, whose machine has gone: in the background, but for what is left after close.
func (s *spares) remove(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return s.links.removeTAP(name)
	}
	if !s.left[name] {
		s.left[name] = true
		s.work.Go(func() { s.delete(name) })
	}
	return nil
}

func (s *spares) delete(name string) {
	s.places <- struct{}{}
	defer func() { <-s.places }()
	s.step.RLock()
	defer s.step.RUnlock()
	if err := s.links.removeTAP(name); err != nil {
		s.log.Warn("a TAP whose machine has gone is left", "error", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.left, name)
}

// hold keeps all this from going on until release is called, and returns the TAPs that it is about.
func (s *spares) hold() (names []string, release func()) {
	s.step.Lock()
	s.mu.Lock()
	defer s.mu.Unlock()
	names = slices.Clone(s.free)
	for name := range s.left {
		names = append(names, name)
	}
	return names, s.step.Unlock
}

// close returns once nothing is going on any more, with the TAPs that are nobody's.
func (s *spares) close() []string {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.work.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	free := s.free
	s.free = nil
	return free
}
