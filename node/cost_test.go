package node

import (
	"context"
	"testing"
	"testing/synctest"

	"github.com/cradlevm/cradle/pool"
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
