package node

import (
	"os"
	"strconv"
	"time"

	"github.com/moby/moby/api/types/events"

	"github.com/cradlevm/cradle/api"
)

// vanish is the end of a run whose container goes with it (--rm). Who waits for the removal is answered as soon as it
// is on the disk; the VM, whose writable disk nobody will look at again, ends meanwhile, without politeness. It does
// nothing and returns false when somebody else is at work on the container, execs have to be seen to their ends, or the
// disk refuses.
//
// A crash before the record's removal leaves a container that is to be removed at its end, which the next daemon does;
// one after it leaves a VM and files that no record names, which the next daemon sweeps.
func (c *ctr) vanish(r *run, status api.ExitStatus) bool {
	n := c.node
	if len(c.listExecs()) > 0 || !c.op.TryLock() {
		return false
	}
	killed, ok := c.unrecord(r, status)
	c.op.Unlock()
	if !ok {
		return false
	}
	r.phases.done("record")
	<-killed
	rec := c.snapshot()
	log := n.options.Log.With("container", c.id)
	if rec.Sandbox != nil {
		if err := os.RemoveAll(rec.Sandbox.VM.Dir); err != nil {
			log.Error("remove runtime directory", "err", err)
		}
		n.giveUID(rec.Sandbox.VM.UID)
	}
	if err := c.removeFiles(); err != nil {
		log.Error("remove files of removed container", "err", err)
	}
	n.mu.Lock()
	delete(n.leaving, r)
	n.mu.Unlock()
	close(r.torn)
	r.phases.done("teardown")
	return true
}

// unrecord removes the container from the disk and from the registry, and tells everyone of its end and of its removal.
// killed closes when the VM has gone. op is held.
func (c *ctr) unrecord(r *run, status api.ExitStatus) (killed <-chan struct{}, ok bool) {
	n := c.node
	c.mu.Lock()
	if !c.rec.HostConfig.AutoRemove || c.rec.Hibernated || c.keep || c.removing || c.removed {
		c.mu.Unlock()
		return nil, false
	}
	before := c.rec
	c.removing = true
	c.rec.ExitCode, c.rec.OOMKilled, c.rec.Finished, c.rec.Error = status.Code, status.OOMKilled, time.Now(), ""
	c.setEnded()
	rec := c.rec
	c.mu.Unlock()
	c.closeLog() // its followers have all there is

	over := make(chan struct{})
	go func() {
		defer close(over)
		if err := r.vm.Kill(); err != nil {
			n.options.Log.Error("end virtual machine", "container", c.id, "err", err)
		}
	}()
	err := n.options.Images.Release(c.id)
	c.mu.Lock()
	if err == nil {
		err = n.store.delete(c.id)
	}
	if err != nil { // the long way says what is wrong
		c.rec, c.removing = before, false
		c.mu.Unlock()
		<-over
		return nil, false
	}
	c.removed = true
	c.wake(false)
	c.endAttachments()
	c.mu.Unlock()
	c.forgetExecs()
	n.mu.Lock()
	delete(n.containers, c.id)
	delete(n.names, rec.Name)
	n.leaving[r] = struct{}{}
	n.mu.Unlock()
	close(r.ended)
	if status.OOMKilled {
		c.emit(events.ActionOOM, nil)
	}
	c.emit(events.ActionDie, map[string]string{
		"exitCode":     strconv.Itoa(status.Code),
		"execDuration": strconv.Itoa(int(max(0, rec.Finished.Sub(rec.Started)).Seconds())),
	})
	c.emit(events.ActionDestroy, nil)
	c.mu.Lock()
	c.wake(true)
	c.mu.Unlock()
	close(c.gone)
	return over, true
}
