package node

import (
	"context"
	"runtime"
	"testing"
	"testing/synctest"

	"github.com/moby/moby/api/types/container"
)

// inBubble runs a test with a clock of its own: it moves when all wait, so nothing is slept for, and no goroutine may
// be left at the end.
func inBubble(t *testing.T, test func(t *testing.T, h *house)) {
	t.Helper()
	// yamux pools its timers, and one from a bubble may not be used outside, nor the other way. Two collections empty a
	// pool.
	emptyPools := func() { runtime.GC(); runtime.GC() }
	emptyPools()
	defer emptyPools()
	synctest.Test(t, func(t *testing.T) { test(t, newHouse(t)) })
}

func TestLife(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		ctx := context.Background()
		h.create("one", "sleep")
		h.wantState("one", container.StateCreated, 0)
		wantNotModified(t, h.ContainerStop(ctx, "one", "", nil))
		wantConflict(t, h.ContainerKill(ctx, "one", ""))
		_, err := h.tryCreate("one", "sleep")
		wantConflict(t, err)

		h.start("one")
		h.wantState("one", container.StateRunning, 0)
		wantNotModified(t, h.ContainerStart(ctx, "one"))
		wantConflict(t, h.ContainerRemove(ctx, "one", false, false))
		if err := h.ContainerStop(ctx, "one", "", nil); err != nil {
			t.Fatal(err)
		}
		h.wantState("one", container.StateExited, 143)
		m := h.driver.Started()

		h.start("one")
		if h.driver.Started() != m+1 {
			t.Error("a start has no machine of its own")
		}
		if err := h.ContainerRestart(ctx, "one", "INT", nil); err != nil {
			t.Fatal(err)
		}
		h.wantState("one", container.StateRunning, 0)
		if err := h.ContainerKill(ctx, "one", ""); err != nil {
			t.Fatal(err)
		}
		h.wantState("one", container.StateExited, 137)

		if err := h.ContainerRename(ctx, "one", "two"); err != nil {
			t.Fatal(err)
		}
		wantNotFound(t, h.ContainerStart(ctx, "one"))
		if err := h.ContainerRemove(ctx, "two", false, false); err != nil {
			t.Fatal(err)
		}
		h.empty()
	})
}

func TestExitCodes(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		for command, want := range map[string]int{"true": 0, "exit 7": 7, "exit 255": 255} {
			id := h.run("", command)
			if got := h.wait(id, container.WaitConditionNotRunning); got != want {
				t.Errorf("%s: exit code %d", command, got)
			}
			h.torn(id)
		}
		h.noMachine()
	})
}

// The disk of a container that stays is flushed before its machine ends.
func TestPoliteEnd(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		id := h.run("", "sleep")
		m := h.driver.Machine(id)
		if err := h.ContainerStop(context.Background(), id, "", nil); err != nil {
			t.Fatal(err)
		}
		h.torn(id)
		if !m.Polite() {
			t.Error("the machine was not ended politely")
		}
	})
}
