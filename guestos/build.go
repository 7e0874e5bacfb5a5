package guestos

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// Build makes the guest directory dst from a kernel, the modules it needs and the agent. An empty release is read
// from the kernel itself. The directory appears whole or not at all; an equal one already there is left alone, so
// that a running guest's files keep their identity, and a different one is replaced.
func Build(dst, kernel, release string, modules []Module, initPath string) (Guest, error) {
	g, err := build(dst, kernel, release, modules, initPath)
	if err != nil {
		return Guest{}, fmt.Errorf("build guest: %w", err)
	}
	return g, nil
}

func build(dst, kernel, release string, modules []Module, initPath string) (Guest, error) {
	release, err := releaseOf(kernel, release)
	if err != nil {
		return Guest{}, err
	}
	parent := filepath.Dir(dst)
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return Guest{}, err
	}
	tmp, err := os.MkdirTemp(parent, ".guest-")
	if err != nil {
		return Guest{}, err
	}
	defer os.RemoveAll(tmp) // nothing is left of it after the rename
	if err := os.Chmod(tmp, 0o755); err != nil {
		return Guest{}, err
	}
	if err := fill(tmp, kernel, release, modules, initPath); err != nil {
		return Guest{}, err
	}
	made, err := Open(tmp)
	if err != nil {
		return Guest{}, err
	}
	if old, err := Open(dst); err == nil && old.Digest == made.Digest && old.Release == made.Release {
		return old, nil
	}
	if err := replaceDir(tmp, dst); err != nil {
		return Guest{}, err
	}
	return Open(dst)
}

// fill writes the files of a guest into dir and flushes them.
func fill(dir, kernel, release string, modules []Module, initPath string) error {
	writers := []struct {
		name string
		to   func(io.Writer) error
	}{
		{kernelFile, func(w io.Writer) error { return copyFile(w, kernel) }},
		{initrdFile, func(w io.Writer) error { return WriteInitrd(w, initPath, modules) }},
		{releaseFile, func(w io.Writer) error { return writeString(w, release+"\n") }},
	}
	var manifest strings.Builder
	for _, f := range writers {
		path := filepath.Join(dir, f.name)
		if err := writeSynced(path, f.to); err != nil {
			return err
		}
		sum, err := sumFile(path)
		if err != nil {
			return err
		}
		fmt.Fprintf(&manifest, "%s  %s\n", sum, f.name)
	}
	err := writeSynced(filepath.Join(dir, manifestFile), func(w io.Writer) error { return writeString(w, manifest.String()) })
	if err != nil {
		return err
	}
	return syncDir(dir)
}

// releaseOf returns the release the kernel says it is, and refuses one that contradicts it.
func releaseOf(kernel, release string) (string, error) {
	f, err := os.Open(kernel)
	if err != nil {
		return "", err
	}
	defer f.Close()
	own, err := KernelRelease(f)
	if err != nil {
		return "", fmt.Errorf("%s: %w", kernel, err)
	}
	if release != "" && release != own {
		return "", fmt.Errorf("%s is release %s, not %s", kernel, own, release)
	}
	return own, nil
}

// replaceDir renames src to dst. A directory cannot be renamed over one that has files, so an older dst first moves
// out of the way, to src's name and ".old".
func replaceDir(src, dst string) error {
	old := src + ".old"
	err := os.Rename(dst, old)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Rename(src, dst); err != nil {
		// Put the older one back, unless another Build was quicker, in which case its guest stands.
		_ = os.Rename(old, dst)
		_ = os.RemoveAll(old)
		if errors.Is(err, fs.ErrExist) || errors.Is(err, syscall.ENOTEMPTY) {
			return nil
		}
		return err
	}
	if err := os.RemoveAll(old); err != nil {
		return err
	}
	return syncDir(filepath.Dir(dst))
}

func writeSynced(path string, write func(io.Writer) error) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	b := bufio.NewWriterSize(f, 1<<20)
	return errors.Join(write(b), b.Flush(), f.Sync(), f.Close())
}

func writeString(w io.Writer, s string) error {
	_, err := io.WriteString(w, s)
	return err
}

func copyFile(w io.Writer, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(w, f)
	return err
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
