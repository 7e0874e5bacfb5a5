package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/moby/moby/api/types/container"
	"golang.org/x/sys/unix"

	"github.com/cradlevm/cradle/api"
)

// execRecord is what is kept of an exec, so that a daemon's end is not its end. It lies in a file of its own in the
// container's directory and goes with it.
//
// An exec ends with its VM, and a VM with the machine: what is kept of an exec has to outlive the daemon, not the
// machine. So nothing is ever synced, and the kernel has the file's bytes as soon as they are written. The file is a
// series of JSON objects, each of which adds to those before:
//
//	the request            before its client is told of the exec
//	that it has begun      before the agent is: a daemon that finds less has found an exec that never ran
//	its process id         when the agent has told it
//	its exit code          after its client was, and before the agent is told to forget it
//
// A write that a crash cut short was the last one, and what it would have said is asked of the agent, or was told to
// nobody.
type execRecord struct {
	Request *container.ExecCreateRequest `json:",omitempty"`
	Created time.Time                    `json:",omitzero"`
	Probe   bool                         `json:",omitempty"` // a healthcheck's: of use to nobody but the daemon that began it
	Begun   bool                         `json:",omitempty"`
	PID     int                          `json:",omitempty"` // in the guest, as `top` shows it
	Ended   time.Time                    `json:",omitzero"`
	Code    int                          `json:",omitempty"`
}

// maxExecRecord bounds a record that is read back, bytes: no agent takes a longer request.
const maxExecRecord = 2 * api.MaxMessage

// execDir is where the records of the container's execs lie.
func (c *ctr) execDir() string { return filepath.Join(c.dir(), "execs") }

func (e *exec) path() string { return filepath.Join(e.c.execDir(), e.id) }

// keep writes the record of a new exec. A disk that refuses it must not keep anybody out of a container: the exec is
// then unknown to the next daemon.
func (e *exec) keep() {
	open := func() (*os.File, error) {
		return os.OpenFile(e.path(), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	}
	f, err := open()
	if errors.Is(err, os.ErrNotExist) { // the container's first; its own directory must not come back
		if err = os.Mkdir(e.c.execDir(), 0o700); err == nil || errors.Is(err, os.ErrExist) {
			f, err = open()
		}
	}
	if err == nil {
		err = appendJSON(f, e.rec)
	}
	if err != nil {
		e.c.node.options.Log.Warn("keep exec", "container", e.c.id, "exec", e.id, "err", err)
		e.unkeep()
	}
}

// note adds to the record. Of an exec that is not kept, or has been forgotten, nothing is noted.
func (e *exec) note(more execRecord) {
	e.recordMu.Lock()
	defer e.recordMu.Unlock()
	var err error
	if e.record != nil {
		err = addJSON(e.record, more)
	} else {
		var f *os.File
		if f, err = e.openRecord(); err == nil {
			err = appendJSON(f, more)
		}
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		e.c.node.options.Log.Warn("note exec", "container", e.c.id, "exec", e.id, "err", err)
	}
}

func (e *exec) openRecord() (*os.File, error) {
	return os.OpenFile(e.path(), os.O_APPEND|os.O_WRONLY, 0)
}

// takeOut keeps the record's file open until putAway, for all that is soon to be noted. That is for an exec whose client waits for
// its end, and so holds a descriptor anyway. Without it, or where it fails, each note opens the file.
func (e *exec) takeOut() {
	e.recordMu.Lock()
	defer e.recordMu.Unlock()
	if e.record == nil {
		if f, err := e.openRecord(); err == nil {
			e.record = f
		}
	}
}

// putAway closes the record's file if it is open.
func (e *exec) putAway() {
	e.recordMu.Lock()
	defer e.recordMu.Unlock()
	if e.record != nil {
		e.record.Close()
		e.record = nil
	}
}

// unkeep removes the record.
func (e *exec) unkeep() {
	if err := os.Remove(e.path()); err != nil && !errors.Is(err, os.ErrNotExist) {
		e.c.node.options.Log.Warn("forget exec", "container", e.c.id, "exec", e.id, "err", err)
	}
}

// appendJSON writes one object in one call, and closes the file.
func appendJSON(f *os.File, r execRecord) error { return errors.Join(addJSON(f, r), f.Close()) }

// addJSON writes one object in one call.
func addJSON(f *os.File, r execRecord) error {
	raw, err := json.Marshal(r)
	if err == nil {
		_, err = f.Write(append(raw, '\n'))
	}
	return err
}

// readExec reads a record back as far as it was written. What was cut short is cut off, so that it can be added to.
func readExec(path string) (execRecord, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return execRecord{}, err
	}
	defer f.Close()
	var r execRecord
	d, whole := json.NewDecoder(io.LimitReader(f, maxExecRecord)), int64(0)
	for err == nil {
		more := r
		if err = d.Decode(&more); err == nil {
			r, whole = more, d.InputOffset()
		}
	}
	if r.Request == nil || len(r.Request.Cmd) == 0 {
		return execRecord{}, fmt.Errorf("it is cut short: %w", err)
	}
	if !errors.Is(err, io.EOF) {
		return r, f.Truncate(whole)
	}
	return r, nil
}

