package files

import (
	"archive/tar"
	"io"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cradlevm/cradle/api"
)

// Source is what an archive is made of, opened: nothing can come to be in its place any more.
type Source struct {
	Stat   api.PathStat
	fd     int // O_PATH
	name   string
	owners *owners
}

// Open finds what p names for an archive, by docker's rules: a link at the end stands for itself unless a slash or
// "/." follows, and a directory's entries begin with its own name, with "." after "/.".
func Open(root int, p string) (*Source, error) {
	p = absolute(p)
	fd, err := open(root, p, unix.O_PATH|unix.O_NOFOLLOW)
	if err != nil {
		return nil, pathError("lstat", p, err)
	}
	s := &Source{fd: fd, name: path.Base(p)}
	if s.Stat, err = statOf(root, fd, p); err != nil {
		unix.Close(fd)
		return nil, err
	}
	s.owners = ownersOf(root)
	return s, nil
}

// Close lets go of the source.
func (s *Source) Close() { unix.Close(s.fd) }

// WriteTar writes the archive.
func (s *Source) WriteTar(w io.Writer) error {
	a := newArchiver(w)
	a.owners = s.owners
	var st unix.Stat_t
	if err := unix.Fstat(s.fd, &st); err != nil {
		return pathError("lstat", s.name, err)
	}
	var err error
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		prefix := s.name + "/"
		if s.name == "/" {
			prefix = "/"
		}
		a.top = s.name == "/" || s.name == "."
		err = a.directory(s.fd, prefix, &st)
	} else {
		err = a.entry(s.fd, "", s.name, &st)
	}
	if err != nil {
		return err
	}
	return a.tw.Close()
}

// Export writes everything below a directory, without the directory itself.
func Export(root int, w io.Writer) error {
	a := newArchiver(w)
	a.owners = ownersOf(root)
	if err := a.children(root, "", 0); err != nil {
		return err
	}
	return a.tw.Close()
}

// inode names a file, whatever its names.
type inode struct{ dev, ino uint64 }

// archiver writes files into a tar stream.
type archiver struct {
	tw     *tar.Writer
	buf    []byte
	links  map[inode]string // first names of files with several
	top    bool             // the archive is of the whole root: not of what the runtime has mounted there
	owners *owners          // nil: names are not told, nor kinds in modes; an image's layer has neither
}

func newArchiver(w io.Writer) *archiver {
	return &archiver{tw: tar.NewWriter(w), buf: make([]byte, copyUnit), links: map[inode]string{}}
}

// directory writes a directory, whose name ends in a slash, and what is in it.
func (a *archiver) directory(fd int, name string, st *unix.Stat_t) error {
	dir, err := openDir(fd, ".")
	if err != nil {
		return pathError("open", name, err)
	}
	defer unix.Close(dir)
	if err := a.header(dir, name, "", st); err != nil {
		return err
	}
	return a.children(dir, name, 0)
}

// children writes what is in a directory. Something that is gone when its turn comes is left out.
func (a *archiver) children(dir int, prefix string, depth int) error {
	if depth > maxDepth {
		return tooDeep(prefix)
	}
	if kernelFS(dir) {
		return nil
	}
	return eachName(dir, func(name string) error {
		var st unix.Stat_t
		err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW)
		if err == unix.ENOENT {
			return nil
		}
		if err != nil {
			return pathError("lstat", prefix+name, err)
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			return a.entry(dir, name, prefix+name, &st)
		}
		sub, err := openDir(dir, name)
		if err == unix.ENOENT || err == unix.ENOTDIR || err == unix.ELOOP {
			return nil
		}
		if err != nil {
			return pathError("open", prefix+name, err)
		}
		defer unix.Close(sub)
		if err := a.header(sub, prefix+name+"/", "", &st); err != nil {
			return err
		}
		if a.top && depth == 0 && name == "dev" {
			return nil // devices are made by the runtime, whatever the image has there
		}
		return a.children(sub, prefix+name+"/", depth+1)
	})
}

// entry writes something that is not a directory: name in dir or, when name is empty, dir itself, an O_PATH
// descriptor.
func (a *archiver) entry(dir int, name, as string, st *unix.Stat_t) error {
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFSOCK:
		return nil // as docker: a socket is nothing without who made it
	case unix.S_IFREG:
		return a.file(dir, name, as, st)
	case unix.S_IFLNK:
		buf := make([]byte, unix.PathMax)
		n, err := unix.Readlinkat(dir, name, buf)
		if err == unix.ENOENT || err == unix.EINVAL {
			return nil
		}
		if err != nil {
			return pathError("readlink", as, err)
		}
		return a.header(-1, as, string(buf[:n]), st)
	}
	return a.header(-1, as, "", st)
}

