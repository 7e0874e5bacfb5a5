package vmtest

import (
	"testing"
	"time"

	"github.com/cradlevm/cradle/vm/vmtest/guestapi"
)

// testForkProcessors copies a VM of two processors: in each copy both compute, their timers wake them in time, and the random numbers that they make
// themselves are no other copy's.
func (s *suite) testForkProcessors(t *testing.T) {
	c := s.config(t)
	c.CPUs = 2
	f := s.freeze(t, c)
	seen := map[uint64]bool{}
	for range 2 {
		m := s.fork(t, f)
		var all []guestapi.Processor
		call(t, m.session(), guestapi.MethodProcessors, nil, &all)
		if len(all) != c.CPUs {
			t.Fatalf("%d processors work, want %d", len(all), c.CPUs)
		}
		for i, p := range all {
			t.Logf("processor %d: %d rounds, slept %v", i, p.Rounds, time.Duration(p.SleptNanos))
			// A busy machine makes any sleep long, but not the shortest of many; a timer whose frequency is mistaken does.
			if p.Rounds == 0 || p.SleptNanos < guestapi.SleepNanos || p.SleptNanos > guestapi.SleepNanos*3/2 {
				t.Errorf("processor %d: %d rounds; slept %v, want little more than %v", i, p.Rounds, time.Duration(p.SleptNanos), time.Duration(guestapi.SleepNanos))
			}
			for _, number := range p.Random {
				if number != 0 && seen[number] {
					t.Errorf("processor %d: the random number %#x, which another processor, or a copy's, had", i, number)
				}
				seen[number] = true
			}
		}
		if err := m.Shutdown(within(t)); err != nil {
			t.Error(err)
		}
		m.end()
	}
}
