package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
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

// storeVersion is the layout of the state store; a store of a newer one is left alone. In layout 1 everything was in the
// lasting file.
const storeVersion = 2

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

	// Cloning: it is being made from another one that runs, and not all that are made with it run yet; a daemon that finds it so removes it.
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

// store keeps records; every method is one transaction, or two where a record moves.
//
// A daemon may be killed at any moment, and what it had written then is there: the kernel has it. Only what has to outlive
// the host, which may lose its power, must be synced, and that takes longer than all else that a transaction does. So there
// are two files, since one in which some transactions are synced and others are not may be torn by a power failure:
//
//	state.db         what lasts: every transaction is synced
//	state-BOOT.db    what is over when the host is, and is never synced
//
// The second has the records of containers that are removed at their end. Their ends come with the host's at the latest, and
// docker's daemon, too, removes such ones when it starts. BOOT is the kernel's name of the time since the host was booted: of
// a file of an earlier one nothing is believed, not even that it is whole, and it is deleted. What lies about of its
// containers is what no record names, and is swept. A container that is hibernated has no end by that, and its record lasts.
//
// bbolt writes a transaction's pages where no earlier one has any, and then, in one piece, the page that names them: a
// daemon that is killed between two writes, synced or not, has not made the transaction.
type store struct{ lasting, fleeting *bolt.DB }

// bootID is where Linux tells the name of the time since the host was booted.
const bootID = "/proc/sys/kernel/random/boot_id"

// openStore opens the store in a directory or says in one sentence why not. A damaged file is left as it is.
func openStore(dir string) (*store, error) {
	lasting, err := openRecords(filepath.Join(dir, "state.db"), bolt.Options{})
	if err != nil {
		return nil, err
	}
	fleeting, err := openFleeting(dir)
	if err != nil {
		return nil, errors.Join(err, lasting.Close())
	}
	return &store{lasting, fleeting}, nil
}

// openFleeting opens the file of the time since the host was booted, and deletes those of earlier ones.
func openFleeting(dir string) (*bolt.DB, error) {
	boot, err := os.ReadFile(bootID)
	if err != nil {
		return nil, fmt.Errorf("open state: %w", err)
	}
	path := filepath.Join(dir, "state-"+strings.TrimSpace(string(boot))+".db")
	files, err := filepath.Glob(filepath.Join(dir, "state-*.db"))
	for _, f := range files {
		if f != path {
			err = errors.Join(err, os.Remove(f))
		}
	}
	if err != nil {
		return nil, fmt.Errorf("open state: %w", err)
	}
	// The list of free pages is written: to find them anew, bbolt would read a damaged file in a goroutine of its own.
	return openRecords(path, bolt.Options{NoSync: true, NoGrowSync: true})
}

// openRecords opens one of the store's files.
func openRecords(path string, o bolt.Options) (_ *bolt.DB, err error) {
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
	o.Timeout, o.OpenFile = time.Second, open
	db, err := bolt.Open(path, 0o600, &o)
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
	return db, nil
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

func (s *store) Close() error { return errors.Join(s.lasting.Close(), s.fleeting.Close()) }

// fleets reports whether a record is over when the host is.
func (r *record) fleets() bool { return r.HostConfig.AutoRemove && !r.Hibernated }

// put saves a record where it belongs. One that was in the other file is there until it is in this one: of two, the lasting
// one counts.
func (s *store) put(r record) error {
	to, from := s.lasting, s.fleeting
	if r.fleets() {
		to, from = from, to
	}
	raw, err := json.Marshal(r)
	if err == nil {
		err = to.Update(func(tx *bolt.Tx) error { return tx.Bucket(bucketContainers).Put([]byte(r.ID), raw) })
	}
	if err == nil {
		err = deleteRecord(from, r.ID)
	}
	if err != nil {
		return fmt.Errorf("save container %s: %w", r.ID, err)
	}
	return nil
}

// endCloning has records of containers that were made together, as like is, say so no more, all in one transaction: of a daemon that is killed the next
// one finds all of them, or none. One that has been removed meanwhile stays so.
func (s *store) endCloning(like record, ids []string) error {
	db := s.lasting
	if like.fleets() {
		db = s.fleeting
	}
	err := db.Update(func(tx *bolt.Tx) error {
		records := tx.Bucket(bucketContainers)
		for _, id := range ids {
			raw := records.Get([]byte(id))
			if raw == nil {
				continue
			}
			var r record
			if err := json.Unmarshal(raw, &r); err != nil {
				return err
			}
			r.Cloning = false
			raw, err := json.Marshal(r)
			if err == nil {
				err = records.Put([]byte(id), raw)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("save clones: %w", err)
	}
	return nil
}

// delete deletes a record. The lasting one goes last, since it is the one that counts.
func (s *store) delete(id string) error {
	if err := deleteRecord(s.fleeting, id); err != nil {
		return err
	}
	return deleteRecord(s.lasting, id)
}

// deleteRecord deletes a record, if there is one.
func deleteRecord(db *bolt.DB, id string) error {
	there := false
	err := db.View(func(tx *bolt.Tx) error {
		there = tx.Bucket(bucketContainers).Get([]byte(id)) != nil
		return nil
	})
	if err != nil || !there {
		return err
	}
	return db.Update(func(tx *bolt.Tx) error { return tx.Bucket(bucketContainers).Delete([]byte(id)) })
}

// poolChange is what putPoolChange has stored; empty before.
func (s *store) poolChange() (c pool.Change, err error) {
	err = s.lasting.View(func(tx *bolt.Tx) error {
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
		err = s.lasting.Update(func(tx *bolt.Tx) error { return tx.Bucket(bucketMeta).Put(keyPool, raw) })
	}
	if err != nil {
		return fmt.Errorf("save the pool's settings: %w", err)
	}
	return nil
}

// all returns every record.
func (s *store) all() ([]record, error) {
	found := map[string]record{}
	for _, db := range []*bolt.DB{s.fleeting, s.lasting} { // of two the second counts
		err := db.View(func(tx *bolt.Tx) error {
			return tx.Bucket(bucketContainers).ForEach(func(id, raw []byte) error {
				var r record
				if err := json.Unmarshal(raw, &r); err != nil {
					return fmt.Errorf("container %s: %w", id, err)
				}
				found[string(id)] = r
				return nil
			})
		})
		if err != nil {
			return nil, fmt.Errorf("read state: %w", err)
		}
	}
	return slices.Collect(maps.Values(found)), nil
}
