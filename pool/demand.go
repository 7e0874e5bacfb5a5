package pool

import "time"

// How long demand is remembered, and how finely.
const (
	demandSlot  = 5 * time.Second
	demandSlots = 60
)

// demand remembers how many sandboxes of a size were wanted when: as many within five seconds as in the busiest five of
// the last five minutes are likely to be wanted again, and making one takes less than that.
type demand struct {
	began  time.Time // the beginning of slot 0; zero before the first one
	counts [demandSlots]int
	last   int64 // the slot that was counted last; those before it, a round at most, are in counts
}

// add counts one that is wanted now.
func (d *demand) add(now time.Time) {
	d.advance(now)
	d.counts[d.last%demandSlots]++
}

// peak is the highest number in any slot that is remembered.
func (d *demand) peak(now time.Time) int {
	d.advance(now)
	most := 0
	for _, n := range d.counts {
		most = max(most, n)
	}
	return most
}

// advance forgets what is too long ago. Slots are counted from the first one on, by the monotonic clock: how often the other is
// put right is of no matter.
func (d *demand) advance(now time.Time) {
	if d.began.IsZero() {
		d.began = now.Add(-time.Duration(now.UnixNano() % int64(demandSlot)))
	}
	slot := int64(now.Sub(d.began) / demandSlot)
	if slot-d.last > demandSlots {
		d.last, d.counts = slot, [demandSlots]int{}
	}
	for d.last < slot {
		d.last++
		d.counts[d.last%demandSlots] = 0
	}
}
