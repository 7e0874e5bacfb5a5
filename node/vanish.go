package node

import (
	"time"

	"github.com/moby/moby/api/types/container"

	"github.com/cradlevm/cradle/api"
)

// vanishPatience is how long vanish waits for who is at work on the container: most often a start that is about to return,
// of a process that was quick. Who waits for the VM to go meanwhile waits as much longer.
const vanishPatience = 50 * time.Millisecond

// vanish is the end of a run whose container goes with it (--rm). Who waits for the removal is answered as soon as it
// is on the disk; the VM, whose writable disk nobody will look at again, ends meanwhile, without politeness. It does
// nothing and returns false when somebody else is at work on the container, execs have to be seen to their ends, or the
// disk refuses.
//
// A crash before the record's removal leaves a container that is to be removed at its end, which the next daemon does;
// one after it leaves a VM and files that no record names, which the next daemon sweeps.
func (c *ctr) vanish(r *run, status api.ExitStatus) bool {
	n := c.node
	if r.owner != nil || len(r.end()) > 0 { // nobody joins a VM whose container has ended
		return false
	}
	if len(c.listExecs()) > 0 || !c.op.LockWithin(vanishPatience) {
		return false
	}
	rec, ok := c.ending(status)
	var killed <-chan struct{}
	if ok {
		killed, ok = c.part(r, rec)
	}
	c.op.Unlock()
	if !ok {
		return false
	}
	r.phases.done("record")
	<-killed
	c.freeMachine(rec)
	if err := c.removeFiles(); err != nil {
		n.options.Log.Error("remove files of removed container", "container", c.id, "err", err)
	}
	n.mu.Lock()
	delete(n.leaving, r)
	n.mu.Unlock()
	close(r.torn)
	r.phases.done("teardown")
	return true
}

// ending is the record as the end makes it; false when the container is not to be removed at once.
func (c *ctr) ending(status api.ExitStatus) (record, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.rec.HostConfig.AutoRemove || c.rec.Hibernated || len(c.rec.namedVolumes()) > 0 || c.keep || c.removing || c.removed {
		return record{}, false
	}
	rec := c.rec
	rec.ExitCode, rec.OOMKilled, rec.Finished, rec.Error = status.Code, status.OOMKilled, time.Now(), ""
	rec.Status = container.StateExited
	return rec, true
}

// part removes the container from the disk and from the registry, and tells everyone of its end, as rec has it, and of its
// removal. killed closes when the VM has gone. When the disk refuses, nothing has happened but the VM's end. op is held.
func (c *ctr) part(r *run, rec record) (killed <-chan struct{}, ok bool) {
	n := c.node
	c.mu.Lock()
	c.removing = true
	c.mu.Unlock()
	c.closeLog() // its followers have all there is
	over := make(chan struct{})
	go func() {
		defer close(over)
		if err := r.vm.Kill(); err != nil {
			n.options.Log.Error("end virtual machine", "container", c.id, "err", err)
		}
	}()
	if err := c.unrecord(); err != nil { // the long way says what is wrong
		c.mu.Lock()
		c.removing = false
		c.mu.Unlock()
		<-over
		return nil, false
	}
	n.mu.Lock()
	n.leaving[r] = struct{}{}
	n.mu.Unlock()
	c.mu.Lock()
	c.rec = rec
	c.wake(false)
	c.endAttachments()
	c.mu.Unlock()
	c.emitDie(rec) // before who waited for it goes on: a stop tells of itself after
	close(r.ended)
	c.goodbye()
	return over, true
}
