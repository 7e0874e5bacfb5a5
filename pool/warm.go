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
	noopPath    = "/noop"
	noopLoader  = "/noop.so"
	warmID      = "warm"
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

// makeLayer writes the image with the program that does nothing to path, unless it is there.
func makeLayer(path string, form erofs.Form) error {
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, dir := range []string{"dev", "etc", "proc", "sys", "tmp"} {
		if err := w.WriteHeader(&tar.Header{Name: dir + "/", Typeflag: tar.TypeDir, Mode: 0o755}); err != nil {
			return err
		}
	}
	for name, interpreter := range map[string]string{noopPath: noopLoader, noopLoader: ""} {
		content := elf(assemble(noopSteps(), noopPath, entryOf(interpreter)), interpreter)
		if err := w.WriteHeader(&tar.Header{Name: name[1:], Typeflag: tar.TypeReg, Mode: 0o755, Size: int64(len(content))}); err != nil {
			return err
		}
		if _, err := w.Write(content); err != nil {
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

// run warms a sandbox whose runtime directory is dir. Nothing of it is left in the sandbox.
func (w *Warm) run(ctx context.Context, s *sandbox.Sandbox, layer, dir string) (err error) {
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
	err = w.container(ctx, s)
	if err == nil {
		err = s.Network(ctx, api.NetworkRequest{})
	}
	if err != nil {
		return fmt.Errorf("warm: %w", err)
	}
	return s.Unplug(ctx, disks...)
}

// container runs the program as a container, and once more in it while it waits for the end of its standard input.
func (w *Warm) container(ctx context.Context, s *sandbox.Sandbox) error {
	r := w.Request
	r.ID, r.StdinOpen = warmID, true
	r.Rootfs = api.Rootfs{
		Layers: []api.Disk{{Serial: warmLayer, FSType: "erofs"}},
		Upper:  &api.Disk{Serial: warmScratch, FSType: "ext4"},
	}
	spec, process := *r.Spec, *r.Spec.Process
	process.Args = []string{noopPath}
	spec.Process, r.Spec = &process, &spec
	ref := api.ProcessRef{ID: warmID}
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
