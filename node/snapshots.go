package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cradlevm/cradle/image"
	"github.com/cradlevm/cradle/snapshot"
)

// snapshotLabel on a container names the snapshot that it was run from.
const snapshotLabel = "dev.cradle.snapshot"

// maxSnapshots bounds how many are kept: each is some hundred megabytes, and nobody removes them but the user.
const maxSnapshots = 1024

// snapshotName is what a snapshot can be called: it is a directory's name, too.
var snapshotName = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}$`) })

// namedManifest describes a named snapshot; it is in a directory of its name.
type namedManifest struct {
	savedManifest
	Name    string    `json:"name"`
	Created time.Time `json:"created"`
	Source  record    `json:"source"` // the container, as it was configured
}

// NamedSnapshot tells of a snapshot.
type NamedSnapshot struct {
	Name      string
	Created   time.Time
	Container string // the name of the one that was saved, then
	Image     string // as that one was given it
	Bytes     int64  // that it takes on the disk
	Guest     string // the guest's digest, without which it cannot be run
	Monitor   string // the same for the virtual machine monitor
	Damaged   string `json:",omitempty"` // why it cannot be read; then there is nothing but Name and Bytes beside it
}

// shelf is the named snapshots that there are.
type shelf struct {
	dir string
	mu  sync.RWMutex // held for reading while one is run, for writing while one comes or goes
}

// openShelf makes the directory and removes what an earlier daemon has left unfinished.
func openShelf(dir string) (*shelf, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open snapshots: %w", err)
	}
	if err := snapshot.Sweep(dir); err != nil {
		return nil, fmt.Errorf("open snapshots: %w", err)
	}
	return &shelf{dir: dir}, nil
}

func (s *shelf) path(name string) string { return filepath.Join(s.dir, name) }

// room says whether there is room for one more of this name. mu is held.
func (s *shelf) room(name string) error {
	if _, err := os.Lstat(s.path(name)); err == nil {
		return conflict("there is a snapshot %s already", name)
	}
	entries, err := os.ReadDir(s.dir)
	if err == nil && len(entries) >= maxSnapshots {
		err = conflict("there are %d snapshots, and no more than %d can be kept", len(entries), maxSnapshots)
	}
	return err
}

// SnapshotCreate saves a running container under a name; an empty one is of the daemon's choosing. The container goes
// on. It is done, or nothing is left, whether or not its client hangs up.
func (n *Node) SnapshotCreate(ctx context.Context, name, of string) (s NamedSnapshot, err error) {
	if name == "" {
		name = newID()[:12]
	}
	if !snapshotName().MatchString(name) {
		return s, invalid("invalid name of a snapshot: %q", name)
	}
	c, err := n.find(of)
	if err != nil {
		return s, err
	}
	if err := n.enter(); err != nil {
		return s, err
	}
	defer n.running.Done()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), startLimit)
	defer cancel()
	defer context.AfterFunc(n.ctx, cancel)()
	n.shelf.mu.RLock()
	err = n.shelf.room(name) // before anything is made
	n.shelf.mu.RUnlock()
	if err != nil {
		return s, err
	}
	source := c.snapshot()
	if source.Dir != "" {
		return s, unsupported("a snapshot of a container that runs from a summoned directory is not supported")
	}
	draft, err := snapshot.NewDraft(n.shelf.dir)
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, draft.Discard()) }()
	scratch := filepath.Join(draft.Dir, scratchName)
	from, _, err := c.fork(ctx, scratch)
	if err != nil {
		return s, err
	}
	defer from.saved.Close()
	m := namedManifest{Name: name, Created: time.Now(), Source: source}
	if m.savedManifest, err = n.write(ctx, from, draft, scratch); err != nil {
		return s, err
	}
	if err := n.shelve(draft, m); err != nil {
		return s, err
	}
	return n.describe(m), nil
}

// shelve gives a finished draft its name, and holds the image that what is run from it needs.
func (n *Node) shelve(draft *snapshot.Draft, m namedManifest) error {
	n.shelf.mu.Lock()
	defer n.shelf.mu.Unlock()
	if err := n.shelf.room(m.Name); err != nil { // another one was quicker
		return err
	}
	if err := draft.Publish(n.key, m, n.shelf.path(m.Name)); err != nil {
		return err
	}
	// A crash may come before the hold: the next daemon makes it (holdSnapshots).
	if err := n.options.Images.Hold(m.Source.ImageID, shelfOwner(m.Name)); err != nil {
		return errors.Join(imageError(err), n.unshelve(m.Name))
	}
	return nil
}

// unshelve removes a snapshot. shelf.mu is held. The hold goes first: the next daemon makes it again where a crash comes
// before the rest, and could not find it afterwards.
func (n *Node) unshelve(name string) error {
	if err := n.options.Images.Release(shelfOwner(name)); err != nil {
		return err
	}
	return os.RemoveAll(n.shelf.path(name))
}

// shelfOwner is who holds a snapshot's image.
func shelfOwner(name string) string { return "snapshot/" + name }

// holdSnapshots holds the images of all snapshots; of one that is damaged it is held as it was.
func (n *Node) holdSnapshots() error {
	n.shelf.mu.RLock()
	defer n.shelf.mu.RUnlock()
	for m := range n.manifests() {
		err := n.options.Images.Hold(m.Source.ImageID, shelfOwner(m.Name))
		if err != nil && !errors.Is(err, image.ErrNotFound) { // that is told when it is run
			return fmt.Errorf("hold image of snapshot %s: %w", m.Name, err)
		}
	}
	return nil
}

// manifests are those of the snapshots that are not damaged. shelf.mu is held.
func (n *Node) manifests() iter.Seq[namedManifest] {
	return func(yield func(namedManifest) bool) {
		entries, _ := os.ReadDir(n.shelf.dir) // what can be read
		for _, e := range entries {
			if m, err := n.named(e.Name()); err == nil && !yield(m) {
				return
			}
		}
	}
}

// snapshotOf names a snapshot of a container of this image; empty when there is none.
func (n *Node) snapshotOf(imageID string) string {
	n.shelf.mu.RLock()
	defer n.shelf.mu.RUnlock()
	for m := range n.manifests() {
		if m.Source.ImageID == imageID {
			return m.Name
		}
	}
	return ""
}

// describe is what is told of a snapshot.
func (n *Node) describe(m namedManifest) NamedSnapshot {
	return NamedSnapshot{
		Name: m.Name, Created: m.Created, Container: strings.TrimPrefix(m.Source.Name, "/"), Image: m.Source.Config.Image,
		Bytes: snapshot.DiskUse(n.shelf.path(m.Name)), Guest: m.Form.Guest, Monitor: m.Form.Monitor,
	}
}

// named reads a snapshot's manifest. shelf.mu is held.
func (n *Node) named(name string) (m namedManifest, err error) {
	if !snapshotName().MatchString(name) {
		return m, notFound("No such snapshot: %s", name)
	}
	err = n.key.Verify(n.shelf.path(name), &m)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return m, notFound("No such snapshot: %s", name)
	case err != nil:
		return m, conflict("snapshot %s is damaged: %v", name, err)
	case m.Name != name:
		return m, conflict("snapshot %s is damaged: it is called %q", name, m.Name)
	}
	return m, nil
}

// SnapshotInspect tells of one snapshot.
func (n *Node) SnapshotInspect(_ context.Context, name string) (NamedSnapshot, error) {
	n.shelf.mu.RLock()
	defer n.shelf.mu.RUnlock()
	m, err := n.named(name)
	if err != nil {
		return NamedSnapshot{}, err
	}
	return n.describe(m), nil
}

// SnapshotList tells of all snapshots, the newest first.
func (n *Node) SnapshotList(context.Context) ([]NamedSnapshot, error) {
	n.shelf.mu.RLock()
	defer n.shelf.mu.RUnlock()
	entries, err := os.ReadDir(n.shelf.dir)
	if err != nil {
		return nil, fmt.Errorf("list snapshots: %w", err)
	}
	list := []NamedSnapshot{}
	for _, e := range entries {
		if !snapshotName().MatchString(e.Name()) {
			continue // one in the making
		}
		m, err := n.named(e.Name())
		if err != nil {
			list = append(list, NamedSnapshot{Name: e.Name(), Bytes: snapshot.DiskUse(n.shelf.path(e.Name())), Damaged: err.Error()})
			continue
		}
		list = append(list, n.describe(m))
	}
	slices.SortStableFunc(list, func(a, b NamedSnapshot) int { return b.Created.Compare(a.Created) })
	return list, nil
}

// SnapshotRemove removes a snapshot, damaged or not. Containers that were run from it stay.
func (n *Node) SnapshotRemove(_ context.Context, name string) error {
	n.shelf.mu.Lock()
	defer n.shelf.mu.Unlock()
	if !snapshotName().MatchString(name) {
		return notFound("No such snapshot: %s", name)
	}
	if _, err := os.Lstat(n.shelf.path(name)); errors.Is(err, fs.ErrNotExist) {
		return notFound("No such snapshot: %s", name)
	}
	return n.unshelve(name)
}

// SnapshotRun makes a container that goes on from a snapshot, with an identity of its own, and returns its id. It comes
// to run or is not left. called may be empty.
func (n *Node) SnapshotRun(ctx context.Context, name, called string) (id string, err error) {
	if err := n.enter(); err != nil {
		return "", err
	}
	defer n.running.Done()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), startLimit)
	defer cancel()
	defer context.AfterFunc(n.ctx, cancel)()
	n.shelf.mu.RLock()
	defer n.shelf.mu.RUnlock()
	m, err := n.named(name)
	if err != nil {
		return "", err
	}
	dir := n.shelf.path(name)
	from, err := n.load(ctx, m.savedManifest, dir, filepath.Join(dir, scratchName))
	if err != nil {
		return "", fmt.Errorf("snapshot %s: %w", name, err)
	}
	defer from.saved.Close()
	c, err := n.addSaved(m.Source, called, map[string]string{snapshotLabel: name})
	if err != nil {
		return "", err
	}
	defer c.op.Unlock()
	if err = os.MkdirAll(c.dir(), 0o711); err == nil {
		err = c.copyScratch(ctx, filepath.Join(dir, scratchName))
	}
	if err == nil {
		err = c.goOnFrom(ctx, from, revival{})
	}
	if err == nil {
		err = n.keep([]*ctr{c})
	}
	if err != nil {
		c.undone()
		return "", fmt.Errorf("run snapshot %s: %w", name, err)
	}
	return c.id, nil
}
