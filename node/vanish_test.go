package node

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"

	"github.com/moby/moby/api/types/container"
)

// The client is answered, and name and image are free, while the VM is still being ended; the daemon's end waits for it.
func TestRemovedBeforeTheMachineHasGone(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		let := h.driver.HoldKills()
		id := h.create("a", "exit 9", autoRemove)
		removed := h.waiting("a", container.WaitConditionRemoved)
		h.start("a")
		if code := h.result(removed); code != 9 {
			t.Errorf("exit code %d", code)
		}
		if n := len(h.driver.Running()); n != 1 {
			t.Errorf("%d machines run; want the one whose end is held up", n)
		}
		_, err := h.ContainerWait(context.Background(), id, "")
		wantNotFound(t, err)
		second := h.create("a", "exit 0") // the name is free
		if err := h.ContainerRemove(context.Background(), second, false, false); err != nil {
			t.Fatal(err)
		}
		closed := make(chan error, 1)
		go func() { closed <- h.Node.Close() }()
		synctest.Wait()
		select {
		case <-closed:
			t.Error("the daemon ends while a machine is being ended")
		default:
		}
		let()
		if err := <-closed; err != nil {
			t.Error(err)
		}
		h.open()
		h.empty()
	})
}

// A disk that refuses the removal costs no exit code: the long way is taken.
func TestVanishRefused(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		h.create("a", "exit 9", autoRemove)
		next := h.waiting("a", container.WaitConditionNextExit)
		h.images.failRelease(errors.New("the disk is full"))
		h.start("a")
		if code := h.result(next); code != 9 {
			t.Errorf("exit code %d", code)
		}
		synctest.Wait() // until the removal has failed, too
		h.images.failRelease(nil)
		if err := h.ContainerRemove(context.Background(), "a", true, false); err != nil {
			t.Error(err)
		}
	})
}
