package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cradlevm/cradle/image"
	"github.com/cradlevm/cradle/sandbox"
	"github.com/cradlevm/cradle/snapshot"
)

// Bounds of what is kept.
const (
	maxWarmImages = 16
	maxWarmBytes  = 8 << 30
	// maxWarmLoaded is how many are kept in the host's memory.
	maxWarmLoaded = 4
	// warmRetry is how long a configuration whose shadow has failed is left alone.
	warmRetry = 24 * time.Hour
)

// warmManifest describes a warm image; it is in a directory of its key's name.
type warmManifest struct {
	savedManifest
	Key   string `json:"key"`
	Image string `json:"image,omitempty"` // its id: a warm image is of no use without, and does not keep it
}

// warmth is the warm images that there are. A failed shadow leaves a file KEY.failed, which says why.
type warmth struct {
	dir      string
	maxBytes int64         // that they may take on the disk together
	making   chan struct{} // held by the one who makes a shadow

	mu       sync.Mutex
	wanted   map[string]bool // keys whose shadows are being made
	loaded   []*warmImage    // the one used last is last
	uncopied map[string]bool // keys whose machines have failed to be copied: they are restored as long as this daemon runs
}

// warmImage is one in the host's memory.
type warmImage struct {
	key  string
	from *savedRun
	disk *os.File // the scratch disk as from expects it, whatever has come to be at its path
	// users are restoring from it; the last one closes it when it is dropped.
	users   int
	dropped bool
}

// openWarmth makes the directory and removes what an earlier daemon has left unfinished.
func openWarmth(dir string) (*warmth, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open warm images: %w", err)
	}
	if err := snapshot.Sweep(dir); err != nil {
		return nil, fmt.Errorf("open warm images: %w", err)
	}
	if err := sweepFailures(dir); err != nil {
		return nil, fmt.Errorf("open warm images: %w", err)
	}
	return &warmth{dir: dir, maxBytes: maxWarmBytes, making: make(chan struct{}, 1), wanted: map[string]bool{}, uncopied: map[string]bool{}}, nil
}

func (w *warmth) path(key string) string { return filepath.Join(w.dir, key) }

// close lets go of what is in memory.
func (w *warmth) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, i := range w.loaded {
		w.dropLocked(i)
	}
	w.loaded = nil
}

// failure is where it is said why the shadow of key came to nothing.
func (w *warmth) failure(key string) string { return w.path(key) + failureSuffix }

const failureSuffix = ".failed"

// sweepFailures removes what is said of failures that keep nobody from trying again.
func sweepFailures(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		fi, err := e.Info()
		if err == nil && strings.HasSuffix(e.Name(), failureSuffix) && !recent(fi) {
			errs = append(errs, os.Remove(filepath.Join(dir, e.Name())))
		}
	}
	return errors.Join(errs...)
}

// recent tells of a failure that keeps others from trying again; one that is still to come, the clock having been put back, does not.
func recent(fi fs.FileInfo) bool {
	age := time.Since(fi.ModTime())
	return age > -time.Minute && age < warmRetry
}

// want reports whether a shadow is to be made for key, and that it is from now on: not while another is, nor soon after
// one has failed.
func (w *warmth) want(key string) bool {
	if why, _ := w.failed(key); why != "" {
		return false
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.wanted[key] {
		return false
	}
	w.wanted[key] = true
	return true
}

func (w *warmth) done(key string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.wanted, key)
}

// busy reports whether shadows are being made.
func (w *warmth) busy() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.wanted) > 0
}

// failed tells why the shadow of key came to nothing, and when, as long as that keeps it from being made again; empty when it does not.
func (w *warmth) failed(key string) (why string, at time.Time) {
	fi, err := os.Stat(w.failure(key))
	if err != nil || !recent(fi) {
		return "", at
	}
	text, err := os.ReadFile(w.failure(key))
	if err != nil || len(text) == 0 {
		return "nobody knows why", fi.ModTime()
	}
	return clean(strings.TrimSpace(string(text))), fi.ModTime()
}

