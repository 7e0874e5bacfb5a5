package guest

import (
	"fmt"
	"os"
	"strconv"
	"sync"

	"github.com/cradlevm/cradle/api"
	"golang.org/x/sys/unix"
)

// maxGiven bounds a given file, in bytes (api.File.Data).
const maxGiven = 1 << 20

// givenFiles are the files that the host gives a container, such as /etc/hosts. They stay open, so that the host can
// change them whatever the container has mounted over them since.
type givenFiles struct {
	mu     sync.Mutex
	byPath map[string]*os.File
}

// stage writes the files on the stage and returns them as mounts to be attached.
func (g *givenFiles) stage(files []api.File) ([]*graft, error) {
	if len(files) == 0 {
		return nil, nil
	}
	if err := unix.Mkdir("f", 0o700); err != nil {
		return nil, err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.byPath = map[string]*os.File{}
	var list []*graft
	for i, given := range files {
		name := "f/" + strconv.Itoa(i)
		f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return nil, err
		}
		g.byPath[given.Path] = f
		if _, err := f.Write(given.Data); err != nil {
			return nil, err
		}
		if err := unix.Fchmod(int(f.Fd()), given.Mode); err != nil {
			return nil, err
		}
		if err := unix.Fchown(int(f.Fd()), int(given.UID), int(given.GID)); err != nil {
			return nil, err
		}
		tree, err := openTree(name)
		if err != nil {
			return nil, err
		}
		if given.ReadOnly {
			if err := makeReadOnly(tree); err != nil {
				return nil, fmt.Errorf("file %s: %w", given.Path, err)
			}
		}
		list = append(list, &graft{path: given.Path, tree: tree})
	}
	return list, nil
}

// rewrite gives files other contents, in place: the container sees it without any mount. Whoever reads at this moment
// may see a part.
func (g *givenFiles) rewrite(files []api.File) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, f := range files {
		if g.byPath[f.Path] == nil {
			return api.Errorf(api.CodeNotFound, "the container was not given a file %.80q", f.Path)
		}
		if len(f.Data) > maxGiven || f.Mode&^0o7777 != 0 {
			return api.Errorf(api.CodeInvalid, "file %.80q", f.Path)
		}
	}
	for _, f := range files {
		to := g.byPath[f.Path]
		if err := overwrite(to, f.Data); err != nil {
			return err
		}
		if err := unix.Fchmod(int(to.Fd()), f.Mode); err != nil {
			return err
		}
	}
	return nil
}

// close lets go of the files.
func (g *givenFiles) close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, f := range g.byPath {
		f.Close()
	}
	g.byPath = nil
}
