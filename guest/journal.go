package guest

import (
	"encoding/binary"
	"sync"

	"github.com/cradlevm/cradle/api"
)

// journal keeps what a process has written until the host has it safe. It is the concatenation of output records
// from offset base on; a writer waits when it is full, a reader when it has seen everything.
type journal struct {
	mu      sync.Mutex
	ring    []byte // its length is a power of two; grows to api.OutputRing
	base    uint64 // what is before has been acknowledged
	end     uint64
	closed  bool          // nothing more comes
	changed chan struct{} // closed and replaced at each change somebody waits for
	waiting bool
}

// firstRing is enough for what most processes say before anyone listens.
const firstRing = 4 << 10

func newJournal() *journal { return &journal{changed: make(chan struct{})} }

// wake tells all who wait to look again. The lock is held.
func (j *journal) wake() {
	if j.waiting {
		close(j.changed)
		j.changed = make(chan struct{})
		j.waiting = false
	}
}

// wait returns the channel that the next change closes. The lock is held.
func (j *journal) wait() <-chan struct{} {
	j.waiting = true
	return j.changed
}

// write appends payload as one record, waiting for room. It reports whether the record went in before give closed.
func (j *journal) write(stream byte, payload []byte, give <-chan struct{}) bool {
	size := api.OutputHeaderSize + len(payload)
	j.mu.Lock()
	for int(j.end-j.base)+size > api.OutputRing {
		c := j.wait()
		j.mu.Unlock()
		select {
		case <-c:
		case <-give:
			return false
		}
		j.mu.Lock()
	}
	defer j.mu.Unlock()
	if j.closed {
		return false
	}
	j.grow(int(j.end-j.base) + size)
	var head [api.OutputHeaderSize]byte
	head[0] = stream
	binary.BigEndian.PutUint32(head[4:], uint32(len(payload)))
	j.put(head[:])
	j.put(payload)
	j.wake()
	return true
}

func (j *journal) put(p []byte) {
	at := int(j.end) & (len(j.ring) - 1)
	n := copy(j.ring[at:], p)
	copy(j.ring, p[n:])
	j.end += uint64(len(p))
}

// grow makes the ring hold need bytes, OutputRing at most.
func (j *journal) grow(need int) {
	if need <= len(j.ring) {
		return
	}
	size := max(firstRing, len(j.ring))
	for size < need {
		size *= 2
	}
	old := journal{ring: j.ring, base: j.base, end: j.end}
	j.ring = make([]byte, size)
	for at := old.base; at < old.end; {
		chunk := old.slice(at)
		n := copy(j.ring[int(at)&(size-1):], chunk)
		at += uint64(n)
	}
}

// slice returns a run of bytes from offset at on, up to end or to where the ring wraps.
func (j *journal) slice(at uint64) []byte {
	from := int(at) & (len(j.ring) - 1)
	return j.ring[from:min(len(j.ring), from+int(j.end-at))]
}

// read copies what follows offset at into p, waiting until there is something or the journal has ended, and tells
// whether that was all. It returns 0 and false when give closed.
func (j *journal) read(at uint64, p []byte, give <-chan struct{}) (n int, ended bool, err error) {
	j.mu.Lock()
	for {
		if at < j.base || at > j.end {
			defer j.mu.Unlock()
			return 0, false, j.outside(at)
		}
		if at < j.end || j.closed {
			defer j.mu.Unlock()
			if at < j.end {
				n = copy(p, j.slice(at))
			}
			return n, j.closed && at+uint64(n) == j.end, nil
		}
		c := j.wait()
		j.mu.Unlock()
		select {
		case <-c:
		case <-give:
			return 0, false, nil
		}
		j.mu.Lock()
	}
}

// outside says what is wrong with an offset that the journal does not hold. The lock is held.
func (j *journal) outside(at uint64) error {
	if at < j.base {
		return api.Errorf(api.CodeFailedPrecondition, "output before offset %d has been acknowledged; %d was asked for", j.base, at)
	}
	return api.Errorf(api.CodeInvalid, "output ends at offset %d; %d was asked for", j.end, at)
}

// begin returns the offset from which output can be read when offset at is asked for: at itself or, with left, the
// oldest there is after it.
func (j *journal) begin(at uint64, left bool) (uint64, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if left && at < j.base {
		return j.base, nil
	}
	if at < j.base || at > j.end {
		return 0, j.outside(at)
	}
	return at, nil
}

// length is the offset after all that was written so far.
func (j *journal) length() uint64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.end
}

// acknowledge forgets what is before offset at. An offset that has not been written yet is not believed.
func (j *journal) acknowledge(at uint64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if at > j.base && at <= j.end {
		j.base = at
		if j.closed && j.base == j.end {
			j.ring = nil
		}
		j.wake()
	}
}

// close says that nothing more comes.
func (j *journal) close() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.closed = true
	j.wake()
}
