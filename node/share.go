package node

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/moby/moby/api/types/container"
	"golang.org/x/sys/unix"

	"github.com/cradlevm/cradle/api"
	"github.com/cradlevm/cradle/node/runspec"
	"github.com/cradlevm/cradle/sandbox"
	"github.com/cradlevm/cradle/vm"
)

// A sandbox belongs to the container that it was made for, its owner. Containers whose network mode is "container:…" share
// it: a guest has one network. Their disks are plugged into the same VM; they come and go as they like, and end when the
// owner does.

// place is where a container is that shares another's sandbox.
type place struct {
	Owner string   // id of the container whose sandbox it is
	Disks []string // serials of its disks there
}

// evictLimit is how long a container may outlive its SIGKILL when the owner of its sandbox ends.
const evictLimit = 10 * time.Second

// sharing are the containers that share a run's VM with the one the run is of.
type sharing struct {
	mu    sync.Mutex
	alone int                    // how many are at work who need the VM to be one container's only
	ended bool                   // the container has ended, or is about to
	with  map[*ctr]chan struct{} // closed when it has left
}

// admit lets a container into the VM of owner's run, until it leaves.
func (r *run) admit(owner, c *ctr) error {
	s := &r.sharing
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.ended:
		return conflict("cannot join network of a non running container: %s", owner.id)
	case s.alone > 0:
		return conflict("cannot join network of container %s: its virtual machine is being paused or saved", owner.id)
	}
	if s.with == nil {
		s.with = map[*ctr]chan struct{}{}
	}
	s.with[c] = make(chan struct{})
	return nil
}

// leave says that nothing of a container is left in the VM. Idempotent.
func (r *run) leave(c *ctr) {
	s := &r.sharing
	s.mu.Lock()
	defer s.mu.Unlock()
	if left := s.with[c]; left != nil {
		close(left)
		delete(s.with, c)
	}
}

// end keeps others from joining from now on, and returns those that have.
func (r *run) end() map[*ctr]chan struct{} {
	s := &r.sharing
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	return maps.Clone(s.with)
}

// ending tells whether the run's container has ended, or is about to.
func (r *run) ending() bool {
	s := &r.sharing
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ended
}

// sharers are the containers that run in the VM beside the one the run is of.
func (r *run) sharers() []*ctr {
	s := &r.sharing
	s.mu.Lock()
	all := slices.Collect(maps.Keys(s.with))
	s.mu.Unlock()
	return slices.DeleteFunc(all, func(c *ctr) bool { return !c.isUp() })
}

// exclusive keeps the VM of a run its container's alone until release, for what concerns all of the VM. A conflict when it is
// shared; what is docker's word for what was to be done.
func (c *ctr) exclusive(r *run, what string) (release func(), err error) {
	if r.owner != nil {
		return nil, conflict("container %s cannot be %s: it shares the virtual machine of another container", c.id, what)
	}
	s := &r.sharing
	s.mu.Lock()
	defer s.mu.Unlock()
	for other := range s.with {
		return nil, conflict("container %s cannot be %s: container %s shares its virtual machine", c.id, what, other.id)
	}
	s.alone++
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.alone--
	}, nil
}

// host finds the container whose sandbox one with this network mode is to share, and its run.
func (c *ctr) host(mode container.NetworkMode) (*ctr, *run, error) {
	target, err := c.node.find(mode.ConnectedContainer())
	if err != nil {
		return nil, nil, err
	}
	if target == c {
		return nil, nil, invalid("cannot join own network")
	}
	target.mu.Lock()
	status, r, within, stuck := target.rec.Status, target.run, target.rec.Within, target.stuck
	target.mu.Unlock()
	switch {
	case stuck != nil:
		return nil, nil, stuck
	case status == container.StateRestarting:
		return nil, nil, conflict("Container %s is restarting, wait until the container is running", target.id)
	case status == container.StatePaused:
		return nil, nil, conflict("cannot join network of a paused container: %s", target.id)
	case r == nil || status != container.StateRunning:
		return nil, nil, conflict("cannot join network of a non running container: %s", target.id)
	}
	if within != nil { // it shares another's itself
		if target, err = c.node.find(within.Owner); err != nil {
			return nil, nil, err
		}
		r = r.owner
	}
	return target, r, nil
}

// hostIsUp tells whether there is a sandbox to share. Where there never will be any, a start says so.
func (c *ctr) hostIsUp() bool {
	mode := c.snapshot().HostConfig.NetworkMode
	if !mode.IsContainer() {
		return true
	}
	if _, err := c.node.find(mode.ConnectedContainer()); err != nil {
		return true
	}
	_, _, err := c.host(mode)
	return err == nil
}

