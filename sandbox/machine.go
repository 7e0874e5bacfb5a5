package sandbox

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"

	"github.com/cradlevm/cradle/api"
	"github.com/cradlevm/cradle/vm"
)

// Plug attaches disks, all at the same time: a monitor takes as long for many as for a few.
func (s *Sandbox) Plug(ctx context.Context, disks ...vm.Disk) error {
	p, ok := s.vm.(vm.DiskPlugger)
	if !ok {
		return api.Errorf(api.CodeUnsupported, "this virtual machine monitor cannot plug disks")
	}
	return each(disks, func(d vm.Disk) error { return p.Plug(ctx, d) })
}

// Unplug detaches disks that nothing in the guest uses, all at the same time. Those that are not there are gone already.
func (s *Sandbox) Unplug(ctx context.Context, disks ...vm.Disk) error {
	p, ok := s.vm.(vm.DiskPlugger)
	if !ok {
		return api.Errorf(api.CodeUnsupported, "this virtual machine monitor cannot unplug disks")
	}
	return each(disks, func(d vm.Disk) error {
		if err := p.Unplug(ctx, d.Serial); err != nil && !errors.Is(err, vm.ErrNotFound) {
			return err
		}
		return nil
	})
}

// each calls f for all disks at once and joins the errors.
func each(disks []vm.Disk, f func(vm.Disk) error) error {
	errs := make([]error, len(disks))
	var all sync.WaitGroup
	for i, d := range disks {
		all.Go(func() { errs[i] = f(d) })
	}
	all.Wait()
	return errors.Join(errs...)
}

// DialNIC opens the stream of a network interface (vm.Streamer).
func (s *Sandbox) DialNIC(ctx context.Context, nic int) (net.Conn, error) {
	v, ok := s.vm.(vm.Streamer)
	if !ok {
		return nil, api.Errorf(api.CodeUnsupported, "this virtual machine monitor has no interfaces that are streams")
	}
	return v.DialNIC(ctx, nic)
}

// CutNIC parts a network interface from its TAP (vm.NICCutter).
func (s *Sandbox) CutNIC(ctx context.Context, nic int) error {
	v, ok := s.vm.(vm.NICCutter)
	if !ok {
		return api.Errorf(api.CodeUnsupported, "this virtual machine monitor cannot part an interface from its TAP")
	}
	return v.CutNIC(ctx, nic)
}

// Snapshot saves the sandbox in dir; it must have no containers and no disks. Kill is all that can be done with it then.
func (s *Sandbox) Snapshot(ctx context.Context, dir string) error {
	v, ok := s.vm.(vm.Snapshotter)
	if !ok {
		return api.Errorf(api.CodeUnsupported, "this virtual machine monitor cannot save")
	}
	s.Disconnect()
	return v.Snapshot(ctx, dir)
}

// Source makes the sandbox stand still for good; others are restored from what it returns. Kill is all that can be done with it
// then. errors.ErrUnsupported where that cannot be.
func (s *Sandbox) Source(ctx context.Context) (vm.Source, error) {
	v, ok := s.vm.(vm.Freezer)
	if !ok {
		return nil, fmt.Errorf("freeze virtual machine: %w", errors.ErrUnsupported)
	}
	s.Disconnect()
	return v.Freeze(ctx)
}
