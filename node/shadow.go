package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"

	"github.com/cradlevm/cradle/api"
	"github.com/cradlevm/cradle/node/runspec"
	"github.com/cradlevm/cradle/sandbox"
	"github.com/cradlevm/cradle/snapshot"
	"github.com/cradlevm/cradle/vm"
)

// Limits of shadows.
const (
	// shadowLimit bounds the making of a warm image: a server that needs longer to be ready is left alone.
	shadowLimit = 5 * time.Minute
	// quietPeriod is how long a process must have run, and have printed nothing, to count as ready where nothing else
	// is said.
	quietPeriod = 2 * time.Second
	// probePause lies between two runs of a readiness command, probeLimit bounds one; a healthcheck has its own limit.
	probePause = 250 * time.Millisecond
	probeLimit = 10 * time.Second
)

// shadow is a container that nobody sees: it runs, in the background, what another one was asked to run, until it is
// ready, and is then saved as a warm image. It has no record: what a crash leaves of it, the next daemon sweeps.
type shadow struct {
	*ctr
	printed chan struct{} // holds a value when there was output since it was last looked at
}

// makeShadow makes the warm image of a key from a container that was started as it says.
func (n *Node) makeShadow(key string, source record) {
	defer n.running.Done()
	defer n.warmth.done(key)
	log := n.options.Log.With("container", source.ID, "image", source.Config.Image)
	select {
	case n.warmth.making <- struct{}{}: // one at a time
		defer func() { <-n.warmth.making }()
	case <-n.ctx.Done():
		return
	}
	if _, err := os.Stat(n.warmth.path(key)); err == nil {
		return // one of another container has come to be meanwhile
	}
	began := time.Now()
	ctx, cancel := context.WithTimeoutCause(n.ctx, shadowLimit, fmt.Errorf("it was not ready within %v", shadowLimit))
	defer cancel()
	err := n.castShadow(ctx, key, source)
	switch {
	case n.ctx.Err() != nil:
	case err != nil:
		log.Warn("make warm image", "err", err)
		n.warmth.fail(key, err)
		n.emit(source, "warm_failed", map[string]string{"reason": clean(err.Error())}) // also where it has gone meanwhile
	default:
		log.Info("warm image made", "took", time.Since(began).Round(time.Millisecond))
		n.emit(source, events.Action("warm"), nil)
		if err := n.warmth.evict(key); err != nil {
			log.Error("evict warm images", "err", err)
		}
	}
}

// castShadow runs a shadow until it is ready and saves it. Nothing of it is left but the warm image.
func (n *Node) castShadow(ctx context.Context, key string, source record) (err error) {
	s := n.newShadow(source)
	var undo undoStack
	undo.push("files", s.removeFiles)
	log := n.options.Log.With("shadow", s.id)
	defer func() { undo.run(log) }()
	var things undoStack // of the VM's
	defer func() { things.run(log) }()
	machine, out, err := s.launch(ctx, &things)
	if err != nil {
		return err
	}
	ready, ended := context.WithCancelCause(ctx)
	defer ended(nil)
	go func() {
		status, err := machine.Wait(ready, s.process())
		if err == nil {
			err = fmt.Errorf("its process has ended with %d", status.Code)
		}
		ended(err)
	}()
	go s.listen(ready, out)
	if err := s.awaitReady(ready, machine); err != nil {
		if ready.Err() != nil {
			err = context.Cause(ready)
		}
		return err
	}
	ended(nil)
	return s.save(ctx, key, machine, &things)
}

// newShadow makes one of a container.
func (n *Node) newShadow(source record) *shadow {
	rec := source
	rec.ID, rec.Name, rec.Sandbox, rec.Booting = newID(), "", nil, false
	rec.Config.Hostname, rec.Links = rec.ID[:12], unlinked(rec.Links)
	s := &shadow{ctr: newCtr(n, rec), printed: make(chan struct{}, 1)}
	s.hidden = true
	return s
}

// launch starts the container in a VM of its own, and returns its output.
func (s *shadow) launch(ctx context.Context, undo *undoStack) (*sandbox.Sandbox, *sandbox.Output, error) {
	n, rec := s.node, s.snapshot()
	request, err := runspec.Create(rec.spec(), n.settings)
	if err != nil {
		return nil, nil, err
	}
	p, err := s.prepare(ctx, rec, request)
	if err != nil {
		return nil, nil, err
	}
	machine, err := s.bringUp(ctx, p, newPhases(), undo)
	if err != nil {
		return nil, nil, err
	}
	out, _, err := machine.Run(ctx, p.request)
	return machine, out, err
}

// listen notes that there is output. What is left in the journal is for the containers that go on from here, but it must
// not fill up.
func (s *shadow) listen(ctx context.Context, out *sandbox.Output) {
	defer out.Close()
	defer context.AfterFunc(ctx, func() { out.Close() })()
	for {
		if _, _, _, err := out.Next(); err != nil {
			return
		}
		select {
		case s.printed <- struct{}{}:
		default:
		}
		if out.Offset() > api.OutputRing/2 {
			if err := out.Acknowledge(); err != nil {
				return
			}
		}
	}
}