// moveIn plugs the container's disks into the sandbox that it is to share, and makes p's request fit it: names and the
// files that follow the network are the owner's. What undoes it is pushed.
func (c *ctr) moveIn(ctx context.Context, p *plan, steps *phases, undo *undoStack) (*sandbox.Sandbox, error) {
	rec := p.rec
	owner, r, err := c.host(rec.HostConfig.NetworkMode)
	if err != nil {
		return nil, err
	}
	if err := r.admit(owner, c); err != nil {
		return nil, err
	}
	undo.push("share of a virtual machine", func() error {
		c.mu.Lock()
		c.within = nil
		c.mu.Unlock()
		r.leave(c)
		return nil
	})
	if _, _, err := c.host(rec.HostConfig.NetworkMode); err != nil { // it was paused, or has ended, meanwhile
		return nil, err
	}
	its := owner.snapshot()
	if err := c.fits(rec, its); err != nil {
		return nil, err
	}
	spec := its.spec()
	if len(its.Links) > 0 {
		spec.Net = c.node.addressing(its, its.Links)
	}
	files, err := runspec.Files(spec)
	if err != nil {
		return nil, err
	}
	p.request.Files = slices.Concat(files, p.request.Files[len(files):])
	p.request.Spec.Hostname, p.request.Spec.Domainname = its.Config.Hostname, its.Config.Domainname
	where := &place{Owner: owner.id}
	for _, d := range p.config.VM.Disks {
		where.Disks = append(where.Disks, d.Serial)
	}
	undo.push("record", func() error { return c.change(func(r *record) { r.Within, r.Booting = nil, false }) })
	err = c.change(func(rec *record) {
		rec.Within, rec.Booting = where, true
		rec.Config.Hostname, rec.Config.Domainname = its.Config.Hostname, its.Config.Domainname
		c.within = r
	})
	if err != nil {
		return nil, err
	}
	if err := c.makeScratch(ctx, rec); err != nil {
		return nil, err
	}
	undo.push("container", func() error { return c.vacate(r.vm, where) })
	defer steps.done("plug")
	return r.vm, r.vm.Plug(ctx, p.config.VM.Disks...)
}

// fits tells whether a container can share the sandbox of an owner.
func (c *ctr) fits(rec, owner record) error {
	if owner.Dir != "" {
		return unsupported("sharing the virtual machine of a container that runs from a summoned directory is not supported")
	}
	if owner.Sandbox == nil {
		return conflict("cannot join network of a non running container: %s", owner.ID)
	}
	if memory, has := max(rec.HostConfig.Memory, rec.HostConfig.MemoryReservation), owner.Sandbox.VM.Memory; memory > has {
		return invalid("%d MiB of memory are more than the virtual machine of container %s has, which is %d MiB", memory>>20, owner.Name, has>>20)
	}
	return nil
}

// vacate takes a container, with its processes and disks, out of the VM that it shares.
func (c *ctr) vacate(machine *sandbox.Sandbox, where *place) error {
	ctx, cancel := context.WithTimeout(context.Background(), teardownLimit)
	defer cancel()
	var answered *api.Error
	err := machine.Delete(ctx, c.process())
	if errors.As(err, &answered) && answered.Code == api.CodeNotFound {
		err = nil
	}
	var disks []vm.Disk
	for _, serial := range where.Disks {
		disks = append(disks, vm.Disk{Serial: serial})
	}
	err = errors.Join(err, machine.Unplug(ctx, disks...))
	select {
	case <-machine.Done(): // and all that was in it
		return nil
	default:
		return err
	}
}

// evict ends the containers that share the VM of a run whose own container has ended or is about to. Their disks are whole.
func (c *ctr) evict(r *run) {
	ctx, cancel := context.WithTimeout(context.Background(), teardownLimit)
	defer cancel()
	var all sync.WaitGroup
	for other, left := range r.end() {
		all.Go(func() {
			log := c.node.options.Log.With("container", other.id, "owner", c.id)
			log.Info("the virtual machine of a container ends")
			if err := r.signal(ctx, other.process(), int(unix.SIGKILL)); err != nil {
				log.Debug("send SIGKILL", "err", err)
			}
			if err := c.await(ctx, left, evictLimit); err == nil {
				return
			}
			if err := r.flush(ctx, other.process()); err != nil && !errors.Is(err, sandbox.ErrGone) {
				log.Debug("flush container's disk", "err", err)
			}
		})
	}
	all.Wait()
}

// machineOf describes the VM that the container is in: its own, or the one it shares; nil when there is none.
func (n *Node) machineOf(rec record) *sandbox.Config {
	if rec.Within == nil {
		return rec.Sandbox
	}
	owner, err := n.find(rec.Within.Owner)
	if err != nil {
		return nil
	}
	return owner.snapshot().Sandbox
}

// recoverSharer takes up a container that has shared a sandbox, after all sandboxes' owners.
func (n *Node) recoverSharer(c *ctr, rec record) {
	var r *run
	var stuck error
	owner, err := n.find(rec.Within.Owner)
	if err == nil {
		owner.mu.Lock()
		r, stuck = owner.run, owner.stuck
		owner.mu.Unlock()
	}
	c.mu.Lock()
	c.stuck = stuck
	c.mu.Unlock()
	switch {
	case stuck != nil: // it comes back here when that is over
	case r == nil:
		c.clear(rec)
		n.settle(c, rec.Booting)
	case r.admit(owner, c) != nil: // the owner has ended
		n.afterTheRest(c, rec, func() { <-r.torn })
	case rec.Booting || rec.Removing:
		n.options.Log.Info("undo start or removal that was cut short", "container", c.id)
		n.afterTheRest(c, rec, func() {
			if err := c.vacate(r.vm, rec.Within); err != nil {
				n.options.Log.Error("take container out of the virtual machine that it shares", "container", c.id, "err", err)
			}
			r.leave(c)
		})
	default:
		c.mu.Lock()
		c.within = r
		c.mu.Unlock()
		n.resume(c, r.vm)
	}
}

// afterTheRest forgets a container's place once end has returned.
func (n *Node) afterTheRest(c *ctr, rec record, end func()) {
	n.running.Add(1)
	c.op.Lock()
	go func() {
		defer n.running.Done()
		end()
		c.clear(rec)
		c.op.Unlock()
		n.settle(c, rec.Booting)
	}()
}

// sharersOf are the containers whose records say that they are in the sandbox of owner.
func (n *Node) sharersOf(owner string) []*ctr {
	return slices.DeleteFunc(n.all(), func(c *ctr) bool {
		within := c.snapshot().Within
		return within == nil || within.Owner != owner
	})
}
