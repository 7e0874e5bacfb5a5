package node

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"syscall"

	"github.com/cradlevm/cradle/api"
	"github.com/cradlevm/cradle/node/runspec"
)

// maxBound bounds the files of the host's that one container is given, together, bytes.
const maxBound = 1 << 20

// fileBinds are a record's. It was checked when it was made.
func (r *record) fileBinds() []runspec.FileBind {
	list, err := runspec.FileBinds(&r.HostConfig)
	if err != nil {
		return nil
	}
	return list
}

// boundFiles reads the host's files that a container is given, as they are now. Errors: in docker's words for one that is not there;
// ErrNotImplemented for what is not a file, or too large.
func (r *record) boundFiles() ([]api.File, error) {
	var files []api.File
	left := int64(maxBound)
	for _, b := range r.fileBinds() {
		f, err := readBound(b, left)
		if err != nil {
			return nil, err
		}
		left -= int64(len(f.Data))
		files = append(files, f)
	}
	return files, nil
}

func readBound(b runspec.FileBind, limit int64) (api.File, error) {
	f, err := os.OpenFile(b.Source, os.O_RDONLY|syscall.O_NONBLOCK, 0) // who opens a pipe does not wait for its writer
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return api.File{}, invalid("invalid mount config for type \"bind\": bind source path does not exist: %s", b.Source)
	case errors.Is(err, syscall.ENXIO): // a socket
		return api.File{}, notAFile(b)
	case err != nil:
		return api.File{}, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return api.File{}, err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || !info.Mode().IsRegular() {
		return api.File{}, notAFile(b)
	}
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return api.File{}, err
	}
	if int64(len(data)) > limit {
		return api.File{}, unsupported("the bind mount of %s is not supported: files of the host's that a container is given have at most %d bytes together", b.Source, maxBound)
	}
	return api.File{Path: b.Path, Data: data, Mode: st.Mode & 0o777, UID: st.Uid, GID: st.Gid, ReadOnly: true}, nil
}

func notAFile(b runspec.FileBind) error {
	return unsupported("the bind mount of %s at %s is not supported: it is not a file, and only files can be given to a container (a named volume can hold a directory)", b.Source, b.Path)
}
