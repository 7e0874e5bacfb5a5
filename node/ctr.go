package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"

	"github.com/cradlevm/cradle/api"
	"github.com/cradlevm/cradle/dockerapi"
	"github.com/cradlevm/cradle/node/logfile"
	"github.com/cradlevm/cradle/node/runspec"
)

// ctr is one container. See the package comment for its locks.
type ctr struct {
	node   *Node
	id     string
	hidden bool // a shadow: it has no record

	op opLock

	mu       sync.Mutex
	rec      record
	log      *logfile.Log // nil with log driver none, or before the first start
	run      *run         // nil while there is no VM
	within   *run         // the run whose VM it shares; nil when it has one of its own, or none
	stuck    error        // why the VM of its record cannot be reached
	abort    func(error)  // ends the start under way; nil when there is none
	removing bool
	removed  bool
	stopping int           // stops under way: what is saved now would be at its end
	keep     bool          // a restart is under way: the end of the run removes nothing
	backoff  time.Duration // before the last restart by policy
	waiters  map[*waiter]struct{}
	attached map[*attachment]struct{}
	health   *container.Health
	gone     chan struct{} // closed when the container has been removed

	execs []*exec // guarded by the node's mu; in order of creation

	desk  *desk // guarded by op
	still stillness
}

// waiter is one wait call.
type waiter struct {
	condition container.WaitCondition
	result    chan dockerapi.WaitResult // buffered: one value
}

func newCtr(n *Node, r record) *ctr {
	return &ctr{
		node: n, id: r.ID, rec: r, op: make(opLock, 1),
		waiters: map[*waiter]struct{}{}, attached: map[*attachment]struct{}{}, gone: make(chan struct{}),
	}
}

// dir is the container's directory of lasting files.
func (c *ctr) dir() string { return filepath.Join(c.node.options.Root, "containers", c.id) }

// opLock lets a container's lifecycle changes happen one at a time. It may be held for as long as a start takes.
type opLock chan struct{}

func (l opLock) Lock()   { l <- struct{}{} }
func (l opLock) Unlock() { <-l }

// LockWithin locks unless somebody else has for all of this time, and tells whether it did.
func (l opLock) LockWithin(limit time.Duration) bool {
	t := time.NewTimer(limit)
	defer t.Stop()
	select {
	case l <- struct{}{}:
		return true
	case <-t.C:
		return false
	}
}

// process names the container's first process to its agent.
func (c *ctr) process() api.ProcessRef { return api.ProcessRef{ID: c.id} }

// snapshot returns the record as it is now.
func (c *ctr) snapshot() record {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rec
}

// isUp reports whether the container is running or paused.
func (c *ctr) isUp() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return up(c.rec.Status)
}

func up(s container.ContainerState) bool {
	return s == container.StateRunning || s == container.StatePaused
}

// isActive reports whether the container is up or about to be again.
func (c *ctr) isActive() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return active(c.rec.Status)
}

func active(s container.ContainerState) bool { return up(s) || s == container.StateRestarting }

// change applies f to the record and saves it. The change is kept in memory also when the disk refuses it: what is
// true of a VM does not become untrue for a full disk. A container that has been removed stays so.
func (c *ctr) change(f func(*record)) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.removed {
		return notFound("No such container: %s", c.id)
	}
	f(&c.rec)
	if c.hidden {
		return nil
	}
	err := c.node.store.put(c.rec)
	if err != nil { // what it is now, it is, whatever the disk says
		c.node.unsaved.add(c)
	}
	return err
}

// current returns the run of a running or paused container.
func (c *ctr) current() (*run, error) {
	r, _, err := c.currentPaused()
	return r, err
}

// currentPaused is current that tells the two apart.
func (c *ctr) currentPaused() (r *run, paused bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.stuck != nil && up(c.rec.Status):
		return nil, false, c.stuck
	case c.run == nil || !up(c.rec.Status):
		return nil, false, conflict("container %s is not running", c.id)
	}
	return c.run, c.rec.Status == container.StatePaused, nil
}

// openLog opens the container's log, once; nil when it keeps none.
func (c *ctr) openLog() (*logfile.Log, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.log != nil || c.rec.HostConfig.LogConfig.Type == "none" {
		return c.log, nil
	}
	if c.removing { // its files must not come back
		return nil, notFound("No such container: %s", c.id)
	}
	o, err := runspec.Log(&c.rec.HostConfig)
	if err != nil {
		return nil, err
	}
	l, err := logfile.Open(filepath.Join(c.dir(), "log"), logfile.Options{MaxSize: o.MaxSize, MaxFiles: o.MaxFiles})
	if err != nil {
		return nil, fmt.Errorf("open log of container %s: %w", c.id, err)
	}
	c.log = l
	return l, nil
}

func (c *ctr) closeLog() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.log != nil {
		if err := c.log.Close(); err != nil {
			c.node.options.Log.Warn("close log", "container", c.id, "err", err)
		}
		c.log = nil
	}
}

// emit tells the event log of something that happened to the container.
func (c *ctr) emit(action events.Action, extra map[string]string) {
	c.node.emit(c.snapshot(), action, extra)
}

func (n *Node) emit(r record, action events.Action, extra map[string]string) {
	attributes := map[string]string{"name": r.Name, "image": r.Config.Image}
	for k, v := range r.Config.Labels {
		attributes[k] = v
	}
	for k, v := range extra {
		attributes[k] = v
	}
	n.events.add(events.ContainerEventType, action, r.ID, attributes)
}

// ContainerWait implements dockerapi.Backend.
func (n *Node) ContainerWait(ctx context.Context, name string, condition container.WaitCondition) (<-chan dockerapi.WaitResult, error) {
	c, err := n.find(name)
	if err != nil {
		return nil, err
	}
	w := &waiter{condition: condition, result: make(chan dockerapi.WaitResult, 1)}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.removed || ((condition == container.WaitConditionNotRunning || condition == "") && !active(c.rec.Status)) {
		w.result <- dockerapi.WaitResult{StatusCode: c.rec.ExitCode}
		return w.result, nil
	}
	c.waiters[w] = struct{}{}
	context.AfterFunc(ctx, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if _, waiting := c.waiters[w]; waiting {
			delete(c.waiters, w)
			w.result <- dockerapi.WaitResult{Err: ctx.Err()}
		}
	})
	return w.result, nil
}

// wake answers the waiters that wait for an exit or, when the container is removed, all of them. c.mu is held.
func (c *ctr) wake(removed bool) {
	for w := range c.waiters {
		if removed || w.condition != container.WaitConditionRemoved {
			delete(c.waiters, w)
			w.result <- dockerapi.WaitResult{StatusCode: c.rec.ExitCode}
		}
	}
}

// removeFiles deletes the container's lasting files.
func (c *ctr) removeFiles() error {
	if err := os.RemoveAll(c.dir()); err != nil {
		return fmt.Errorf("remove files of container %s: %w", c.id, err)
	}
	return nil
}

// waitFor returns nil when ch closes, an error when ctx or the time ends first.
func waitFor(ctx context.Context, ch <-chan struct{}, limit time.Duration) error {
	t := time.NewTimer(limit)
	defer t.Stop()
	select {
	case <-ch:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return errTimeout
	}
}

var errTimeout = errors.New("timed out")
