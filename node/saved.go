package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"

	"github.com/cradlevm/cradle/api"
	"github.com/cradlevm/cradle/node/runspec"
	"github.com/cradlevm/cradle/sandbox"
	"github.com/cradlevm/cradle/snapshot"
	"github.com/cradlevm/cradle/vm"
	"github.com/cradlevm/cradle/volume"
)

// scratchName is the name of a container's writable disk in its directory, and of its copy in a snapshot.
const scratchName = "scratch.ext4"

// savedRun is a container that was saved while it ran, in the midst of it: what another one, or itself later, goes on
// from. The container in it stands still (sandbox.Freeze).
type savedRun struct {
	saved  vm.Saved       // nil when it is frozen, and the state on the disk
	frozen *frozenRun     // nil: it is saved
	config sandbox.Config // of the VM that was saved; its token is the one that the saved agent knows
	guest  string         // the id that the saved agent knows the container by
}

// frozenRun is a VM that stands still for good, and is copied. Its copies run as its user.
type frozenRun struct {
	source  vm.Source
	release func() // gives back what the VM had on the host
}

// source is what VMs are restored from.
func (s *savedRun) source() vm.Source {
	if s.frozen != nil {
		return s.frozen.source
	}
	return s.saved
}

// close lets go of it.
func (s *savedRun) close() error {
	var errs []error
	if s.saved != nil {
		errs = append(errs, s.saved.Close())
	}
	if s.frozen != nil {
		errs = append(errs, s.frozen.source.Close())
		s.frozen.release()
	}
	return errors.Join(errs...)
}

// form is what saved state depends on beside the machine's size and disks.
type form struct {
	Format   int    `json:"format"`
	Protocol int    `json:"protocol"` // api.ProtocolVersion
	Guest    string `json:"guest"`    // guestos.Guest.Digest
	Monitor  string `json:"monitor"`  // vm.Restorer.StateVersion
}

// savedFormat changes with what is in a saved container, or what is expected of the guest in it.
const savedFormat = 1

// savedManifest describes a savedRun on disk. The scratch disk lies beside it, or where the container has it.
type savedManifest struct {
	Form    form           `json:"form"`
	Config  sandbox.Config `json:"config"`
	Guest   string         `json:"guest"`
	Digest  string         `json:"digest"`  // vm.Saved.Digest
	Scratch string         `json:"scratch"` // snapshot.Digest of the disk
}

// form is the form of what is saved and restored now.
func (n *Node) form(ctx context.Context) (form, error) {
	r, ok := n.options.Driver.(vm.Restorer)
	if !ok {
		return form{}, unsupported("this virtual machine monitor cannot restore")
	}
	version, err := r.StateVersion(ctx)
	if err != nil {
		return form{}, err
	}
	return form{Format: savedFormat, Protocol: api.ProtocolVersion, Guest: n.options.Guest.Digest, Monitor: version}, nil
}

// savable returns the run of a container that can be saved: it runs, and is neither paused nor being stopped.
func (c *ctr) savable() (*run, record, error) {
	c.mu.Lock()
	r, rec, removing, stopping := c.run, c.rec, c.removing, c.stopping > 0
	c.mu.Unlock()
	switch {
	case removing:
		return nil, rec, notFound("No such container: %s", c.id)
	case stopping && up(rec.Status): // it has its stop signal, and would end as soon as it went on
		return nil, rec, conflict("container %s is being stopped", c.id)
	case rec.Status == container.StatePaused:
		return nil, rec, conflict("container %s is paused, unpause it first", c.id)
	case r != nil && r.owner != nil:
		return nil, rec, conflict("container %s shares the virtual machine of another container: it cannot be saved alone", c.id)
	case len(rec.namedVolumes()) > 0: // what is saved would go on beside whoever writes to the volume next
		return nil, rec, conflict("container %s has the volume %s, and cannot be saved or cloned", c.id, rec.namedVolumes()[0].Name)
	case rec.Hibernated:
		return nil, rec, conflict("container %s is hibernated, let it go on first", c.id)
	case r == nil || rec.Status != container.StateRunning || rec.Sandbox == nil:
		return nil, rec, conflict("container %s is not running", c.id)
	}
	return r, rec, nil
}