// fail remembers that the shadow of key came to nothing.
func (w *warmth) fail(key string, why error) {
	// If even that cannot be written, it is tried again at the next start: no more often than containers start.
	now := time.Now() // by the clock that recent looks at
	_ = errors.Join(os.WriteFile(w.failure(key), []byte(clean(why.Error())+"\n"), 0o600), os.Chtimes(w.failure(key), now, now))
}

// keep puts a warm image with its disk into memory, as the one used last.
func (w *warmth) keep(key string, from *savedRun, disk *os.File) {
	w.unload(key)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.loaded = append(w.loaded, &warmImage{key: key, from: from, disk: disk})
	if len(w.loaded) > maxWarmLoaded {
		w.dropLocked(w.loaded[0])
		w.loaded = w.loaded[1:]
	}
}

// replace puts another form of an image into memory in old's place. false when old is not there any more.
func (w *warmth) replace(old *warmImage, from *savedRun, disk *os.File) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	at := slices.Index(w.loaded, old)
	if at < 0 {
		return false
	}
	w.loaded[at] = &warmImage{key: old.key, from: from, disk: disk}
	w.dropLocked(old)
	return true
}

// restoreOnly remembers that there is no use in copying the machine of key.
func (w *warmth) restoreOnly(key string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.uncopied[key] = true
}

func (w *warmth) restoredOnly(key string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.uncopied[key]
}

// take returns the image in memory, for use until give; nil when it is not there.
func (w *warmth) take(key string) *warmImage {
	w.mu.Lock()
	defer w.mu.Unlock()
	at := slices.IndexFunc(w.loaded, func(i *warmImage) bool { return i.key == key })
	if at < 0 {
		return nil
	}
	i := w.loaded[at]
	w.loaded = append(slices.Delete(w.loaded, at, at+1), i)
	i.users++
	return i
}

func (w *warmth) give(i *warmImage) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if i.users--; i.users == 0 && i.dropped {
		i.close()
	}
}

func (w *warmth) dropLocked(i *warmImage) {
	if i.dropped = true; i.users == 0 {
		i.close()
	}
}

func (i *warmImage) close() error { return errors.Join(i.from.close(), i.disk.Close()) }

// unload removes an image from memory.
func (w *warmth) unload(key string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if at := slices.IndexFunc(w.loaded, func(i *warmImage) bool { return i.key == key }); at >= 0 {
		w.dropLocked(w.loaded[at])
		w.loaded = slices.Delete(w.loaded, at, at+1)
	}
}

// forget removes an image from memory and disk.
func (w *warmth) forget(key string) error {
	w.unload(key)
	w.mu.Lock()
	delete(w.uncopied, key)
	w.mu.Unlock()
	return os.RemoveAll(w.path(key))
}

// evict removes those used least recently until the rest is within bounds; never the one of key.
func (w *warmth) evict(key string) error {
	type image struct {
		key   string
		used  time.Time
		bytes int64
	}
	entries, err := os.ReadDir(w.dir)
	if err != nil {
		return err
	}
	var all []image
	var total int64
	for _, e := range entries {
		fi, err := os.Stat(filepath.Join(w.dir, e.Name(), snapshot.ManifestName))
		if err != nil {
			continue
		}
		i := image{key: e.Name(), used: fi.ModTime(), bytes: snapshot.DiskUse(filepath.Join(w.dir, e.Name()))}
		all, total = append(all, i), total+i.bytes
	}
	slices.SortFunc(all, func(a, b image) int { return a.used.Compare(b.used) })
	errs := []error{sweepFailures(w.dir)}
	for left := len(all); len(all) > 0 && (left > maxWarmImages || total > w.maxBytes); all = all[1:] {
		if all[0].key != key {
			errs = append(errs, w.forget(all[0].key))
			left--
			total -= all[0].bytes
		}
	}
	return errors.Join(errs...)
}

// forgetWarmOfGone removes the warm images whose images have been removed.
func (n *Node) forgetWarmOfGone() {
	entries, err := os.ReadDir(n.warmth.dir)
	if err != nil {
		n.options.Log.Error("list warm images", "err", err)
	}
	for _, e := range entries {
		var m warmManifest
		if n.key.Verify(n.warmth.path(e.Name()), &m) != nil || m.Image == "" {
			continue // who starts from it throws it away
		}
		if _, err := n.options.Images.Get(m.Image); !errors.Is(err, image.ErrNotFound) {
			continue
		}
		if err := n.warmth.forget(e.Name()); err != nil {
			n.options.Log.Error("remove warm image", "err", err)
		}
	}
}

