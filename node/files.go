package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"golang.org/x/sys/unix"

	"github.com/cradlevm/cradle/api"
	"github.com/cradlevm/cradle/dockerapi"
	"github.com/cradlevm/cradle/image"
	"github.com/cradlevm/cradle/sandbox"
)

// filesOf is withFiles of the container of that name, with the guest's errors in docker's classes and words.
func (n *Node) filesOf(ctx context.Context, name, path string, do func(context.Context, *ctr, *sandbox.Sandbox) error) error {
	c, err := n.find(name)
	if err != nil {
		return err
	}
	err = c.withFiles(ctx, func(ctx context.Context, vm *sandbox.Sandbox) error { return do(ctx, c, vm) })
	var answered *api.Error
	if !errors.As(err, &answered) {
		return err
	}
	switch {
	case answered.Code == api.CodeNotFound && path != "":
		return notFound("Could not find the file %s in container %s", path, name)
	case answered.Code == api.CodeInvalid:
		return invalid("%s", clean(answered.Message))
	case answered.Code == api.CodeUnsupported:
		return unsupported("%s", clean(answered.Message))
	case answered.Code == api.CodeFailedPrecondition:
		return conflict("%s", clean(answered.Message))
	}
	return errors.New(clean(answered.Message))
}

// pathStat is the guest's stat in Go's words, which are docker's.
func pathStat(s api.PathStat) container.PathStat {
	mode := os.FileMode(s.Mode & 0o777)
	switch s.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		mode |= os.ModeDir
	case unix.S_IFLNK:
		mode |= os.ModeSymlink
	case unix.S_IFIFO:
		mode |= os.ModeNamedPipe
	case unix.S_IFSOCK:
		mode |= os.ModeSocket
	case unix.S_IFBLK:
		mode |= os.ModeDevice
	case unix.S_IFCHR:
		mode |= os.ModeDevice | os.ModeCharDevice
	}
	for bit, m := range map[uint32]os.FileMode{unix.S_ISUID: os.ModeSetuid, unix.S_ISGID: os.ModeSetgid, unix.S_ISVTX: os.ModeSticky} {
		if s.Mode&bit != 0 {
			mode |= m
		}
	}
	return container.PathStat{
		Name: s.Name, Size: s.Size, Mode: mode, Mtime: time.Unix(0, s.MtimeNanos).UTC(), LinkTarget: s.LinkTarget,
	}
}

// ContainerStatPath implements dockerapi.Backend.
func (n *Node) ContainerStatPath(ctx context.Context, name, path string) (stat container.PathStat, err error) {
	err = n.filesOf(ctx, name, path, func(ctx context.Context, c *ctr, vm *sandbox.Sandbox) error {
		s, err := vm.StatPath(ctx, api.PathRequest{ID: c.id, Path: path})
		stat = pathStat(s)
		return err
	})
	return stat, err
}

// ContainerArchive implements dockerapi.Backend.
func (n *Node) ContainerArchive(ctx context.Context, name, path string, begin func(container.PathStat) io.Writer) error {
	return n.filesOf(ctx, name, path, func(ctx context.Context, c *ctr, vm *sandbox.Sandbox) error {
		body, s, err := vm.Archive(ctx, api.PathRequest{ID: c.id, Path: path})
		if err != nil {
			return err
		}
		defer body.Close()
		c.emit(events.ActionArchivePath, map[string]string{"path": path})
		_, err = io.Copy(begin(pathStat(s)), body)
		return err
	})
}

// ContainerExtract implements dockerapi.Backend.
func (n *Node) ContainerExtract(ctx context.Context, name, path string, o dockerapi.ExtractOptions, r io.Reader) error {
	return n.filesOf(ctx, name, path, func(ctx context.Context, c *ctr, vm *sandbox.Sandbox) error {
		e := api.ExtractRequest{PathRequest: api.PathRequest{ID: c.id, Path: path}, NoOverwriteDirNonDir: o.NoOverwriteDirNonDir}
		if o.CopyUIDGID { // what docker makes of it: all is the container's user's
			e.Owner = c.snapshot().Config.User
		}
		plain, err := image.Decompress(r)
		if err != nil {
			return imageError(err)
		}
		defer plain.Close()
		if err := vm.Extract(ctx, e, plain); err != nil {
			return err
		}
		c.emit(events.ActionExtractToDir, map[string]string{"path": path})
		return nil
	})
}

// ContainerChanges implements dockerapi.Backend.
func (n *Node) ContainerChanges(ctx context.Context, name string) ([]container.FilesystemChange, error) {
	kinds := map[byte]container.ChangeType{
		api.Modified: container.ChangeModify, api.Added: container.ChangeAdd, api.Deleted: container.ChangeDelete,
	}
	var list []container.FilesystemChange
	err := n.filesOf(ctx, name, "", func(ctx context.Context, c *ctr, vm *sandbox.Sandbox) error {
		return vm.Changes(ctx, c.id, func(kind byte, p string) {
			list = append(list, container.FilesystemChange{Kind: kinds[kind], Path: p})
		})
	})
	return list, err
}

// ContainerExport implements dockerapi.Backend.
func (n *Node) ContainerExport(ctx context.Context, name string, w io.Writer) error {
	return n.filesOf(ctx, name, "", func(ctx context.Context, c *ctr, vm *sandbox.Sandbox) error {
		body, err := vm.Export(ctx, c.id)
		if err != nil {
			return err
		}
		defer body.Close()
		c.emit(events.ActionExport, nil)
		if _, err := io.Copy(w, body); err != nil {
			return fmt.Errorf("export container %s: %w", c.id, err)
		}
		return nil
	})
}