// checkpoint saves a container that runs and goes on. still copies its disk. pause is for how long its processes stood
// still. op is held.
func (c *ctr) checkpoint(ctx context.Context, r *run, rec record, still func(context.Context) error) (from *savedRun, pause time.Duration, err error) {
	release, err := c.exclusive(r, "saved")
	if err != nil {
		return nil, 0, err
	}
	defer release()
	c.still.mu.Lock()
	defer c.still.mu.Unlock()
	var began time.Time // when the processes were told to stand still
	defer func() {
		if began.IsZero() { // it has come to nothing
			return
		}
		if e := c.goOn(ctx, r); e != nil {
			if err = errors.Join(err, e); from != nil {
				err = errors.Join(err, from.saved.Close())
			}
		}
		pause = time.Since(began)
		c.mendClock(context.WithoutCancel(ctx), r.vm)
	}()
	var frozen, stood, copied time.Time
	saved, stop, err := r.vm.Checkpoint(ctx, func(ctx context.Context) error {
		began = time.Now()
		defer func() { frozen = time.Now() }()
		return r.vm.Freeze(ctx, c.id, true)
	}, func(ctx context.Context) error {
		stood = time.Now()
		defer func() { copied = time.Now() }()
		return still(ctx)
	})
	if err != nil {
		return nil, 0, ending(c, err)
	}
	c.node.options.Log.Debug("checkpoint", "container", c.id, "freeze", frozen.Sub(began), "memory", stood.Sub(frozen),
		"disk", copied.Sub(stood), "machine stood still", stop, "end", time.Since(copied))
	return &savedRun{saved: saved, config: *rec.Sandbox, guest: c.id}, 0, nil
}

// goOn lets the container's processes run again.
func (c *ctr) goOn(ctx context.Context, r *run) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callLimit)
	defer cancel()
	if err := r.vm.Freeze(ctx, c.id, false); err != nil && !errors.Is(err, sandbox.ErrGone) {
		return fmt.Errorf("let container %s go on: %w", c.id, err)
	}
	return nil
}

// ending puts the failure of a call on a container that is at its end into words.
func ending(c *ctr, err error) error {
	var answered *api.Error
	gone := errors.Is(err, sandbox.ErrGone) || errors.Is(err, vm.ErrExited)
	if gone || (errors.As(err, &answered) && answered.Code == api.CodeFailedPrecondition) {
		return conflict("container %s is ending", c.id)
	}
	return err
}

// write puts a saved container, whose disk is at scratch, into a draft and returns its manifest.
func (n *Node) write(ctx context.Context, s *savedRun, d *snapshot.Draft, scratch string) (savedManifest, error) {
	f, err := n.form(ctx)
	if err != nil {
		return savedManifest{}, err
	}
	if err := s.saved.Write(ctx, d.Dir); err != nil {
		return savedManifest{}, fmt.Errorf("write saved state: %w", err)
	}
	if err := volume.Sync(scratch); err != nil {
		return savedManifest{}, err
	}
	sum, err := snapshot.Digest(ctx, scratch)
	if err != nil {
		return savedManifest{}, err
	}
	return savedManifest{Form: f, Config: s.config, Guest: s.guest, Digest: s.saved.Digest(), Scratch: sum}, nil
}

// suits says whether what was saved in m's form can be restored here and now.
func (n *Node) suits(ctx context.Context, m savedManifest) error {
	f, err := n.form(ctx)
	if err != nil {
		return err
	}
	if m.Form != f {
		return conflict("it was saved with another version of %s", m.Form.differs(f))
	}
	return nil
}

// differs says in what a form is not the present one.
func (f form) differs(now form) string {
	switch {
	case f.Format != now.Format || f.Protocol != now.Protocol:
		return fmt.Sprintf("cradle (format %d, protocol %d; now %d, %d)", f.Format, f.Protocol, now.Format, now.Protocol)
	case f.Guest != now.Guest:
		return fmt.Sprintf("the guest's kernel and agent (%.12s; now %.12s)", f.Guest, now.Guest)
	}
	was, is := f.Monitor, now.Monitor // which are long, and mostly the same
	var one, other string
	for one == other && was+is != "" {
		one, was, _ = strings.Cut(was, "; ")
		other, is, _ = strings.Cut(is, "; ")
	}
	return fmt.Sprintf("the virtual machine monitor, or of how it is used (%.200q; now %.200q)", one, other)
}

// load reads the saved container that m describes, whose files are in dir and whose disk is at scratch, and checks all of
// it.
func (n *Node) load(ctx context.Context, m savedManifest, dir, scratch string) (*savedRun, error) {
	if err := n.suits(ctx, m); err != nil {
		return nil, err
	}
	return n.read(ctx, m, dir, scratch)
}

// read is load for one who does not want to restore it.
func (n *Node) read(ctx context.Context, m savedManifest, dir, scratch string) (*savedRun, error) {
	sum, err := snapshot.Digest(ctx, scratch)
	if err != nil {
		return nil, err
	}
	if sum != m.Scratch {
		return nil, conflict("its disk is damaged, or another one's: the digest is %s, not %s", sum, m.Scratch)
	}
	saved, err := n.options.Driver.(vm.Restorer).Load(ctx, dir)
	if err != nil {
		return nil, err
	}
	if saved.Digest() != m.Digest {
		return nil, errors.Join(conflict("its memory is damaged, or another one's: the digest is %s, not %s", saved.Digest(), m.Digest), saved.Close())
	}
	return &savedRun{saved: saved, config: m.Config, guest: m.Guest}, nil
}

