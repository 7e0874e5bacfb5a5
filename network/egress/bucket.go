package egress

import "time"

// bucket leaks; each of its times is when it would be empty.
type bucket struct {
	rate          Rate
	burst         time.Duration
	bytes, frames time.Time
}

func newBucket(r Rate) bucket {
	b := bucket{rate: r, burst: r.Burst}
	if b.burst <= 0 {
		b.burst = DefaultBurst
	}
	return b
}

func (b *bucket) limited() bool { return b.rate.BytesPerSecond > 0 || b.rate.PacketsPerSecond > 0 }

// spend takes a frame from the bucket, and tells whether there was room for it.
func (b *bucket) spend(now time.Time, bytes int) bool {
	if r := b.rate.PacketsPerSecond; r > 0 && !fill(&b.frames, now, b.burst, time.Second/time.Duration(r)) {
		return false
	}
	if r := b.rate.BytesPerSecond; r > 0 {
		return fill(&b.bytes, now, b.burst, time.Duration(uint64(bytes)*uint64(time.Second)/r))
	}
	return true
}

func fill(empty *time.Time, now time.Time, burst, cost time.Duration) bool {
	if empty.Before(now) {
		*empty = now
	}
	if empty.Sub(now) > burst {
		return false
	}
	*empty = empty.Add(cost)
	return true
}