// loadExecs takes up what an earlier daemon kept of the container's execs: as they were when it wrote last.
func (c *ctr) loadExecs() {
	entries, err := os.ReadDir(c.execDir())
	if err != nil {
		if !errors.Is(err, os.ErrNotExist) {
			c.node.options.Log.Error("find execs", "container", c.id, "err", err)
		}
		return
	}
	var found []*exec
	for _, entry := range entries {
		rec, err := readExec(filepath.Join(c.execDir(), entry.Name()))
		e := newExec(c, entry.Name(), rec)
		if rec.Begun && rec.Ended.IsZero() && rec.PID == 0 {
			e.asked = make(chan struct{})
		}
		if err == nil && rec.Probe && !rec.Begun {
			err = errors.New("a probe that has not begun")
		}
		if err != nil {
			c.node.options.Log.Info("drop exec", "container", c.id, "exec", e.id, "reason", err)
			e.unkeep()
			continue
		}
		found = append(found, e)
	}
	slices.SortFunc(found, func(a, b *exec) int { return a.rec.Created.Compare(b.rec.Created) })
	for _, e := range found {
		if err := e.register(); err != nil {
			e.unkeep()
			continue
		}
		if !e.rec.Ended.IsZero() {
			e.ended(e.rec.Code)
			close(e.drained)
			e.expire()
		}
	}
}

// loseExecs ends the execs of a container whose VM has gone without their being asked.
func (c *ctr) loseExecs() {
	c.forgetUnstartedExecs()
	for _, e := range c.listExecs() {
		if e.isRunning() {
			e.ended(137)
			close(e.drained)
			e.settle(nil, nil)
		}
	}
}

// adoptExecs goes on with the execs that an earlier daemon left in a VM that has been found again.
func (c *ctr) adoptExecs(r *run) {
	for _, e := range c.listExecs() {
		then := e.adopt
		switch {
		case e.hasEnded(): // the agent may not have been told to forget it
			then = e.release
		case !e.isRunning(): // a client may start it from now on
			continue
		}
		c.node.running.Add(1)
		go func() {
			defer c.node.running.Done()
			then(r)
		}()
	}
}

// The agent knows an exec once its process has been started. An earlier daemon may have died between asking for that
// and the agent's doing so; after this long it has been done or never will be.
const (
	adoptTries = 20
	adoptPause = 250 * time.Millisecond
	// adoptLimit bounds how long others wait for that. The asking itself takes time on a busy host, and whoever is told too early
	// that a process runs may be told later that it never has; but an agent that is silent for good is not waited for.
	adoptLimit = 6 * adoptTries * adoptPause
)

// adopt reads on what the process prints, for nobody, and waits for its end. A probe, whose result nobody waits for any
// more, is ended.
func (e *exec) adopt(r *run) {
	n := e.c.node
	heard := func() {}
	if e.asked != nil {
		heard = sync.OnceFunc(func() { close(e.asked) })
	}
	defer heard()
	for try := 1; ; try++ {
		pid, known, err := r.knows(n.ctx, e.process())
		if pid != 0 { // the earlier daemon may have died before it was told
			e.mu.Lock()
			e.rec.PID = pid
			e.mu.Unlock()
		}
		if known || err != nil { // of a VM that has gone serve will find out
			break
		}
		if try == adoptTries {
			e.unclaim()
			heard()
			if _, err := e.c.current(); err != nil || e.rec.Probe { // nor will it ever
				e.forget()
			}
			return
		}
		if !sleep(n.ctx, adoptPause) {
			return
		}
	}
	heard()
	if e.rec.Probe {
		if err := r.signal(n.ctx, e.process(), int(unix.SIGKILL)); err != nil {
			n.options.Log.Debug("end probe of an earlier daemon", "container", e.c.id, "err", err)
		}
	}
	if e.rec.Request.AttachStdin { // its client has gone with the daemon it spoke to
		if to, err := r.vm.Stdin(n.ctx, e.process()); err == nil {
			to.Close()
		}
	}
	if err := e.serve(n.ctx, r, nil, nowhere()); err != nil {
		n.options.Log.Warn("exec of an earlier daemon", "container", e.c.id, "exec", e.id, "err", err)
	}
}
