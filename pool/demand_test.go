package pool

import (
	"testing"
	"time"
	"unsafe"
)

// jumped is what the same moment is called after the wall clock was put on by d: time.Time has both clocks, the wall's seconds above
// 30 bits.
func jumped(t *testing.T, at time.Time, d time.Duration) time.Time {
	t.Helper()
	after := at
	*(*uint64)(unsafe.Pointer(&after)) += uint64(d/time.Second) << 30
	if after.Sub(at) != 0 || after.Round(0).Sub(at.Round(0)) != d {
		t.Skip("time.Time is made in another way by now")
	}
	return after
}

// Demand is remembered for as long as it is, however the clock on the wall is put right meanwhile.
func TestDemandWhenTheClockJumps(t *testing.T) {
	for _, jump := range []time.Duration{-1000 * time.Hour, 1000 * time.Hour} {
		var d demand
		at := time.Now()
		for range 4 {
			d.add(at)
		}
		after := jumped(t, at, jump)
		if n := d.peak(after); n != 4 {
			t.Errorf("jumped by %v, the demand is %d", jump, n)
		}
		for i := range 20 {
			d.add(after.Add(time.Duration(i) * 2 * demandSlot))
		}
		if n := d.peak(after.Add(20 * 2 * demandSlot)); n > 5 {
			t.Errorf("jumped by %v, one at a time is a demand of %d", jump, n)
		}
		if n := d.peak(after.Add((20*2 + demandSlots + 1) * demandSlot)); n != 0 {
			t.Errorf("jumped by %v, a demand of %d is not forgotten", jump, n)
		}
	}
}
