package node

import (
	"sync"
	"time"

	cerrdefs "github.com/containerd/errdefs"
)

// A disk that is full, or may only be read for a while, costs what is asked for meanwhile. What has happened then, and been
// told, comes onto it once it can be written again.
const (
	firstAgain = time.Second
	maxAgain   = 30 * time.Second
)

// unsaved are containers whose records on the disk are not as they are.
type unsaved struct {
	mu   sync.Mutex
	set  map[*ctr]struct{}
	wake chan struct{} // there is a first one
}

func newUnsaved() *unsaved { return &unsaved{set: map[*ctr]struct{}{}, wake: make(chan struct{}, 1)} }

func (u *unsaved) add(c *ctr) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.set[c] = struct{}{}
	select {
	case u.wake <- struct{}{}:
	default:
	}
}

// take empties the set.
func (u *unsaved) take() map[*ctr]struct{} {
	u.mu.Lock()
	defer u.mu.Unlock()
	taken := u.set
	u.set = map[*ctr]struct{}{}
	return taken
}

// saveLater saves what could not be saved when it happened, until the daemon stops.
func (n *Node) saveLater() {
	defer n.running.Done()
	for {
		select {
		case <-n.ctx.Done():
			return
		case <-n.unsaved.wake:
		}
		for pause := firstAgain; ; pause = min(2*pause, maxAgain) {
			if !sleep(n.ctx, pause) {
				return
			}
			if n.saveAgain() {
				n.options.Log.Info("the state can be written again, and is")
				break
			}
		}
	}
}

// saveAgain saves what is not saved, and says whether nothing is left.
func (n *Node) saveAgain() (all bool) {
	all = true
	for c := range n.unsaved.take() {
		if err := c.change(func(*record) {}); err != nil && !cerrdefs.IsNotFound(err) { // it has added itself again
			all = false
		}
	}
	return all
}

// removeAtLast removes an ended container whatever keeps the disk from it for now, until the daemon stops: the next one goes
// on with it.
func (c *ctr) removeAtLast() {
	for pause := firstAgain; ; pause = min(2*pause, maxAgain) {
		c.op.Lock()
		err := c.remove()
		c.op.Unlock()
		if err == nil {
			return
		}
		if pause == firstAgain {
			c.node.options.Log.Error("remove container after its exit; it is tried again", "container", c.id, "err", err)
		}
		if !sleep(c.node.ctx, pause) {
			return
		}
	}
}
