package node

import "sync"

const (
	// attachmentQueue is how many bytes of output may wait for a slow client before the container waits.
	attachmentQueue = 2 << 20
	// attachmentRest is how many may wait when the container has exited and waits no more: its whole journal, and all
	// that an agent may add which does not know its limits.
	attachmentRest = 8 << 20
)

// attachment is one client that sees the output as it comes.
type attachment struct {
	mu     sync.Mutex
	queue  [][]byte // framed records
	bytes  int      // in queue
	ended  bool     // nothing more comes
	gone   bool     // the client has left
	change chan struct{}
}

func newAttachment() *attachment { return &attachment{change: make(chan struct{})} }

// changed wakes all who wait. a.mu is held.
func (a *attachment) changed() {
	close(a.change)
	a.change = make(chan struct{})
}

// put queues a record. It waits for room until the client leaves or over is closed; after that a client that lags
// too far behind is left to itself.
func (a *attachment) put(record []byte, over <-chan struct{}) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for a.bytes >= attachmentQueue && !a.gone {
		change := a.change
		a.mu.Unlock()
		ended := false
		select {
		case <-change:
		case <-over:
			ended = true
		}
		a.mu.Lock()
		if ended {
			break
		}
	}
	if a.gone {
		return
	}
	if a.bytes >= attachmentRest {
		a.gone, a.queue = true, nil
	} else {
		a.queue, a.bytes = append(a.queue, record), a.bytes+len(record)
	}
	a.changed()
}

// take returns what is queued, if anything; whether more may come; and what is closed when there is news.
func (a *attachment) take() (records [][]byte, more bool, change <-chan struct{}) {
	a.mu.Lock()
	defer a.mu.Unlock()
	records = a.queue
	a.queue, a.bytes = nil, 0
	if len(records) > 0 {
		a.changed()
	}
	return records, !a.ended && !a.gone, a.change
}

// end says that nothing more comes.
func (a *attachment) end() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.ended = true
	a.changed()
}

// leave says that the client has gone.
func (a *attachment) leave() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.gone, a.queue, a.bytes = true, nil, 0
	a.changed()
}
