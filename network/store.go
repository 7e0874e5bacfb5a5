package network

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// networksName is the file in a state directory that tells of all networks, and by being there that there are some.
const networksName = "networks.json"

// storeVersion is the format of the files below a store's directory.
const storeVersion = 1

// store keeps what must outlast the daemon:
//
//	networks.json       all networks; written rarely, synced, replaced by renaming
//	endpoints/ID.json   one lease each; replaced by renaming but not synced
//
// An endpoint lives no longer than the machine's uptime, because a sandbox does not. After a power failure its file may be
// short or absent, and what it told of is gone; so that no start of a container waits for a disk. A file that cannot be
// read tells of nothing that lives.
type store struct{ dir string }

type networksFile struct {
	Version  int       `json:"version"`
	Networks []Network `json:"networks"`
}

type endpointFile struct {
	Version  int      `json:"version"`
	Endpoint Endpoint `json:"endpoint"`
}

func openStore(dir string) (*store, error) {
	if err := os.MkdirAll(filepath.Join(dir, "endpoints"), 0o700); err != nil {
		return nil, fmt.Errorf("make network state: %w", err)
	}
	return &store{dir}, nil
}

func (s *store) networks() (networksFile, error) {
	var f networksFile
	b, err := os.ReadFile(filepath.Join(s.dir, networksName))
	if errors.Is(err, fs.ErrNotExist) {
		return networksFile{Version: storeVersion}, nil
	}
	if err != nil {
		return f, fmt.Errorf("read networks: %w", err)
	}
	if err := json.Unmarshal(b, &f); err != nil {
		return f, fmt.Errorf("read networks.json: %w", err)
	}
	if f.Version != storeVersion {
		return f, fmt.Errorf("networks.json has version %d, not %d", f.Version, storeVersion)
	}
	return f, nil
}

func (s *store) putNetworks(f networksFile) error {
	f.Version = storeVersion
	return replaceFile(filepath.Join(s.dir, networksName), f, true)
}

// endpoints reads all leases. Files that cannot be read, and what a write left when it was cut short, are removed.
func (s *store) endpoints() ([]Endpoint, error) {
	entries, err := os.ReadDir(filepath.Join(s.dir, "endpoints"))
	if err != nil {
		return nil, fmt.Errorf("read endpoints: %w", err)
	}
	var all []Endpoint
	for _, e := range entries {
		path := filepath.Join(s.dir, "endpoints", e.Name())
		var f endpointFile
		b, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("read endpoint: %w", err)
		}
		if json.Unmarshal(b, &f) != nil || f.Version != storeVersion || f.Endpoint.ID+".json" != e.Name() {
			if err := os.Remove(path); err != nil {
				return nil, fmt.Errorf("remove broken endpoint: %w", err)
			}
			continue
		}
		all = append(all, f.Endpoint)
	}
	return all, nil
}

func (s *store) endpointPath(id string) string {
	return filepath.Join(s.dir, "endpoints", strings.ReplaceAll(id, "/", "_")+".json")
}

func (s *store) putEndpoint(e Endpoint) error {
	return replaceFile(s.endpointPath(e.ID), endpointFile{storeVersion, e}, false)
}

func (s *store) removeEndpoint(id string) error {
	if err := os.Remove(s.endpointPath(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove endpoint: %w", err)
	}
	return nil
}

// replaceFile makes a file all old or all new.
func replaceFile(path string, v any, sync bool) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("write %s: %w", filepath.Base(path), err)
	}
	f, err := os.OpenFile(path+".new", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("write %s: %w", filepath.Base(path), err)
	}
	_, err = f.Write(b)
	if err == nil && sync {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err == nil && sync {
		err = syncDir(filepath.Dir(path))
	}
	if err != nil {
		os.Remove(path + ".new")
		return fmt.Errorf("write %s: %w", filepath.Base(path), err)
	}
	return nil
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
