package node

import (
	"context"
	"fmt"

	"github.com/cradlevm/cradle/pool"
	"github.com/cradlevm/cradle/sandbox"
)

// Cost is what a running container uses in its guest, by the guest's own account, beside what its virtual machine costs
// the host. Bytes; nanoseconds of processor time since the container, or its machine, began. Of a paused one, whose guest
// answers nothing, the guest's part is zero.
type Cost struct {
	ID            string `json:"id"`
	Name          string `json:"name"`
	PID           int    `json:"pid"`           // of the virtual machine's process
	MachineMemory int64  `json:"machineMemory"` // what the guest may use
	GuestMemory   int64  `json:"guestMemory"`
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
		s, err := r.vm.Stats(ctx, c.id)
		if err != nil {
			return Cost{}, fmt.Errorf("cost of container %s: %w", c.id, ending(c, err))
		}
		out.GuestMemory, out.GuestCPU = int64(s.MemoryBytes), int64(s.CPUNanos)
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

// costOf is pool.CostOf, or what a test has put in its place.
func (n *Node) costOf(pid int) (pool.Cost, error) {
	if n.options.CostOf != nil {
		return n.options.CostOf(pid)
	}
	return pool.CostOf(pid)
}

// Costs is ContainerCost of all that run; one that ends meanwhile is left out. In no order.
func (n *Node) Costs(ctx context.Context) []Cost {
	out := []Cost{}
	for _, c := range n.all() {
		if cost, err := n.ContainerCost(ctx, c.id); err == nil {
			out = append(out, cost)
		}
	}
	return out
}
