package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/cradlevm/cradle/vm"
)

// copies tells whether this daemon copies machines under the monitor's emulation rather than restore them.
func (n *Node) copies(ctx context.Context) bool {
	f, ok := n.options.Driver.(vm.Forker)
	return ok && f.Forks(ctx)
}

// raises tells whether raise is worth trying: it has not turned out, as it does to an ordinary user, that what it restores cannot be frozen.
func (n *Node) raises(ctx context.Context) bool { return !n.unraised.Load() && n.copies(ctx) }

// raise restores what was saved once more, as a shadow of source, which is a container that goes on from it, and freezes that: it is what others are
// copied from, at a fraction of what it costs to restore them. disk is the scratch disk as it was saved; the copies' is what is returned. Its container
// has stood still all the time but, with rehearsed, for rehearsals. Nothing is left on error, which is also returned where nothing can be copied.
func (n *Node) raise(ctx context.Context, source record, from *savedRun, disk string, rehearsed bool) (_ *savedRun, _ *os.File, err error) {
	s := n.newShadow(source)
	log := n.options.Log.With("shadow", s.id)
	var files, things undoStack
	files.push("files", s.removeFiles)
	defer func() { files.run(log) }()
	defer func() { things.run(log) }()
	if err := os.MkdirAll(s.dir(), 0o711); err != nil {
		return nil, nil, err
	}
	if err := s.copyScratch(ctx, disk); err != nil {
		return nil, nil, err
	}
	machine, _, err := s.resurrect(ctx, from, revival{}, newPhases(), &things)
	if err != nil {
		return nil, nil, err
	}
	if rehearsed {
		if err := s.exercise(ctx, machine); err != nil {
			return nil, nil, err
		}
		if err := s.rehearse(ctx, machine); err != nil {
			return nil, nil, fmt.Errorf("rehearse its start: %w", err)
		}
	}
	frozen, err := machine.Source(ctx)
	if err != nil {
		if errors.Is(err, errors.ErrUnsupported) {
			n.unraised.Store(true)
		}
		return nil, nil, err
	}
	held, err := os.Open(filepath.Join(s.dir(), scratchName)) // it has no name from here on
	if err != nil {
		frozen.Close()
		return nil, nil, err
	}
	return &savedRun{frozen: s.own(frozen, &things), config: *s.snapshot().Sandbox, guest: s.id}, held, nil
}

// raiseWarm has the starts from a warm image that was loaded from the disk be copies from now on, as those from one that was made by this daemon
// are. source is a container that has started from it.
func (n *Node) raiseWarm(key string, source record) {
	defer n.running.Done()
	defer n.warmth.done(key)
	log := n.options.Log.With("container", source.ID, "image", source.Config.Image)
	select {
	case n.warmth.making <- struct{}{}: // one at a time, as shadows
		defer func() { <-n.warmth.making }()
	case <-n.ctx.Done():
		return
	}
	i := n.warmth.take(key)
	if i == nil {
		return
	}
	defer n.warmth.give(i)
	if i.from.frozen != nil {
		return
	}
	ctx, cancel := context.WithTimeout(n.ctx, shadowLimit)
	defer cancel()
	began := time.Now()
	from, disk, err := n.raise(ctx, source, i.from, fmt.Sprintf("/proc/self/fd/%d", i.disk.Fd()), true)
	if err != nil {
		if n.ctx.Err() == nil {
			log.Warn("warm virtual machines are restored, which takes longer than copying them", "reason", err)
			n.warmth.restoreOnly(key)
		}
		return
	}
	if !n.warmth.replace(i, from, disk) {
		if err := (&warmImage{from: from, disk: disk}).close(); err != nil {
			log.Error("end frozen virtual machine", "err", err)
		}
		return
	}
	log.Info("warm image is copied from now on", "took", time.Since(began).Round(time.Millisecond))
}