// loadWarm returns the warm image of a key, for use until give. fs.ErrNotExist when there is none.
func (n *Node) loadWarm(ctx context.Context, key string) (*warmImage, error) {
	if i := n.warmth.take(key); i != nil {
		return i, nil
	}
	dir := n.warmth.path(key)
	var m warmManifest
	if err := n.key.Verify(dir, &m); err != nil {
		return nil, err
	}
	if m.Key != key {
		return nil, errors.New("it is another one's")
	}
	from, err := n.load(ctx, m.savedManifest, dir, filepath.Join(dir, scratchName))
	if err != nil {
		return nil, err
	}
	disk, err := os.Open(filepath.Join(dir, scratchName))
	if err != nil {
		return nil, errors.Join(err, from.close())
	}
	n.warmth.keep(key, from, disk)
	if i := n.warmth.take(key); i != nil {
		return i, nil
	}
	return nil, fs.ErrNotExist // pushed out at once by others
}

// startWarm brings the container up from the warm image of its key. nil without one, or when that fails: then the caller
// starts it as ever, and nothing of the attempt is left. What undoes it is pushed.
func (c *ctr) startWarm(ctx context.Context, key string, steps *phases, undo *undoStack) *sandbox.Sandbox {
	n := c.node
	log := n.options.Log.With("container", c.id)
	machine, frozen, err := c.tryWarm(ctx, key, steps, undo)
	if err != nil && frozen && ctx.Err() == nil && !isHostError(err) {
		log.Warn("copy warm virtual machine; restoring it", "err", err)
		n.warmth.restoreOnly(key)
		n.warmth.unload(key)
		machine, frozen, err = c.tryWarm(ctx, key, steps, undo)
	}
	if err == nil {
		if !frozen && n.raises(ctx) && !n.warmth.restoredOnly(key) && n.warmth.want(key) && n.enter() == nil {
			go n.raiseWarm(key, c.snapshot())
		}
		return machine
	}
	if _, there := os.Stat(n.warmth.path(key)); ctx.Err() != nil || there != nil { // it says nothing about the image, or there is none
		return nil
	}
	log.Warn("start from warm image; starting cold", "err", err)
	if isHostError(err) {
		return nil
	}
	if err := n.warmth.forget(key); err != nil {
		log.Error("remove warm image", "err", err)
	}
	return nil
}

// tryWarm is startWarm, once; fs.ErrNotExist without a warm image. frozen tells that it was one that is copied.
func (c *ctr) tryWarm(ctx context.Context, key string, steps *phases, undo *undoStack) (_ *sandbox.Sandbox, frozen bool, err error) {
	i, err := c.node.loadWarm(ctx, key)
	if err != nil {
		return nil, false, err
	}
	defer c.node.warmth.give(i)
	steps.done("load")
	var mine undoStack
	machine, err := c.warmUp(ctx, key, i, steps, &mine)
	if err != nil {
		mine.run(c.node.options.Log.With("container", c.id))
		return nil, i.from.frozen != nil, err
	}
	undo.steps = append(undo.steps, mine.steps...)
	return machine, i.from.frozen != nil, nil
}

func (c *ctr) warmUp(ctx context.Context, key string, i *warmImage, steps *phases, undo *undoStack) (*sandbox.Sandbox, error) {
	if err := os.MkdirAll(c.dir(), 0o711); err != nil {
		return nil, hostError{err}
	}
	undo.push("disk", func() error { return os.RemoveAll(filepath.Join(c.dir(), scratchName)) })
	if err := c.copyScratch(ctx, fmt.Sprintf("/proc/self/fd/%d", i.disk.Fd())); err != nil {
		return nil, hostError{err}
	}
	now := time.Now()
	if err := os.Chtimes(filepath.Join(c.node.warmth.path(key), snapshot.ManifestName), now, now); err != nil {
		return nil, hostError{err}
	}
	return c.revive(ctx, i.from, revival{all: true}, steps, undo)
}
