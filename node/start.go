package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"

	"github.com/cradlevm/cradle/api"
	"github.com/cradlevm/cradle/dockerapi"
	"github.com/cradlevm/cradle/guestos"
	"github.com/cradlevm/cradle/image"
	"github.com/cradlevm/cradle/node/runspec"
	"github.com/cradlevm/cradle/pool"
	"github.com/cradlevm/cradle/sandbox"
	"github.com/cradlevm/cradle/vm"
)

// startLimit bounds one start as a whole. The boot within it has a limit of its own.
const startLimit = sandbox.BootTimeout + time.Minute

// scratchSerial names a container's writable disk; layerSerial its layers, the lowest being 0.
const scratchSerial = "scratch"

func layerSerial(i int) string { return fmt.Sprintf("layer%d", i) }

// serial is what a disk of the container is called in its VM: in one that it shares, by whose it is.
func (r *record) serial(disk string) string {
	if r.HostConfig.NetworkMode.IsContainer() {
		return r.ID[:12] + disk
	}
	return disk
}

// ContainerStart implements dockerapi.Backend. A start goes on when its client hangs up.
func (n *Node) ContainerStart(ctx context.Context, name string) error {
	c, err := n.find(name)
	if err != nil {
		return err
	}
	c.op.Lock()
	defer c.op.Unlock()
	return c.start(context.WithoutCancel(ctx), 0)
}

// start makes a run of the container. restarts is the count to record: 0 for a start that a user asked for. op is
// held.
func (c *ctr) start(ctx context.Context, restarts int) error {
	c.mu.Lock()
	status, removing, cloning, run, stuck := c.rec.Status, c.removing, c.rec.Cloning, c.run, c.stuck
	c.mu.Unlock()
	switch {
	case removing:
		return conflict("container is marked for removal and cannot be started")
	case cloning:
		return conflict("container %s is being cloned and starts by itself", c.id)
	case status == container.StatePaused:
		return conflict("cannot start a paused container, try unpause instead")
	case status == container.StateRunning, status == container.StateRestarting && restarts == 0:
		return dockerapi.ErrNotModified
	case stuck != nil:
		return stuck
	}
	if err := c.node.enter(); err != nil {
		return err
	}
	defer c.node.running.Done()
	if run != nil { // the last run's VM is still being taken down
		<-run.torn
	}
	c.closeDesk()
	ctx, abort := context.WithCancelCause(ctx)
	defer abort(nil)
	defer context.AfterFunc(c.node.ctx, func() { abort(errClosing) })()
	c.mu.Lock()
	c.abort = abort
	c.mu.Unlock()
	err := c.launch(ctx, restarts)
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	c.mu.Lock()
	c.abort = nil
	c.mu.Unlock()
	// When the daemon ends, the next one finds the container as it was before.
	if err != nil && c.node.ctx.Err() == nil {
		c.failed(err)
	}
	return err
}

// failed records a start that did not come to anything: docker's exit codes, and the end of whoever waits.
func (c *ctr) failed(err error) {
	code := 128
	var answered *api.Error
	if errors.As(err, &answered) {
		switch answered.Code {
		case api.CodeCommandNotFound:
			code = 127
		case api.CodeCommandNotRunnable:
			code = 126
		}
	}
	if err := c.change(func(r *record) {
		r.ExitCode, r.Error = code, err.Error()
		if r.Status == container.StateRestarting { // docker does not try a failed start again
			r.Status, r.Finished = container.StateExited, time.Now()
		}
	}); err != nil {
		c.node.options.Log.Error("record failed start", "container", c.id, "err", err)
	}
	c.mu.Lock()
	c.wake(false)
	c.endAttachments()
	auto := c.rec.HostConfig.AutoRemove && !c.rec.Hibernated
	c.mu.Unlock()
	if auto {
		if err := c.remove(); err != nil {
			c.node.options.Log.Error("remove container that did not start", "container", c.id, "err", err)
		}
	}
}

