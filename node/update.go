package node

import (
	"context"
	"errors"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/cradlevm/cradle/api"
	"github.com/cradlevm/cradle/node/runspec"
	"github.com/cradlevm/cradle/sandbox"
)

// ContainerUpdate implements dockerapi.Backend. A running container's limits change within what its VM has; the next
// start makes a VM of the new size.
func (n *Node) ContainerUpdate(ctx context.Context, name string, u container.UpdateConfig) (container.UpdateResponse, error) {
	c, err := n.find(name)
	if err != nil {
		return container.UpdateResponse{}, err
	}
	c.op.Lock()
	defer c.op.Unlock()
	c.closeDesk() // its limits are of before
	rec := c.snapshot()
	if rec.Hibernated { // its limits are in the memory that was saved
		return container.UpdateResponse{}, cannotUpdate(c, conflict("it is hibernated, let it go on first"))
	}
	updated, resources, err := runspec.Update(rec.spec(), u, n.settings)
	if err != nil {
		return container.UpdateResponse{}, cannotUpdate(c, err)
	}
	if r, err := c.current(); err == nil {
		if err := c.updateRun(ctx, r, rec, updated, resources); err != nil {
			return container.UpdateResponse{}, cannotUpdate(c, err)
		}
	}
	if err := c.change(func(r *record) { r.HostConfig = *updated.Host }); err != nil {
		return container.UpdateResponse{}, err
	}
	c.emit(events.ActionUpdate, nil)
	return container.UpdateResponse{Warnings: []string{}}, nil
}

// updateRun changes the limits inside of the container's VM.
func (c *ctr) updateRun(ctx context.Context, r *run, rec record, updated runspec.Container, resources *specs.LinuxResources) error {
	if sandbox := c.node.machineOf(rec); sandbox != nil {
		machine := sandbox.VM
		if memory := max(updated.Host.Memory, updated.Host.MemoryReservation); memory > machine.Memory {
			return invalid("%d MiB of memory are more than the container's virtual machine has, which is %d MiB; a container that is not running can be given more",
				memory>>20, machine.Memory>>20)
		}
		if cpus := runspec.CPUsNeeded(updated.Host, c.node.settings); cpus > machine.CPUs {
			return invalid("%d CPUs are more than the container's virtual machine has, which is %d; a container that is not running can be given more",
				cpus, machine.CPUs)
		}
	}
	if err := c.wakeUp(ctx, r); err != nil {
		return err
	}
	defer c.sleepAgain(r)
	err := r.vm.Update(ctx, api.UpdateRequest{ID: c.id, Resources: resources})
	if errors.Is(err, sandbox.ErrGone) { // it has just ended: the next start has the new limits
		return nil
	}
	var answered *api.Error
	if errors.As(err, &answered) {
		return invalid("%s", clean(answered.Message))
	}
	return err
}

// cannotUpdate is docker's frame around what keeps a container from being updated.
func cannotUpdate(c *ctr, err error) error {
	return &classed{"Cannot update container " + c.id + ": " + err.Error(), err}
}