// file writes a regular file. Its size is what it was when its turn came: a log that grows meanwhile is cut, one that
// shrinks is filled up with zeros.
func (a *archiver) file(dir int, name, as string, st *unix.Stat_t) error {
	fd, err := openFile(dir, name)
	if err == unix.ENOENT || err == unix.ELOOP {
		return nil
	}
	if err != nil {
		return pathError("open", as, err)
	}
	defer unix.Close(fd)
	if err := unix.Fstat(fd, st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil // another thing has its name now
	}
	if kernelFS(fd) {
		st.Size = 0
	}
	if st.Nlink > 1 {
		id := inode{st.Dev, st.Ino}
		if first, ok := a.links[id]; ok {
			return a.hardLink(as, first, st)
		}
		if len(a.links) < maxLinks {
			a.links[id] = as
		}
	}
	if err := a.header(fd, as, "", st); err != nil {
		return err
	}
	for left := st.Size; left > 0; {
		n, err := unix.Read(fd, a.buf[:min(left, copyUnit)])
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return pathError("read", as, err)
		}
		if n == 0 {
			n = int(min(left, copyUnit))
			clear(a.buf[:n])
		}
		if _, err := a.tw.Write(a.buf[:n]); err != nil {
			return err
		}
		left -= int64(n)
	}
	return nil
}

// openFile opens a regular file for reading. Should a device or a pipe have taken its place, that neither waits nor
// becomes a terminal of ours.
func openFile(dir int, name string) (int, error) {
	const flags = unix.O_RDONLY | unix.O_NONBLOCK | unix.O_NOCTTY | unix.O_CLOEXEC
	if name == "" {
		return unix.Open(procPath(dir), flags, 0)
	}
	return unix.Openat(dir, name, flags|unix.O_NOFOLLOW, 0)
}

// header writes the header of an entry. fd is the open entry, -1 when it has none.
func (a *archiver) header(fd int, as, link string, st *unix.Stat_t) error {
	h := a.newHeader(as, st)
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		h.Typeflag, h.Size = tar.TypeReg, st.Size
	case unix.S_IFDIR:
		h.Typeflag = tar.TypeDir
	case unix.S_IFLNK:
		h.Typeflag, h.Linkname = tar.TypeSymlink, link
	case unix.S_IFIFO:
		h.Typeflag = tar.TypeFifo
	case unix.S_IFCHR, unix.S_IFBLK:
		h.Typeflag = tar.TypeChar
		if st.Mode&unix.S_IFMT == unix.S_IFBLK {
			h.Typeflag = tar.TypeBlock
		}
		h.Devmajor, h.Devminor = int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
	}
	if fd >= 0 {
		h.PAXRecords = xattrsOf(fd)
	}
	return a.write(h)
}

func (a *archiver) hardLink(as, first string, st *unix.Stat_t) error {
	h := a.newHeader(as, st)
	h.Typeflag, h.Linkname = tar.TypeLink, first
	return a.write(h)
}

func (a *archiver) newHeader(as string, st *unix.Stat_t) *tar.Header {
	h := &tar.Header{
		Format: tar.FormatPAX, Name: as, Mode: int64(st.Mode & 0o7777), Uid: int(st.Uid), Gid: int(st.Gid),
		ModTime: time.Unix(st.Mtim.Sec, 0), // whole seconds, as docker's: fractions would double the headers
	}
	if a.owners != nil {
		h.Mode = int64(st.Mode) // with the file's kind, as in docker's archives
		h.Uname, h.Gname = a.owners.users[st.Uid], a.owners.groups[st.Gid]
	}
	return h
}

func (a *archiver) write(h *tar.Header) error {
	if err := a.tw.WriteHeader(h); err != nil {
		return api.Errorf(api.CodeInternal, "archive %.200q: %w", h.Name, err)
	}
	return nil
}

const paxXattr = "SCHILY.xattr."

// xattrsOf reads the attributes that travel; nil when there are none.
func xattrsOf(fd int) map[string]string {
	var list [4096]byte
	n, err := unix.Flistxattr(fd, list[:])
	if err != nil || n == 0 {
		return nil
	}
	var records map[string]string
	for _, name := range strings.Split(string(list[:n]), "\x00") {
		if !kept(name) {
			continue
		}
		value := make([]byte, 64<<10)
		n, err := unix.Fgetxattr(fd, name, value)
		if err != nil {
			continue
		}
		if records == nil {
			records = map[string]string{}
		}
		records[paxXattr+name] = string(value[:n])
	}
	return records
}