// launch brings up a VM, makes the container in it and starts its process; on error nothing of it is left.
func (c *ctr) launch(ctx context.Context, restarts int) (err error) {
	n, rec := c.node, c.snapshot()
	if n.pool != nil {
		defer n.pool.Begin()()
	}
	steps := newPhases()
	leave, err := n.gate.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	steps.done("queue")
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	var undo undoStack
	defer func() {
		if err != nil {
			n.timings.metrics.failed.Inc()
			undo.run(n.options.Log.With("container", c.id))
		}
	}()
	if rec.Hibernated {
		machine, err := c.wakeHibernated(ctx, rec, steps, &undo)
		if err == nil {
			err = c.started(machine, nil, restarts, steps, &undo)
		}
		if err == nil {
			c.dropState()
		}
		return err
	}
	key := c.warmKey(ctx, rec)
	if key != "" {
		if machine := c.startWarm(ctx, key, steps, &undo); machine != nil {
			return c.started(machine, nil, restarts, steps, &undo)
		}
		defer func() {
			if err == nil && n.warmth.want(key) && n.enter() == nil {
				go n.makeShadow(key, rec)
			}
		}()
	}
	request, err := runspec.Create(rec.spec(), n.settings)
	if err != nil {
		return err
	}
	log, err := c.openLog()
	if err != nil {
		return err
	}
	if log != nil {
		if err := log.Restart(time.Now()); err != nil { // a new run's journal begins at 0 again
			return fmt.Errorf("begin log of container %s: %w", c.id, err)
		}
	}
	steps.done("request")
	p, err := c.prepare(ctx, rec, request)
	if err != nil {
		return err
	}
	settled, err := c.addMounts(ctx, p)
	if err != nil {
		return err
	}
	defer settled()
	steps.done("disks")
	bringUp := c.bringUp
	if rec.HostConfig.NetworkMode.IsContainer() {
		bringUp = c.moveIn
	}
	machine, err := bringUp(ctx, p, steps, &undo)
	if err != nil {
		return err
	}
	if len(rec.Links) > 0 {
		if err := c.join(ctx, machine, rec, &p.request, &undo); err != nil {
			return err
		}
		steps.done("network")
	}
	out, made, err := machine.Run(ctx, p.request)
	if err != nil {
		return startError(rec, err)
	}
	undo.push("output", out.Close)
	steps.split("create", made, "exec")
	return c.started(machine, out, restarts, steps, &undo)
}

// started records a running container and begins to follow it. out is its output, nil where it has to be asked for.
func (c *ctr) started(machine *sandbox.Sandbox, out *sandbox.Output, restarts int, steps *phases, undo *undoStack) error {
	r := newRun(machine, out)
	r.phases = steps
	c.mu.Lock()
	before := c.rec
	r.owner = c.within
	c.mu.Unlock()
	if r.owner != nil && r.owner.ending() { // who ends all that share the VM may have done so before there was a process
		return conflict("the container whose virtual machine it shares has ended")
	}
	err := c.change(func(rec *record) {
		rec.Status, rec.Started, rec.Finished = container.StateRunning, time.Now(), time.Time{}
		rec.ExitCode, rec.Error, rec.OOMKilled = 0, "", false
		rec.RestartCount, rec.StoppedByUser, rec.Booting = restarts, false, false
		rec.Hibernated = false
		c.run, c.keep = r, false
		if restarts == 0 {
			c.backoff = 0
		}
		c.beginHealth()
	})
	if err != nil {
		c.mu.Lock()
		c.rec, c.run, c.health = before, nil, nil
		c.mu.Unlock()
		return err
	}
	undo.forget()
	steps.done("record")
	steps.log(c.node.options.Log.With("container", c.id), "started")
	if machine := c.snapshot().Sandbox; machine != nil {
		c.node.timings.add(c.id, pool.Class{CPUs: machine.VM.CPUs, Memory: machine.VM.Memory}, steps)
	}
	c.node.running.Add(1)
	c.emit(events.ActionStart, nil) // before it can end
	go c.follow(r)
	return nil
}

