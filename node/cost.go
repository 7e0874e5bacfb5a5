package node

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"time"

	"github.com/cradlevm/cradle/api"
	"github.com/cradlevm/cradle/pool"
	"github.com/cradlevm/cradle/sandbox"
)

// Cost is what a running container uses in its guest, by the guest's own account, beside what its virtual machine costs
// the host. Bytes; nanoseconds of processor time since the container, or its machine, began. Where the guest does not answer, as
// while it is paused, its part is zero.
type Cost struct {
	ID            string `json:"id"`
	Name          string `json:"name"`
	PID           int    `json:"pid"`           // of the virtual machine's process
	MachineMemory int64  `json:"machineMemory"` // what the guest may use
	GuestMemory   int64  `json:"guestMemory"`   // as `stats` has it: without inactive files, which the kernel gives up first
	GuestCPU      int64  `json:"guestCPU"`
	HostPrivate   int64  `json:"hostPrivate"` // what would be free without it
	HostShared    int64  `json:"hostShared"`  // what it uses together with others
	HostCPU       int64  `json:"hostCPU"`
}

// ContainerCost tells what a running container uses and costs. Of a machine that is shared, its owner has all costs. Conflict when it does not run.
func (n *Node) ContainerCost(ctx context.Context, name string) (Cost, error) {
	c, err := n.find(name)
	if err != nil {
		return Cost{}, err
	}
	r, paused, err := c.currentPaused()
	if err != nil {
		return Cost{}, err
	}
	rec := c.snapshot()
	out := Cost{ID: c.id, Name: rec.Name, PID: r.vm.PID()}
	if rec.Sandbox != nil {
		out.MachineMemory = rec.Sandbox.VM.Memory
	}
	if !paused {
		s, err := c.account(ctx, r)
		if err != nil && !errors.Is(err, errSilent) {
			return Cost{}, fmt.Errorf("cost of container %s: %w", c.id, ending(c, err))
		}
		out.GuestMemory, out.GuestCPU = bounded(s.MemoryBytes-min(s.MemoryFile, s.MemoryBytes)), bounded(s.CPUNanos)
	}
	if r.owner != nil { // the machine is counted once
		return out, nil
	}
	host, err := n.costOf(out.PID)
	select {
	case <-r.vm.Done(): // its process id may be another's by now
		return Cost{}, fmt.Errorf("cost of container %s: %w", c.id, ending(c, sandbox.ErrGone))
	default:
	}
	if err != nil {
		return Cost{}, fmt.Errorf("cost of container %s: %w", c.id, err)
	}
	out.HostPrivate, out.HostShared, out.HostCPU = host.Private, host.Shared, int64(host.CPU)
	return out, nil
}

// accountLimit bounds asking a guest for its account: one that does not answer must not hold up who asks about all.
const accountLimit = 5 * time.Second

var errSilent = errors.New("the guest does not answer")

// account asks a run's guest for its account of the container. errSilent when it does not answer.
func (c *ctr) account(ctx context.Context, r *run) (api.StatsResult, error) {
	limited, cancel := context.WithTimeout(ctx, accountLimit)
	defer cancel()
	s, err := r.vm.Stats(limited, c.id)
	if err != nil && limited.Err() != nil && ctx.Err() == nil {
		err = errSilent
	}
	return s, err
}

// bounded is a guest's number, which may be anything.
func bounded(n uint64) int64 { return int64(min(n, math.MaxInt64)) }

// costOf is pool.CostOf, or what a test has put in its place.
func (n *Node) costOf(pid int) (pool.Cost, error) {
	if n.options.CostOf != nil {
		return n.options.CostOf(pid)
	}
	return pool.CostOf(pid)
}

// Costs is ContainerCost of all that run; one that ends meanwhile is left out. In no order.
func (n *Node) Costs(ctx context.Context) []Cost {
	var mu sync.Mutex
	out := []Cost{}
	var asked sync.WaitGroup
	for _, c := range n.all() {
		asked.Go(func() {
			cost, err := n.ContainerCost(ctx, c.id)
			if err != nil {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			out = append(out, cost)
		})
	}
	asked.Wait()
	return out
}
