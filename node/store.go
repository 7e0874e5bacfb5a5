package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"time"

	"github.com/moby/moby/api/types/container"
	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
	"golang.org/x/sys/unix"

	"github.com/cradlevm/cradle/api"
	"github.com/cradlevm/cradle/node/runspec"
	"github.com/cradlevm/cradle/pool"
	"github.com/cradlevm/cradle/sandbox"
)

// storeVersion is the layout of the state store; a store of a newer one is left alone.
const storeVersion = 1

var (
	bucketMeta       = []byte("meta")
	bucketContainers = []byte("containers")
	keyVersion       = []byte("version")
	keyPool          = []byte("pool") // in meta: a pool.Change, of what was set while a daemon ran
)

// record is what a container is on disk.
type record struct {
	ID         string
	Name       string
	Created    time.Time
	ImageID    string
	Config     container.Config     // image and client merged; Image as the client gave it
	HostConfig container.HostConfig // as the client gave it
	Platform   string

	// Dir is a summoned VM directory that the container runs from instead of the store's image.
	Dir string `json:",omitempty"`

	Status       container.ContainerState // created, running, paused, restarting, exited
	ExitCode     int
	Error        string
	OOMKilled    bool
	Started      time.Time
	Finished     time.Time
	RestartCount int
	// StoppedByUser keeps a restart policy from starting it again.
	StoppedByUser bool

	// Sandbox is there while a VM may be; Booting with it until its container runs: a daemon that finds it so has found
	// a start that was cut short.
	Sandbox *sandbox.Config `json:",omitempty"`
	Booting bool            `json:",omitempty"`

	// Within is there while it may be in another container's sandbox, instead of one of its own; Booting as above.
	Within *place `json:",omitempty"`

	// Cloning: it is being made from another one that runs, and not yet there; a daemon that finds it so removes it.
	Cloning bool `json:",omitempty"`

	// Hibernated: its processes, with the machine they ran in, lie in its directory, to go on from there.
	Hibernated bool `json:",omitempty"`

	// Links are its networks.
	Links []link `json:",omitempty"`

	// Policy is that of all its networks that have none of their own; nil: everything may pass.
	Policy *api.NetworkPolicy `json:",omitempty"`

	// Removing: its removal has begun, and is finished by whoever finds it so.
	Removing bool `json:",omitempty"`
}

// spec is the record as package runspec wants it.
func (r *record) spec() runspec.Container {
	return runspec.Container{ID: r.ID, Config: &r.Config, Host: &r.HostConfig}
}

// store keeps records; every method is one synced transaction.
type store struct{ db *bolt.DB }

// openStore opens the store or says in one sentence why not. A damaged file is left as it is.
func openStore(path string) (_ *store, err error) {
	// bbolt reads through a mapping: of a file that was cut short it takes a fault, not an error.
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	var file *os.File
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("open state %s: it is damaged: %v", path, p)
			if file != nil { // the mapping that is left keeps the file's lock alive
				unix.Flock(int(file.Fd()), unix.LOCK_UN)
				file.Close()
			}
		}
	}()
	open := func(name string, flag int, mode os.FileMode) (_ *os.File, err error) {
		file, err = os.OpenFile(name, flag, mode)
		return file, err
	}
	db, err := bolt.Open(path, 0o600, &bolt.Options{Timeout: time.Second, OpenFile: open})
	if errors.Is(err, bolterrors.ErrTimeout) {
		return nil, fmt.Errorf("open state %s: another daemon has it open", path)
	}
	if err != nil {
		return nil, fmt.Errorf("open state %s: %w", path, err)
	}
	if err := db.View(checkStore); err != nil {
		return nil, fmt.Errorf("open state %s: %w", path, errors.Join(err, db.Close()))
	}
	if err := db.Update(initStore); err != nil {
		return nil, fmt.Errorf("open state %s: %w", path, errors.Join(err, db.Close()))
	}
	return &store{db}, nil
}

// checkStore reads the whole store once: it is small, and what cannot be read is better known before the first change.
// (bbolt's own check runs in a goroutine of its own, whose panics nobody could catch.)
func checkStore(tx *bolt.Tx) error {
	fi, err := os.Stat(tx.DB().Path())
	if err != nil {
		return err
	}
	if fi.Size() < tx.Size() {
		return fmt.Errorf("it is damaged: %d bytes of %d are there", fi.Size(), tx.Size())
	}
	return tx.ForEach(func(_ []byte, b *bolt.Bucket) error {
		return b.ForEach(func([]byte, []byte) error { return nil })
	})
}

// initStore makes the buckets of a new store, and refuses one that is too new.
func initStore(tx *bolt.Tx) error {
	meta, err := tx.CreateBucketIfNotExists(bucketMeta)
	if err != nil {
		return err
	}
	if raw := meta.Get(keyVersion); raw != nil {
		var v int
		if err := json.Unmarshal(raw, &v); err != nil {
			return fmt.Errorf("its version is unreadable: %w", err)
		}
		if v > storeVersion {
			return fmt.Errorf("it was written by a newer cradle (layout %d, this one knows %d)", v, storeVersion)
		}
	}
	if _, err := tx.CreateBucketIfNotExists(bucketContainers); err != nil {
		return err
	}
	raw, err := json.Marshal(storeVersion)
	if err != nil {
		return err
	}
	return meta.Put(keyVersion, raw)
}

func (s *store) Close() error { return s.db.Close() }

func (s *store) put(r record) error {
	raw, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("save container %s: %w", r.ID, err)
	}
	err = s.db.Update(func(tx *bolt.Tx) error { return tx.Bucket(bucketContainers).Put([]byte(r.ID), raw) })
	if err != nil {
		return fmt.Errorf("save container %s: %w", r.ID, err)
	}
	return nil
}

func (s *store) delete(id string) error {
	return s.db.Update(func(tx *bolt.Tx) error { return tx.Bucket(bucketContainers).Delete([]byte(id)) })
}

// poolChange is what putPoolChange has stored; empty before.
func (s *store) poolChange() (c pool.Change, err error) {
	err = s.db.View(func(tx *bolt.Tx) error {
		raw := tx.Bucket(bucketMeta).Get(keyPool)
		if raw == nil {
			return nil
		}
		return json.Unmarshal(raw, &c)
	})
	if err != nil {
		return pool.Change{}, fmt.Errorf("read the pool's settings: %w", err)
	}
	return c, nil
}

func (s *store) putPoolChange(c pool.Change) error {
	raw, err := json.Marshal(c)
	if err == nil {
		err = s.db.Update(func(tx *bolt.Tx) error { return tx.Bucket(bucketMeta).Put(keyPool, raw) })
	}
	if err != nil {
		return fmt.Errorf("save the pool's settings: %w", err)
	}
	return nil
}

func (s *store) all() ([]record, error) {
	var out []record
	err := s.db.View(func(tx *bolt.Tx) error {
		return tx.Bucket(bucketContainers).ForEach(func(id, raw []byte) error {
			var r record
			if err := json.Unmarshal(raw, &r); err != nil {
				return fmt.Errorf("container %s: %w", id, err)
			}
			out = append(out, r)
			return nil
		})
	})
	if err != nil {
		return nil, fmt.Errorf("read state: %w", err)
	}
	return out, nil
}
