package pool

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/cradlevm/cradle/api"
	"github.com/cradlevm/cradle/erofs"
	"github.com/cradlevm/cradle/sandbox"
	"github.com/cradlevm/cradle/vm"
)

// Paths in the layer that sandboxes are warmed with, and the disks' serials, which no container's are.
const (
	noopPath    = "/bin/noop"
	noopLoader  = "/noop.so"
	warmID      = "warm"
	preparedID  = "warm-prepared"
	warmLayer   = "warmlayer"
	warmScratch = "warmscratch"
)

// warmLimit bounds one warming; it takes some 200 ms, more on a busy machine.
const warmLimit = 60 * time.Second

// Warm is what a sandbox does once before it counts as ready, so that what a container costs the first time is
// paid before a user waits: a container is made, run with another process in it, and removed.
type Warm struct {
	// Request is a container's as it usually is; the pool puts in the root filesystem and the program.
	Request api.CreateRequest
	// Scratch makes a container's writable disk as it usually is.
	Scratch func(ctx context.Context, path string) error
	// Networks are those that a guest usually comes to, in turn. The last one is taken back afterwards.
	Networks []api.NetworkRequest
}

// makeLayer writes the image to path: the program that does nothing, and the users that an image usually has. What is there of an
// earlier daemon's is not believed: whatever is wrong with it would be found by warmings that fail.
func makeLayer(path string, form erofs.Form) error {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, dir := range []string{"bin", "dev", "etc", "proc", "sys", "tmp"} {
		if err := w.WriteHeader(&tar.Header{Name: dir + "/", Typeflag: tar.TypeDir, Mode: 0o755}); err != nil {
			return err
		}
	}
	program := func(interpreter string) []byte {
		return elf(assemble(noopSteps(), entryOf(interpreter)), interpreter)
	}
	for _, f := range []struct {
		name    string
		mode    int64
		content []byte
	}{
		{noopPath, 0o755, program(noopLoader)},
		{noopLoader, 0o755, program("")},
		{"/etc/passwd", 0o644, []byte("root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1:daemon:/usr/sbin:/bin/false\n")},
		{"/etc/group", 0o644, []byte("root:x:0:\ndaemon:x:1:\nwheel:x:10:root\n")},
	} {
		if err := w.WriteHeader(&tar.Header{Name: f.name[1:], Typeflag: tar.TypeReg, Mode: f.mode, Size: int64(len(f.content))}); err != nil {
			return err
		}
		if _, err := w.Write(f.content); err != nil {
			return err
		}
	}
	if err := w.Close(); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".new-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	if _, err := erofs.FromTar(f, &b, erofs.Options{Form: form}); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// run warms a sandbox whose runtime directory is dir, by a container that is made at once or, with prepared, in two halves. Nothing of it
// is left in the sandbox.
func (w *Warm) run(ctx context.Context, s *sandbox.Sandbox, layer, dir string, prepared bool) (err error) {
	ctx, cancel := context.WithTimeout(ctx, warmLimit)
	defer cancel()
	scratch := filepath.Join(dir, warmScratch)
	if err := w.Scratch(ctx, scratch); err != nil {
		return hostError{err}
	}
	defer func() { err = errors.Join(err, os.Remove(scratch)) }()
	disks := []vm.Disk{{Serial: warmLayer, Path: layer, ReadOnly: true}, {Serial: warmScratch, Path: scratch}}
	if err := s.Plug(ctx, disks...); err != nil {
		return err
	}
	for _, network := range w.Networks {
		if err := s.Network(ctx, network); err != nil {
			return fmt.Errorf("warm: %w", err)
		}
	}
	err = w.container(ctx, s, prepared)
	if err == nil {
		err = s.Network(ctx, api.NetworkRequest{})
	}
	if err != nil {
		return fmt.Errorf("warm: %w", err)
	}
	return s.Unplug(ctx, disks...)
}

// container runs the program as a container, and once more in it while it waits for the end of its standard input.
func (w *Warm) container(ctx context.Context, s *sandbox.Sandbox, prepared bool) error {
	r := w.Request
	r.ID, r.StdinOpen = warmID, true
	r.Rootfs = api.Rootfs{
		Layers: []api.Disk{{Serial: warmLayer, FSType: "erofs"}},
		Upper:  &api.Disk{Serial: warmScratch, FSType: "ext4"},
	}
	spec, process := *r.Spec, *r.Spec.Process
	process.Args = []string{filepath.Base(noopPath)}
	spec.Process, r.Spec = &process, &spec
	ref := api.ProcessRef{ID: warmID}
	if prepared {
		first, rest := r.Split()
		first.ID, first.Park, first.Seccomp, first.Read = preparedID, true, r.Seccomp, []string{noopPath}
		if err := s.Prepare(ctx, first); err != nil {
			return err
		}
		r, r.Prepared = rest, preparedID
		r.Configure = &api.ConfigureRequest{Hostname: warmID, UnixNanos: time.Now().UnixNano()}
	}
	first, _, err := s.Run(ctx, r)
	if err != nil {
		return err
	}
	defer first.Close()
	stdin, err := s.Stdin(ctx, ref)
	if err != nil {
		return err
	}
	second, _, err := s.Exec(ctx, api.ExecRequest{ID: warmID, Exec: warmID, Args: process.Args})
	if err == nil {
		err = ended(ctx, second)
		second.Forget()
	}
	if err = errors.Join(err, stdin.Close()); err != nil {
		return err
	}
	if err := ended(ctx, first); err != nil {
		return err
	}
	return s.Delete(ctx, ref)
}

// ended waits until a process has ended well.
func ended(ctx context.Context, out *sandbox.Output) error {
	defer context.AfterFunc(ctx, func() { out.Close() })()
	for {
		if _, _, _, err := out.Next(); err == io.EOF {
			break
		} else if err != nil {
			return errors.Join(err, context.Cause(ctx))
		}
	}
	if status, _ := out.Exit(); status.Code != 0 {
		return fmt.Errorf("the program that does nothing ended with %d", status.Code)
	}
	return nil
}
