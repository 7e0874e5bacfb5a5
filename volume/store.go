package volume

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Errors of a Store, to be found with errors.Is.
var (
	ErrName     = errors.New("invalid volume name")
	ErrNotFound = errors.New("no such volume")
)

// Volume is a named volume: a disk with a file system of its own, which outlives the containers that write to it.
type Volume struct {
	Name    string
	Created time.Time
	Labels  map[string]string `json:",omitempty"`
	Options map[string]string `json:",omitempty"` // the driver's, as its user gave them
	Size    int64             // of the disk, bytes
}

// Store keeps named volumes in a directory of its own. A volume is a directory of its name with its description and its
// disk, and comes and goes by one rename. Any goroutine may call its methods.
type Store struct {
	dir     string
	scratch *Scratch

	mu      sync.Mutex
	volumes map[string]Volume
}

// Names of what is in a volume's directory, and of directories that are not volumes: no volume's name begins with a dot.
const (
	volumeFile = "volume.json"
	volumeDisk = "disk.ext4"
	makingName = ".making"
	goingName  = ".going-"
)

// OpenStore opens the volumes below dir, which need not be there, and sweeps what a crash has left of others. Disks are made by
// scratch.
func OpenStore(dir string, scratch *Scratch) (*Store, error) {
	s := &Store{dir: dir, scratch: scratch, volumes: map[string]Volume{}}
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("open volumes: %w", err)
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if strings.HasPrefix(e.Name(), ".") {
			if err := os.RemoveAll(path); err != nil {
				return nil, fmt.Errorf("open volumes: %w", err)
			}
			continue
		}
		b, err := os.ReadFile(filepath.Join(path, volumeFile))
		if err != nil {
			return nil, fmt.Errorf("open volumes: %w", err)
		}
		var v Volume
		if err := json.Unmarshal(b, &v); err != nil || v.Name != e.Name() {
			return nil, fmt.Errorf("open volumes: %s is damaged: %v", filepath.Join(path, volumeFile), err)
		}
		s.volumes[v.Name] = v
	}
	return s, nil
}

// Create makes a volume as v says, but for when, unless there is one of its name, and returns what there is and whether it was
// made. Errors: ErrName, ErrInvalid for its size, ErrNoSpace, ErrNoMkfs, ctx's; nothing is left then.
func (s *Store) Create(ctx context.Context, v Volume) (_ Volume, made bool, err error) {
	if !validName(v.Name) {
		return Volume{}, false, fmt.Errorf("%w: %q includes invalid characters for a local volume name, only \"[a-zA-Z0-9][a-zA-Z0-9_.-]\" are allowed", ErrName, v.Name)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if there, ok := s.volumes[v.Name]; ok {
		return there.clone(), false, nil
	}
	v = v.clone()
	v.Created = time.Now()
	making := filepath.Join(s.dir, makingName)
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("create volume %s: %w", v.Name, err), os.RemoveAll(making))
		}
	}()
	if err := s.fill(ctx, making, v); err != nil {
		return Volume{}, false, err
	}
	if err := os.Rename(making, filepath.Join(s.dir, v.Name)); err != nil {
		return Volume{}, false, err
	}
	s.volumes[v.Name] = v
	return v.clone(), true, syncFile(s.dir)
}

// fill makes a volume's directory.
func (s *Store) fill(ctx context.Context, dir string, v Volume) error {
	if err := os.MkdirAll(s.dir, 0o711); err != nil {
		return err
	}
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, volumeFile), b, 0o600); err != nil {
		return err
	}
	disk := filepath.Join(dir, volumeDisk)
	if err := s.scratch.New(ctx, disk, v.Size); err != nil {
		return err
	}
	return errors.Join(syncFile(filepath.Join(dir, volumeFile)), Sync(disk))
}

// Get finds a volume. Errors: ErrNotFound.
func (s *Store) Get(name string) (Volume, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v, ok := s.volumes[name]
	if !ok {
		return Volume{}, fmt.Errorf("get %s: %w", name, ErrNotFound)
	}
	return v.clone(), nil
}

// List returns all volumes, by name.
func (s *Store) List() []Volume {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []Volume
	for _, name := range slices.Sorted(maps.Keys(s.volumes)) {
		list = append(list, s.volumes[name].clone())
	}
	return list
}

// Remove deletes a volume and all that is in it. Nobody may use it. Errors: ErrNotFound.
func (s *Store) Remove(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.volumes[name]; !ok {
		return fmt.Errorf("get %s: %w", name, ErrNotFound)
	}
	going := filepath.Join(s.dir, goingName+name)
	if err := os.Rename(filepath.Join(s.dir, name), going); err != nil {
		return fmt.Errorf("remove volume %s: %w", name, err)
	}
	delete(s.volumes, name)
	if err := errors.Join(syncFile(s.dir), os.RemoveAll(going)); err != nil {
		return fmt.Errorf("remove volume %s: %w", name, err)
	}
	return nil
}

// Disk is where a volume's disk is. It is there as long as the volume.
func (s *Store) Disk(name string) string { return filepath.Join(s.dir, name, volumeDisk) }

// Used is what a volume's disk takes on the host, bytes.
func (s *Store) Used(name string) (int64, error) {
	var st syscall.Stat_t
	if err := syscall.Stat(s.Disk(name), &st); err != nil {
		return 0, fmt.Errorf("size of volume %s: %w", name, err)
	}
	return st.Blocks * 512, nil
}

func (v Volume) clone() Volume {
	v.Labels, v.Options = maps.Clone(v.Labels), maps.Clone(v.Options)
	return v
}

// validName is docker's rule for names, with a bound: a name is a directory's.
func validName(name string) bool {
	return len(name) <= 200 && regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]+$`).MatchString(name)
}
