package pool

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/cradlevm/cradle/api"
	"github.com/cradlevm/cradle/api/wire"
	"github.com/cradlevm/cradle/sandbox"
	"github.com/cradlevm/cradle/snapshot"
	"github.com/cradlevm/cradle/vm"
)

// Names below the templates' directory.
const (
	keyName   = "mac.key"
	layerName = "noop-3.erofs"
)

// templateFormat changes with what is in a template, how it is made or how it is warmed.
const templateFormat = 3

// base is what templates of all sizes depend on.
type base struct {
	Format   int    `json:"format"`
	Protocol int    `json:"protocol"` // api.ProtocolVersion
	Guest    string `json:"guest"`    // guestos.Guest.Digest
	Monitor  string `json:"monitor"`  // vm.Restorer.StateVersion
	NICs     int    `json:"nics"`
}

// manifest describes a template; it lies beside its files, after its MAC.
type manifest struct {
	Base   base       `json:"base"`
	Class  Class      `json:"class"`
	Token  wire.Token `json:"token"`  // what the saved agent knows; no restored one is left with it
	Digest string     `json:"digest"` // vm.Saved.Digest
}

// template is a loaded one.
type template struct {
	manifest
	saved vm.Saved
	size  int64 // what it takes of the host's memory, bytes
}

// store keeps templates in a directory, each in one of its own named by what it depends on. One process at a time
// may use it.
type store struct {
	dir      string
	driver   vm.Driver
	restorer vm.Restorer
	fixed    base         // but for Monitor: see current
	key      snapshot.Key // a template from elsewhere is none
}

// openStore opens dir and removes from it what an interrupted run, or an earlier version, has left.
func openStore(ctx context.Context, dir string, driver vm.Driver, guest string, nics int) (*store, error) {
	r, ok := driver.(vm.Restorer)
	if !ok {
		return nil, errors.New("this virtual machine monitor cannot restore")
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	s := &store{dir: dir, driver: driver, restorer: r,
		fixed: base{Format: templateFormat, Protocol: api.ProtocolVersion, Guest: guest, NICs: nics}}
	current, err := s.current(ctx)
	if err != nil {
		return nil, err
	}
	if s.key, _, err = snapshot.OpenKey(filepath.Join(dir, keyName)); err != nil {
		return nil, err
	}
	if err := snapshot.Sweep(dir); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if e.Name() == keyName {
			continue
		}
		path := filepath.Join(dir, e.Name())
		if m, err := s.read(path); err != nil || m.Base != current || unused(path) {
			if err := os.RemoveAll(path); err != nil {
				return nil, err
			}
		}
	}
	return s, nil
}

// keepUnused is how long a template that no daemon has loaded stays on the disk.
const keepUnused = 7 * 24 * time.Hour

// unused tells whether a template was last loaded too long ago: load leaves the time at its manifest. One that is still to come,
// the clock having been put back, becomes now.
func unused(dir string) bool {
	path := filepath.Join(dir, snapshot.ManifestName)
	fi, err := os.Stat(path)
	if err != nil {
		return false
	}
	now := time.Now()
	if fi.ModTime().After(now) {
		_ = os.Chtimes(path, now, now) // the next daemon tries it again
	}
	return now.Sub(fi.ModTime()) > keepUnused
}

// current is what templates depend on now: the monitor may be upgraded while a daemon runs.
func (s *store) current(ctx context.Context) (base, error) {
	b := s.fixed
	var err error
	b.Monitor, err = s.restorer.StateVersion(ctx)
	return b, err
}

// path is where the template of a class belongs.
func (s *store) path(b base, c Class) string {
	id, err := json.Marshal(struct {
		Base  base
		Class Class
	}{b, c})
	if err != nil {
		panic(err) // strings and numbers
	}
	sum := sha256.Sum256(id)
	return filepath.Join(s.dir, hex.EncodeToString(sum[:16]))
}

// read returns a template's manifest if its MAC is right.
func (s *store) read(dir string) (m manifest, err error) {
	if err := s.key.Verify(dir, &m); err != nil {
		return manifest{}, err
	}
	return m, nil
}

// load reads the template of a class into memory and checks all of it. fs.ErrNotExist when there is none.
func (s *store) load(ctx context.Context, c Class) (*template, error) {
	current, err := s.current(ctx)
	if err != nil {
		return nil, err
	}
	dir := s.path(current, c)
	m, err := s.read(dir)
	if err != nil {
		return nil, err
	}
	if m.Base != current || m.Class != c {
		return nil, fmt.Errorf("template %s is another one's", dir)
	}
	saved, err := s.restorer.Load(ctx, dir)
	if err != nil {
		return nil, err
	}
	if saved.Digest() != m.Digest {
		saved.Close()
		return nil, fmt.Errorf("template %s is damaged: its digest is %s, not %s", dir, saved.Digest(), m.Digest)
	}
	now := time.Now()
	_ = os.Chtimes(filepath.Join(dir, snapshot.ManifestName), now, now) // else it is made anew a week later
	return &template{manifest: m, saved: saved, size: snapshot.DiskUse(dir)}, nil
}

// build cold-boots a sandbox, lets prepare warm it, and saves it as the template of its class. config is complete but
// for Savable and the token. Nothing of the sandbox is left, nor of a template that could not be finished.
func (s *store) build(ctx context.Context, c Class, config sandbox.Config, prepare func(*sandbox.Sandbox) error) (_ *template, err error) {
	current, err := s.current(ctx)
	if err != nil {
		return nil, err
	}
	draft, err := snapshot.NewDraft(s.dir)
	if err != nil {
		return nil, err
	}
	defer draft.Discard() // of no effect once it has its name
	config.VM.Savable, config.Token = true, sandbox.NewToken()
	if err := s.save(ctx, config, draft.Dir, prepare); err != nil {
		return nil, err
	}
	saved, err := s.restorer.Load(ctx, draft.Dir)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			saved.Close()
		}
	}()
	m := manifest{Base: current, Class: c, Token: config.Token, Digest: saved.Digest()}
	path := s.path(current, c)
	if err := draft.Publish(s.key, m, path); err != nil {
		return nil, err
	}
	return &template{manifest: m, saved: saved, size: snapshot.DiskUse(path)}, nil
}

// save boots, prepares and saves a sandbox into dir.
func (s *store) save(ctx context.Context, config sandbox.Config, dir string, prepare func(*sandbox.Sandbox) error) (err error) {
	box, err := sandbox.Start(ctx, s.driver, config)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, box.Kill()) }()
	if err := prepare(box); err != nil {
		return err
	}
	return box.Snapshot(ctx, dir)
}

// drop removes the template of a class from the disk.
func (s *store) drop(c Class) error {
	current, err := s.current(context.Background())
	if err != nil {
		return err
	}
	return os.RemoveAll(s.path(current, c))
}
