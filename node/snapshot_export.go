package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"sync"

	"github.com/cradlevm/cradle/image"
	"github.com/cradlevm/cradle/snapshot"
)

// An exported snapshot is an archive (package snapshot) whose head is an archiveHead, with a part for each file, the disk
// among them, and the image's archive as the part imagePart, last: what it needs is the image that the saved guest has
// mounted, byte for byte, for its kernel has pieces of it in memory.

// archiveFormat changes with what is in an exported snapshot.
const archiveFormat = 1

// imagePart is the part with the image's archive.
const imagePart = "image"

// fileName is what the files of a snapshot are called.
var fileName = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[a-z][a-z0-9.]{0,31}$`) })

// maxSnapshotFiles bounds the files of an imported snapshot: there are four.
const maxSnapshotFiles = 8

// archiveHead describes an exported snapshot.
type archiveHead struct {
	Format   int           `json:"format"`
	Snapshot namedManifest `json:"snapshot"` // as portable returns it
	Layers   []string      `json:"layers"`   // snapshot.Digest of each layer's file
	Image    bool          `json:"image"`    // is in the archive
}

// SnapshotExport writes a snapshot as an archive that SnapshotImport reads; withImage, with the image that it needs. begin is
// called before the first byte, when all that can be checked is. The snapshot may be removed meanwhile.
func (n *Node) SnapshotExport(ctx context.Context, name string, withImage bool, begin func(), w io.Writer) error {
	m, files, err := n.openSnapshot(ctx, name)
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	if err != nil {
		return err
	}
	head := archiveHead{Format: archiveFormat, Image: withImage}
	if head.Snapshot, err = n.portable(m); err != nil {
		return fmt.Errorf("export snapshot %s: %w", name, err)
	}
	if head.Layers, err = n.layerDigests(ctx, m.Source.ImageID); err != nil {
		return fmt.Errorf("export snapshot %s: %w", name, err)
	}
	begin()
	if err := n.writeArchive(ctx, head, files, w); err != nil {
		return fmt.Errorf("export snapshot %s: %w", name, err)
	}
	return nil
}

// openSnapshot opens the files of a snapshot that is whole.
func (n *Node) openSnapshot(ctx context.Context, name string) (m namedManifest, files []*os.File, err error) {
	n.shelf.mu.RLock()
	defer n.shelf.mu.RUnlock()
	if m, err = n.named(name); err != nil {
		return m, nil, err
	}
	dir := n.shelf.path(name)
	from, err := n.read(ctx, m.savedManifest, dir, filepath.Join(dir, scratchName))
	if err != nil {
		return m, nil, fmt.Errorf("snapshot %s: %w", name, err)
	}
	if err := from.saved.Close(); err != nil {
		return m, nil, err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return m, nil, err
	}
	for _, e := range entries {
		if e.Name() == snapshot.ManifestName {
			continue
		}
		f, err := os.Open(filepath.Join(dir, e.Name()))
		if err != nil {
			return m, files, err
		}
		files = append(files, f)
	}
	return m, files, nil
}

func (n *Node) writeArchive(ctx context.Context, head archiveHead, files []*os.File, w io.Writer) error {
	a, err := snapshot.NewArchiveWriter(w, head)
	if err != nil {
		return err
	}
	for _, f := range files {
		if err := a.File(ctx, filepath.Base(f.Name()), f); err != nil {
			return err
		}
	}
	if head.Image {
		err := a.Stream(imagePart, func(w io.Writer) error {
			return imageError(n.options.Images.Save(ctx, []string{head.Snapshot.Source.ImageID}, w))
		})
		if err != nil {
			return err
		}
	}
	return a.Close()
}

// layersOf are an image's layers as machines get them.
func (n *Node) layersOf(ctx context.Context, imageID string) ([]image.Layer, error) {
	img, err := n.options.Images.Get(imageID)
	if err == nil && !n.options.Guest.Erofs512 {
		img, err = n.options.Images.Plain(ctx, img)
	}
	return img.Layers, imageError(err)
}

func (n *Node) layerDigests(ctx context.Context, imageID string) ([]string, error) {
	layers, err := n.layersOf(ctx, imageID)
	sums := []string{}
	for _, l := range layers {
		sum, e := snapshot.Digest(ctx, l.Path)
		sums, err = append(sums, sum), errors.Join(err, e)
	}
	return sums, err
}