// plan is what a container's machine is to be, and what is to be done in it.
type plan struct {
	rec     record
	config  sandbox.Config // but for who it is
	guest   guestos.Guest
	request api.CreateRequest // what bringUp leaves to be done
}

// prepare completes a request to a plan. Who the VM is, and as whom it runs, is left to bringUp, and so is the writable disk
// where there is none yet.
func (c *ctr) prepare(ctx context.Context, rec record, request api.CreateRequest) (*plan, error) {
	n := c.node
	img, guest, err := c.image(rec)
	if err != nil {
		return nil, err
	}
	if rec.Dir == "" && !guest.Erofs512 { // a summoned directory has the layers that its kernel takes
		if img, err = n.options.Images.Plain(ctx, img); err != nil {
			return nil, imageError(err)
		}
	}
	if err := os.MkdirAll(c.dir(), 0o711); err != nil { // a crash may have come between the record and its directory
		return nil, fmt.Errorf("make container's directory: %w", err)
	}
	var disks []vm.Disk
	for i, l := range img.Layers {
		serial := rec.serial(layerSerial(i))
		disks = append(disks, vm.Disk{Serial: serial, Path: l.Path, ReadOnly: true})
		request.Rootfs.Layers = append(request.Rootfs.Layers, api.Disk{Serial: serial, FSType: "erofs"})
	}
	serial := rec.serial(scratchSerial)
	disks = append(disks, vm.Disk{Serial: serial, Path: c.scratchPath()})
	request.Rootfs.Upper = &api.Disk{Serial: serial, FSType: "ext4"}
	cpus, memory := runspec.VMSize(&rec.HostConfig, n.settings)
	config := sandbox.Config{
		Hostname: rec.Config.Hostname,
		VM: vm.Config{
			CPUs: cpus, Memory: memory, Kernel: guest.Kernel, Initrd: guest.Initrd, Disks: disks, NICs: make([]vm.NIC, nicSlots),
		},
	}
	return &plan{rec: rec, config: config, guest: guest, request: request}, nil
}

// image finds what the container runs from: its image in the store, or its summoned directory.
func (c *ctr) image(rec record) (image.Image, guestos.Guest, error) {
	if rec.Dir != "" {
		return openSummoned(rec.Dir)
	}
	img, err := c.node.options.Images.Get(rec.ImageID)
	return img, c.node.options.Guest, imageError(err)
}

// startError puts an agent's refusal into runc's frame, which docker's clients know how to read.
func startError(rec record, err error) error {
	var answered *api.Error
	if !errors.As(err, &answered) {
		return fmt.Errorf("start container %s: %w", rec.ID, err)
	}
	text := framed("failed to create task for container: unable to start container process: ", answered.Message)
	switch answered.Code {
	case api.CodeUnsupported:
		return unsupported("%s", text)
	case api.CodeInvalid, api.CodeCommandNotFound, api.CodeCommandNotRunnable:
		return &startFailure{classed{text, invalid("").(*classed).class}, answered}
	}
	return &startFailure{classed{text, errInternal}, answered}
}

// framed puts the frame before a guest's message, except where docker finds the fault itself, before it comes to runc.
func framed(frame, message string) string {
	message = clean(message)
	if strings.HasPrefix(message, "unable to find user ") || strings.HasPrefix(message, "unable to find group ") {
		return message
	}
	return frame + message
}

// startFailure keeps the agent's code for the exit status.
type startFailure struct {
	classed
	answered *api.Error
}

func (e *startFailure) Unwrap() []error { return []error{e.class, e.answered} }

// clean makes one printable line of a guest's message.
func clean(s string) string {
	if len(s) > 1024 {
		s = s[:1024] + "…"
	}
	return strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' {
			return ' '
		}
		if r < ' ' || r == 0x7f || (r >= 0x80 && r < 0xa0) {
			return -1
		}
		return r
	}, s)
}