// hostError is what keeps a container from going on from a saved one and says nothing about what was saved: any other start, too, would lack it.
type hostError struct{ error }

func (e hostError) Unwrap() error { return e.error }

func isHostError(err error) bool { return errors.As(err, new(hostError)) }

// revival says how a container goes on from a savedRun.
type revival struct {
	// same: it is the one that was saved. Else it gets an identity of its own.
	same bool
	// all: its log begins with what of the output is left, not with what comes.
	all bool
}

// revive restores the container's VM from what was saved, with the container's own disk, and lets the container in it go
// on once it knows who it is. What undoes it is pushed.
func (c *ctr) revive(ctx context.Context, from *savedRun, how revival, steps *phases, undo *undoStack) (*sandbox.Sandbox, error) {
	machine, known, err := c.resurrect(ctx, from, how, steps, undo)
	if err != nil {
		return nil, err
	}
	if !how.same {
		if err := c.beginLog(known.OutputEnd, how.all); err != nil {
			return nil, hostError{err}
		}
	}
	if err := c.rejoin(ctx, machine, c.snapshot(), undo); err != nil {
		return nil, err
	}
	if err := machine.Freeze(ctx, c.id, false); err != nil {
		return nil, err
	}
	steps.done("go on")
	return machine, nil
}

// resurrect does the first part of revive: the container knows who it is, and stands still.
func (c *ctr) resurrect(ctx context.Context, from *savedRun, how revival, steps *phases, undo *undoStack) (_ *sandbox.Sandbox, known api.IdentifyResult, err error) {
	n, rec := c.node, c.snapshot()
	request, err := runspec.Create(rec.spec(), n.settings)
	if err != nil {
		return nil, known, err
	}
	p, err := c.prepare(ctx, rec, request)
	if err != nil {
		return nil, known, hostError{err}
	}
	config := p.config
	config.VM.CPUs, config.VM.Memory = from.config.VM.CPUs, from.config.VM.Memory
	config.VM.NICs = make([]vm.NIC, len(from.config.VM.NICs))
	if !slices.EqualFunc(config.VM.Disks, from.config.VM.Disks, sameDisk) {
		return nil, known, conflict("the image of container %s is not the one it was saved with", c.id)
	}
	if from.frozen != nil {
		config.VM.UID = from.config.VM.UID
	}
	if config, err = c.claim(config, undo); err != nil {
		return nil, known, hostError{err}
	}
	steps.done("disks")
	machine, err := sandbox.Restore(ctx, from.source(), config, from.config.Token)
	if err != nil {
		return nil, known, err
	}
	undo.push("virtual machine", machine.Kill)
	steps.done("restore")
	who := api.IdentifyRequest{ID: from.guest, NewID: c.id}
	if !how.same {
		who = newIdentity(from.guest, rec, request)
	}
	if known, err = machine.Identify(ctx, who); err != nil {
		return nil, known, ending(c, err)
	}
	steps.done("identify")
	return machine, known, nil
}

// newIdentity makes another one of a container that the agent knows as known.
func newIdentity(known string, rec record, request api.CreateRequest) api.IdentifyRequest {
	who := api.IdentifyRequest{ID: known, NewID: rec.ID, Hostname: rec.Config.Hostname, BootID: sandbox.NewBootID(), MachineID: sandbox.NewMachineID(),
		Env: request.Spec.Process.Env}
	for _, f := range request.Files {
		if f.Path == "/etc/hostname" {
			who.Files = append(who.Files, f)
		}
	}
	return who
}

// sameDisk reports whether a restored VM can have a where the saved one had b: layers are the same files, the writable
// disk is a copy.
func sameDisk(a, b vm.Disk) bool {
	return a.Serial == b.Serial && a.ReadOnly == b.ReadOnly && (!a.ReadOnly || filepath.Base(a.Path) == filepath.Base(b.Path))
}

// beginLog makes the log go on at an offset of the journal or, with all, at its beginning.
func (c *ctr) beginLog(offset uint64, all bool) error {
	log, err := c.openLog()
	if err != nil || log == nil {
		return err
	}
	if all {
		offset = 0
	}
	if err := log.RestartAt(time.Now(), offset); err != nil {
		return fmt.Errorf("begin log of container %s: %w", c.id, err)
	}
	return nil
}

// copyScratch gives the container a copy of the disk at from, in the place of the one it may have.
func (c *ctr) copyScratch(ctx context.Context, from string) error {
	to := filepath.Join(c.dir(), scratchName)
	if err := os.Remove(to); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return volume.Copy(ctx, from, to)
}
