package node

import (
	"context"
	"errors"
	"math"
	"testing"
	"testing/synctest"
	"time"

	"github.com/moby/moby/api/types/container"

	"github.com/cradlevm/cradle/api"
	"github.com/cradlevm/cradle/api/wire"
	"github.com/cradlevm/cradle/pool"
	"github.com/cradlevm/cradle/sandbox/sandboxtest"
)

// What a container uses in its guest and what its machine costs the host are two things, told side by side.
func TestCost(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		ctx := context.Background()
		id := h.run("one", "sleep")
		h.Node.options.CostOf = func(int) (pool.Cost, error) { return pool.Cost{Private: 11, Shared: 12, CPU: 13}, nil }
		cost, err := h.ContainerCost(ctx, "one")
		if err != nil || cost.ID != id || cost.Name != "one" || cost.HostPrivate != 11 || cost.HostShared != 12 || cost.HostCPU != 13 ||
			cost.MachineMemory == 0 || cost.GuestMemory != 1<<20 || cost.GuestCPU != 5 {
			t.Errorf("%+v, %v", cost, err)
		}
		if err := h.ContainerPause(ctx, "one"); err != nil {
			t.Fatal(err)
		}
		if cost, err = h.ContainerCost(ctx, "one"); err != nil || cost.HostPrivate != 11 || cost.GuestMemory != 0 {
			t.Errorf("paused: %+v, %v", cost, err)
		}
		h.create("two", "sleep")
		_, err = h.ContainerCost(ctx, "two")
		wantConflict(t, err)
		_, err = h.ContainerCost(ctx, "nobody")
		wantNotFound(t, err)
		if all := h.Costs(ctx); len(all) != 1 || all[0].ID != id {
			t.Errorf("all: %+v", all)
		}
		// A guest that does not answer has its costs, and holds up nobody.
		h.run("three", "sleep")
		h.driver.Fault(on(api.MethodStats, silence))
		began := time.Now()
		if all := h.Costs(ctx); len(all) != 2 || all[0].HostPrivate != 11 || all[0].GuestMemory != 0 || time.Since(began) > accountLimit {
			t.Errorf("silent, after %s: %+v", time.Since(began), all)
		}
		err = h.ContainerStats(ctx, "three", false, true, func(container.StatsResponse) error { return nil })
		if !errors.Is(err, errSilent) {
			t.Errorf("silent: %v", err)
		}
		// It may say anything.
		h.driver.Fault(on(api.MethodStats, func(_ *sandboxtest.Machine, c *wire.Call) {
			c.Finish(api.StatsResult{MemoryBytes: math.MaxUint64, CPUNanos: math.MaxUint64})
		}))
		if cost, err = h.ContainerCost(ctx, "three"); err != nil || cost.GuestMemory != math.MaxInt64 || cost.GuestCPU != math.MaxInt64 {
			t.Errorf("%+v, %v", cost, err)
		}
		h.driver.Fault(on(api.MethodStats, func(_ *sandboxtest.Machine, c *wire.Call) {
			c.Finish(api.StatsResult{MemoryBytes: 5, MemoryFile: 7})
		}))
		if cost, err = h.ContainerCost(ctx, "three"); err != nil || cost.GuestMemory != 0 {
			t.Errorf("%+v, %v", cost, err)
		}
		h.driver.Fault(nil)
		// A process that has gone may have left its id to another one: nothing is told of that.
		h.Node.options.CostOf = func(int) (pool.Cost, error) {
			h.driver.Machine(id).Die(nil)
			synctest.Wait()
			return pool.Cost{Private: 99}, nil
		}
		cost, err = h.ContainerCost(ctx, "one")
		wantConflict(t, err)
		if cost.HostPrivate != 0 {
			t.Errorf("%+v", cost)
		}
	})
}
