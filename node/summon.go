package node

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/platforms"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cradlevm/cradle/guestos"
	"github.com/cradlevm/cradle/image"
)

// A summoned directory holds all that a VM needs:
//
//	cradle.json          the manifest: what to run, with which kernel, from which layers
//	kernel, initrd       what the guest boots
//	layers/N.erofs       the image's layers, the lowest being 0
//
// It can be edited (the manifest's config, another kernel, another layer), copied, and run with `cradle run ./DIR`.

// summonedLabel on a container's create request names the summoned directory to run from, as an absolute path.
const summonedLabel = "dev.cradle.summoned"

// summonedManifest is the name of the manifest; its size is bounded.
const (
	summonedManifest      = "cradle.json"
	maxSummonedManifest   = 8 << 20
	summonedFormatVersion = 1
)

// summoned is the manifest.
type summoned struct {
	Version int                       `json:"version"`
	Image   string                    `json:"image"` // the name it was made from, for a person
	Kernel  string                    `json:"kernel"`
	Initrd  string                    `json:"initrd"`
	Release string                    `json:"release"` // of the kernel
	Config  dockerspec.DockerOCIImage `json:"config"`
	Layers  []summonedLayer           `json:"layers"`
}

type summonedLayer struct {
	Path   string `json:"path"`
	DiffID string `json:"diffId"`
	Size   int64  `json:"size"` // of the tar, bytes
}

// Summon writes a tar archive of the directory for an image, which has to be for the platform unless that is nil.
// found is called once the image is known, before the first byte.
func (n *Node) Summon(ctx context.Context, ref string, platform *ocispec.Platform, found func(), w io.Writer) error {
	img, err := n.options.Images.Get(ref)
	if err != nil {
		return imageError(err)
	}
	if err := checkPlatform(ref, platform, img); err != nil {
		return err
	}
	owner := "summon-" + newID()
	if err := n.options.Images.Borrow(img.ID, owner); err != nil {
		return imageError(err)
	}
	defer func() {
		if err := n.options.Images.Release(owner); err != nil {
			n.options.Log.Error("release image", "err", err)
		}
	}()
	if !n.options.Guest.Erofs512 {
		if img, err = n.options.Images.Plain(ctx, img); err != nil {
			return imageError(err)
		}
	}
	m := summoned{
		Version: summonedFormatVersion, Image: ref, Kernel: "kernel", Initrd: "initrd",
		Release: n.options.Guest.Release, Config: img.Config,
	}
	files := []string{n.options.Guest.Kernel, n.options.Guest.Initrd}
	names := []string{m.Kernel, m.Initrd}
	for i, l := range img.Layers {
		name := fmt.Sprintf("layers/%d.erofs", i)
		m.Layers = append(m.Layers, summonedLayer{Path: name, DiffID: l.DiffID, Size: l.Size})
		files, names = append(files, l.Path), append(names, name)
	}
	manifest, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	found()
	t := tar.NewWriter(w)
	h := &tar.Header{Name: summonedManifest, Mode: 0o644, Size: int64(len(manifest)), ModTime: time.Now()}
	if err := t.WriteHeader(h); err != nil {
		return err
	}
	if _, err := t.Write(manifest); err != nil {
		return err
	}
	for i, path := range files {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := addFile(t, names[i], path); err != nil {
			return fmt.Errorf("summon %s: %w", ref, err)
		}
	}
	return t.Close()
}

func addFile(t *tar.Writer, name, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	if err := t.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: fi.Size(), ModTime: fi.ModTime()}); err != nil {
		return err
	}
	_, err = io.Copy(t, f)
	return err
}

// openSummoned reads a summoned directory as an image and its guest. Every path must stay inside the directory.
func openSummoned(dir string) (image.Image, guestos.Guest, error) {
	fail := func(format string, args ...any) (image.Image, guestos.Guest, error) {
		return image.Image{}, guestos.Guest{}, invalid("virtual machine directory %s: %s", dir, fmt.Sprintf(format, args...))
	}
	if !filepath.IsAbs(dir) {
		return fail("the path is not absolute")
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fail("%v", err)
	}
	defer root.Close()
	f, err := root.Open(summonedManifest)
	if err != nil {
		return fail("%v", err)
	}
	defer f.Close()
	var m summoned
	if err := json.NewDecoder(io.LimitReader(f, maxSummonedManifest)).Decode(&m); err != nil {
		return fail("%s: %v", summonedManifest, err)
	}
	if m.Version != summonedFormatVersion {
		return fail("its format is %d, this cradle knows %d", m.Version, summonedFormatVersion)
	}
	if m.Config.Architecture != "" && !platforms.Only(platforms.DefaultSpec()).Match(ocispec.Platform{OS: "linux", Architecture: m.Config.Architecture, Variant: m.Config.Variant}) {
		return fail("it is for %s, not for this machine", m.Config.Architecture)
	}
	path := func(name string) (string, error) {
		if !filepath.IsLocal(name) {
			return "", errors.New("path " + name + " leaves the directory")
		}
		if fi, err := root.Stat(name); err != nil {
			return "", err
		} else if !fi.Mode().IsRegular() {
			return "", errors.New(name + " is not a file")
		}
		return filepath.Join(dir, name), nil
	}
	img := image.Image{Config: m.Config}
	guest := guestos.Guest{Release: m.Release}
	if guest.Kernel, err = path(m.Kernel); err != nil {
		return fail("kernel: %v", err)
	}
	if guest.Initrd, err = path(m.Initrd); err != nil {
		return fail("initrd: %v", err)
	}
	if len(m.Layers) == 0 {
		return fail("it names no layers")
	}
	for _, l := range m.Layers {
		p, err := path(l.Path)
		if err != nil {
			return fail("layer: %v", err)
		}
		img.Layers = append(img.Layers, image.Layer{DiffID: l.DiffID, Path: p, Size: l.Size})
		img.Size += l.Size
	}
	return img, guest, nil
}
