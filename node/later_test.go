package node

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/moby/moby/api/types/container"
	bolt "go.etcd.io/bbolt"
)

// refusing makes the disk refuse every change of the state, until it is called again.
func (h *house) refusing() (allow func()) {
	h.t.Helper()
	st := *h.store
	h.replace(store{new(bolt.DB), new(bolt.DB)}) // as one that may only be read
	return func() { h.replace(st) }
}

// replace gives the node another store, while nobody does anything with the one it has. It holds the locks that all take
// who are going to.
func (h *house) replace(st store) {
	synctest.Wait()
	h.unsaved.mu.Lock()
	defer h.unsaved.mu.Unlock()
	for _, c := range h.Node.all() {
		c.mu.Lock()
		defer c.mu.Unlock()
	}
	*h.store = st
}

// What has been told while the disk took nothing, the next daemon knows, once it takes things again; and what was to go goes.
func TestSavedLater(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		ctx := context.Background()
		id := h.run("one", "sleep")
		h.run("other", "sleep")
		rm := h.run("rm", "sleep", autoRemove)
		allow := h.refusing()
		if _, err := h.tryCreate("refused", "sleep"); err == nil {
			t.Error("a container is created")
		}
		h.driver.Machine(id).Process(id).Exit(3)
		h.driver.Machine(rm).Process(rm).Exit(0)
		if code := h.wait("one", container.WaitConditionNotRunning); code != 3 {
			t.Errorf("it ended with %d", code)
		}
		if err := h.ContainerStop(ctx, "other", "", nil); err != nil {
			t.Error(err)
		}
		h.torn("one")
		h.torn("other")
		time.Sleep(time.Hour)
		allow()
		time.Sleep(2 * maxAgain)
		synctest.Wait()
		if _, err := h.find(rm); err == nil {
			t.Error("what was to go is still there")
		}
		h.crash()
		h.open()
		synctest.Wait()
		h.wantState("one", container.StateExited, 3)
		h.wantState("other", container.StateExited, 143)
		if all := h.all(); len(all) != 2 {
			t.Errorf("%d containers", len(all))
		}
		h.start("one")
		h.wantState("one", container.StateRunning, 0)
	})
}

// A daemon that ends saves what it could not before.
func TestSavedAtTheEnd(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		id := h.run("one", "sleep")
		allow := h.refusing()
		h.driver.Machine(id).Process(id).Exit(3)
		if code := h.wait("one", container.WaitConditionNotRunning); code != 3 {
			t.Errorf("it ended with %d", code)
		}
		h.torn("one")
		allow()
		h.restart()
		h.wantState("one", container.StateExited, 3)
	})
}
