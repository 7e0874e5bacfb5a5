package guest

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/cradlevm/cradle/api"
	"github.com/cradlevm/cradle/api/wire"
	"github.com/cradlevm/cradle/guest/files"
	"golang.org/x/sys/unix"
)

// What the agent does with a container's files for the host. It looks at them through descriptors: of the container's
// root directory, below which all mounts of the container are seen, or of mounts made for the occasion. So the
// container's thread is free for execs however long an archive takes.

// job is one call that works on a container's files.
type job struct {
	ctx context.Context // ends with the session and the container
	end func()
}

// work begins a job. As long as one goes on, the container's disks are in use.
func (c *container) work(ctx context.Context) (*job, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state != created && c.state != running {
		return nil, api.Errorf(api.CodeFailedPrecondition, "container %s is busy", c.req.ID)
	}
	c.working.Add(1)
	ctx, cancel := context.WithCancel(ctx)
	cut := c.cutWork
	go func() {
		select {
		case <-cut:
			cancel()
		case <-ctx.Done():
		}
	}()
	return &job{ctx, func() { cancel(); c.working.Done() }}, nil
}

// endWork ends the container's jobs; its state keeps others from beginning.
func (c *container) endWork() {
	close(c.cutWork)
	c.working.Wait()
}

// root opens the container's root directory.
func (c *container) root() (fd int, err error) {
	err = c.thread.do(func() error {
		fd, err = unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		return err
	})
	return fd, err
}

// bareRoot opens the container's root file system as if nothing were mounted in it.
func (c *container) bareRoot() (fd int, err error) {
	err = c.thread.do(func() error {
		fd, err = openTree("/")
		return err
	})
	return fd, err
}

func (a *Agent) statPath(r *api.PathRequest) (any, error) {
	c, err := a.container(r.ID)
	if err != nil {
		return nil, err
	}
	j, err := c.work(context.Background())
	if err != nil {
		return nil, err
	}
	defer j.end()
	root, err := c.root()
	if err != nil {
		return nil, err
	}
	defer unix.Close(root)
	return files.Stat(root, r.Path)
}

// streamFiles runs a streaming method that concerns files.
func (a *Agent) streamFiles(c *wire.Call) {
	var r api.ExtractRequest // the other methods' parameters are some of its own
	err := c.Params(&r)
	var ct *container
	if err == nil {
		ct, err = a.container(r.ID)
	}
	var j *job
	if err == nil {
		j, err = ct.work(c.Context)
	}
	if err != nil {
		c.Fail(err)
		return
	}
	defer j.end()
	// Whoever waits for a host that has gone, or for a container that goes, waits no longer.
	defer context.AfterFunc(j.ctx, func() { c.Stream.SetDeadline(time.Unix(1, 0)) })()
	if c.Method == api.MethodExtract {
		ct.extract(c, &r)
		return
	}
	s, err := ct.source(c.Method, r.Path)
	if err != nil {
		c.Fail(err)
		return
	}
	defer s.close()
	if c.Reply(s.result) != nil {
		return
	}
	go func() {
		io.Copy(io.Discard, c.Stream) // ends when the host gives the call up
		c.Stream.SetWriteDeadline(time.Unix(1, 0))
	}()
	w := wire.NewChunkWriter(c.Stream)
	w.End(s.write(w))
}

// source is what a streaming method sends.
type source struct {
	result any
	write  func(io.Writer) error
	close  func()
}

// source opens what a method sends.
func (c *container) source(method, p string) (*source, error) {
	switch method {
	case api.MethodArchive:
		root, err := c.root()
		if err != nil {
			return nil, err
		}
		defer unix.Close(root)
		s, err := files.Open(root, p)
		if err != nil {
			return nil, err
		}
		return &source{s.Stat, s.WriteTar, s.Close}, nil
	case api.MethodExport:
		root, err := c.bareRoot()
		if err != nil {
			return nil, err
		}
		return &source{nil, func(w io.Writer) error { return files.Export(root, w) }, func() { unix.Close(root) }}, nil
	}
	v, err := c.stack()
	if err != nil {
		return nil, err
	}
	write := func(w io.Writer) error { return files.Layer(v.upper, v.lower, w) }
	if method == api.MethodChanges {
		write = func(w io.Writer) error {
			return files.Changes(v.upper, v.lower, func(kind byte, p string) error {
				_, err := fmt.Fprintf(w, "%c%s\x00", kind, p)
				return err
			})
		}
	}
	return &source{nil, write, v.close}, nil
}

// extract unpacks what the host sends.
func (c *container) extract(call *wire.Call, r *api.ExtractRequest) {
	o := files.ExtractOptions{NoOverwriteDirNonDir: r.NoOverwriteDirNonDir}
	var err error
	if r.Owner != "" {
		o.Owner, err = c.ownerOf(r.Owner)
	}
	root := -1
	if err == nil {
		root, err = c.root()
	}
	if err != nil {
		call.Fail(err)
		return
	}
	defer unix.Close(root)
	if call.Reply(nil) != nil {
		return
	}
	in := wire.NewChunkReader(call.Stream)
	err = files.Extract(root, r.Path, o, in)
	if err == nil {
		// What comes after the archive's end: padding, as tar writes it.
		_, err = io.Copy(io.Discard, in)
	}
	wire.NewChunkWriter(call.Stream).End(err)
}

// ownerOf resolves docker's user[:group] by the container's own files.
func (c *container) ownerOf(user string) (*files.Owner, error) {
	var o *files.Owner
	err := c.thread.do(func() error {
		a, err := resolveUser(user, nil, &c.req.Spec.Process.User)
		if err == nil {
			o = &files.Owner{UID: a.uid, GID: a.gid}
		}
		return err
	})
	return o, err
}

// freezeLimit is how long processes may take to stand still: one in the middle of a disk access finishes it first.
const freezeLimit = 10 * time.Second

// freeze stops the container's processes or lets them go on.
func (a *Agent) freeze(r *api.FreezeRequest) error {
	c, err := a.container(r.ID)
	if err != nil {
		return err
	}
	j, err := c.work(context.Background())
	if err != nil {
		return err
	}
	defer j.end()
	value, want := "0", uint64(0)
	if r.Frozen {
		value, want = "1", 1
	}
	if err := c.cgroup.write("cgroup.freeze", value); err != nil {
		return api.Errorf(api.CodeInternal, "freeze: %w", err)
	}
	pause := time.Millisecond
	for deadline := time.Now().Add(freezeLimit); c.cgroup.field("cgroup.events", "frozen") != want; pause = min(2*pause, 50*time.Millisecond) {
		if time.Now().After(deadline) || j.ctx.Err() != nil {
			c.cgroup.write("cgroup.freeze", "0")
			return api.Errorf(api.CodeInternal, "the container's processes do not stand still")
		}
		time.Sleep(pause)
	}
	return nil
}

// update changes the container's limits.
func (a *Agent) update(r *api.UpdateRequest) error {
	c, err := a.container(r.ID)
	if err != nil {
		return err
	}
	if r.Resources == nil {
		return nil
	}
	if len(r.Resources.Devices) > 0 {
		return api.Errorf(api.CodeInvalid, "devices of a container cannot be updated")
	}
	j, err := c.work(context.Background())
	if err != nil {
		return err
	}
	defer j.end()
	return c.cgroup.relimit(r.Resources)
}