// awaitReady returns when the container is ready: its own command says so, or else its healthcheck, or else it has been
// quiet for a while.
func (s *shadow) awaitReady(ctx context.Context, machine *sandbox.Sandbox) error {
	config := s.snapshot().Config
	command, limit := readiness(config)
	if len(command) == 0 {
		return s.awaitQuiet(ctx, config)
	}
	for {
		code, err := s.probeOnce(ctx, machine, command, limit)
		if err != nil {
			return fmt.Errorf("its readiness command: %w", err)
		}
		if code == 0 {
			return nil
		}
		if !sleep(ctx, probePause) {
			return errors.New("it does not become ready")
		}
	}
}

// readiness is the command that says that a container is ready, and how long it may take; empty without one.
func readiness(config container.Config) (command []string, limit time.Duration) {
	if text := config.Labels[warmReadyLabel]; text != "" {
		return []string{"/bin/sh", "-c", text}, probeLimit
	}
	if command = probeCommand(config); len(command) == 0 {
		return nil, 0
	}
	return command, orDefault(config.Healthcheck.Timeout, healthTimeout)
}

func (s *shadow) awaitQuiet(ctx context.Context, config container.Config) error {
	after := quietPeriod
	if text := config.Labels[warmAfterLabel]; text != "" {
		var err error
		if after, err = time.ParseDuration(text); err != nil {
			return err
		}
	}
	t := time.NewTimer(after)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			return nil
		case <-s.printed:
			t.Reset(after)
		case <-ctx.Done():
			return errors.New("it does not become quiet")
		}
	}
}

// probeOnce runs a command in the container and returns its exit code. Nothing of it is left.
func (s *shadow) probeOnce(ctx context.Context, machine *sandbox.Sandbox, command []string, limit time.Duration) (int, error) {
	rec := s.snapshot()
	id := newID()
	request, err := runspec.Exec(rec.spec(), id, container.ExecCreateRequest{Cmd: command})
	if err != nil {
		return 0, err
	}
	out, _, err := machine.Exec(ctx, request)
	if err != nil {
		return 0, err
	}
	defer out.Close()
	ref := api.ProcessRef{ID: s.id, Exec: id}
	limited, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	status, err := machine.Wait(limited, ref)
	if limited.Err() != nil && ctx.Err() == nil { // it is as good as a failure
		status, err = api.ExitStatus{Code: 1}, nil
	}
	return status.Code, errors.Join(err, machine.Delete(ctx, ref))
}

// save makes the shadow a warm image; it does not run any more. Where it can be frozen, it is what others are copied from, and keeps its VM's
// things.
func (s *shadow) save(ctx context.Context, key string, machine *sandbox.Sandbox, things *undoStack) (err error) {
	n := s.node
	if err := machine.Freeze(ctx, s.id, true); err != nil {
		return err
	}
	if err := s.rehearse(ctx, machine); err != nil {
		return fmt.Errorf("rehearse its start: %w", err)
	}
	if err := machine.Pause(ctx); err != nil { // for good: its disk stays as it is
		return err
	}
	saved, _, err := machine.Checkpoint(ctx, nil, func(context.Context) error { return nil })
	if err != nil {
		return err
	}
	from := &savedRun{saved: saved, config: *s.snapshot().Sandbox, guest: s.id}
	defer func() {
		if err != nil {
			err = errors.Join(err, from.close())
		}
	}()
	frozen, err := s.freeze(ctx, machine)
	if err != nil {
		return err
	}
	if frozen != nil {
		from.frozen = s.own(frozen, things)
	}
	draft, err := snapshot.NewDraft(n.warmth.dir)
	if err != nil {
		return err
	}
	defer draft.Discard()
	disk := filepath.Join(draft.Dir, scratchName)
	if err := os.Rename(filepath.Join(s.dir(), scratchName), disk); err != nil {
		return err
	}
	m, err := n.write(ctx, from, draft, disk)
	if err != nil {
		return err
	}
	if err := draft.Publish(n.key, warmManifest{savedManifest: m, Key: key, Image: s.snapshot().ImageID}, n.warmth.path(key)); err != nil {
		return err
	}
	if frozen != nil { // the state is on the disk, for later daemons
		saved, from.saved = from.saved, nil
		if err := saved.Close(); err != nil {
			return err
		}
	}
	kept, err := os.Open(filepath.Join(n.warmth.path(key), scratchName))
	if err != nil {
		return err
	}
	n.warmth.keep(key, from, kept)
	return nil
}

// own makes the things of the shadow's VM those of what is copied.
func (s *shadow) own(source vm.Source, things *undoStack) *frozenRun {
	kept := *things
	things.forget()
	log := s.node.options.Log.With("shadow", s.id)
	return &frozenRun{source: source, release: func() { kept.run(log) }}
}

// freeze makes the shadow's VM what others are copied from, or ends it where that cannot be: then it returns nil.
func (s *shadow) freeze(ctx context.Context, machine *sandbox.Sandbox) (vm.Source, error) {
	if s.node.copies(ctx) {
		source, err := machine.Source(ctx)
		if err == nil {
			return source, nil
		}
		s.node.options.Log.Debug("warm virtual machines are restored", "reason", err)
	}
	return nil, machine.Kill()
}
