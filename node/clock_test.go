package node

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/moby/moby/api/types/container"
)

// A machine's clock stands still when the machine does: whoever lets it go on sets it, also where that is another daemon.
func TestClockAfterStandingStill(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		ctx := context.Background()
		id := h.run("one", "sleep")
		right := func(what string) {
			t.Helper()
			synctest.Wait()
			h.wantState("one", container.StateRunning, 0)
			m := h.driver.Machine(id)
			if off := time.Since(time.Unix(0, m.Identity().UnixNanos)); off > time.Second || m.Paused() || m.Frozen(id) {
				t.Errorf("%s: the clock is %v late; it stands still: %v, %v", what, off, m.Paused(), m.Frozen(id))
			}
		}
		right("at first")
		if err := h.ContainerPause(ctx, "one"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		if err := h.ContainerUnpause(ctx, "one"); err != nil {
			t.Fatal(err)
		}
		right("unpaused")

		// A daemon that is killed while it hibernates the container leaves the machine paused.
		if err := h.driver.Machine(id).Pause(ctx); err != nil {
			t.Fatal(err)
		}
		h.crash()
		if err := os.MkdirAll(filepath.Join(h.path("root", "containers", id), "state"), 0o700); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		h.open()
		right("found by another daemon")
	})
}
