package files

import (
	"archive/tar"
	"errors"
	"io"
	"os"
	"path"
	"strings"

	"github.com/cradlevm/cradle/api"
	"golang.org/x/sys/unix"
)

// Owner is a user and a group by number.
type Owner struct{ UID, GID uint32 }

// ExtractOptions of Extract.
type ExtractOptions struct {
	// NoOverwriteDirNonDir refuses to put something else in a directory's place, or a directory in something else's.
	NoOverwriteDirNonDir bool
	Owner                *Owner // of all that is made; nil: whoever the archive says
}

// Extract unpacks the archive from r into the directory p of root, which must be there. Nothing is written outside of
// that directory, wherever the archive's names and the links in the directory point; what was unpacked before an
// error stays.
func Extract(root int, p string, o ExtractOptions, r io.Reader) error {
	p = absolute(p)
	dest, err := open(root, p, unix.O_RDONLY|unix.O_DIRECTORY)
	if err == unix.ENOTDIR {
		return api.Errorf(api.CodeInvalid, "extraction point is not a directory")
	}
	if err != nil {
		return pathError("lstat", p, err)
	}
	defer unix.Close(dest)
	if unix.Faccessat(dest, ".", unix.W_OK, 0) == unix.EROFS {
		return api.Errorf(api.CodeInvalid, "container rootfs is marked read-only")
	}
	x := &extractor{o: o, dest: dest, at: p, resolve: unix.RESOLVE_BENEATH, buf: make([]byte, copyUnit), parentFD: -1}
	if sameFile(root, dest) {
		// The absolute links of a whole root file system are meant to lie in it.
		x.resolve = unix.RESOLVE_IN_ROOT
	}
	defer x.forgetParent()
	return x.all(tar.NewReader(r))
}

func sameFile(a, b int) bool {
	var s, t unix.Stat_t
	return unix.Fstat(a, &s) == nil && unix.Fstat(b, &t) == nil && s.Dev == t.Dev && s.Ino == t.Ino
}

// extractor unpacks one archive.
type extractor struct {
	o       ExtractOptions
	dest    int
	at      string // dest's path, for messages
	resolve uint64
	buf     []byte

	// The directory of the entry before, most often that of the next one too.
	parent   string
	parentFD int

	// Directories' times come last: what is put into them changes them.
	times []dirTime
}

type dirTime struct {
	name  string
	mtime unix.Timespec
}

// maxDirTimes bounds how many are remembered; the directories after have the time at which they were filled.
const maxDirTimes = 1 << 16

func (x *extractor) all(tr *tar.Reader) error {
	for {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return archiveError(err)
		}
		if h.Typeflag == tar.TypeXGlobalHeader {
			continue
		}
		if err := x.entry(h, tr); err != nil {
			return err
		}
	}
	for _, t := range x.times {
		fd, err := openHow(x.dest, t.name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, x.resolve)
		if err != nil {
			continue // an entry after it took its place
		}
		setTime(fd, t.mtime)
		unix.Close(fd)
	}
	return nil
}

// archiveError is what is wrong with the archive, or the error that its source broke off with.
func archiveError(err error) error {
	var e *api.Error
	if errors.As(err, &e) {
		return err
	}
	return api.Errorf(api.CodeInvalid, "unpack: %w", err)
}

// nameOf checks and cleans a name of the archive's. It is relative to dest, "." for dest itself.
func (x *extractor) nameOf(name string) (string, error) {
	clean := path.Clean(name)
	clean = strings.TrimLeft(clean, "/")
	if clean == "" {
		clean = "."
	}
	if clean == ".." || strings.HasPrefix(clean, "../") || strings.ContainsRune(clean, 0) {
		return "", outside(name, x.at)
	}
	return clean, nil
}

func (x *extractor) entry(h *tar.Header, body io.Reader) error {
	name, err := x.nameOf(h.Name)
	if err != nil {
		return err
	}
	isDir := h.Typeflag == tar.TypeDir
	if name == "." {
		if isDir {
			return nil
		}
		return api.Errorf(api.CodeInvalid, "cannot overwrite directory %q with non-directory %q", x.at, h.Name)
	}
	dir, base := path.Split(name)
	parent, err := x.openParent(strings.TrimSuffix(dir, "/"))
	if err != nil {
		return err
	}
	var st unix.Stat_t
	there := false
	switch err := unix.Fstatat(parent, base, &st, unix.AT_SYMLINK_NOFOLLOW); err {
	case nil:
		there = true
	case unix.ENOENT:
	default:
		return x.fail("lstat", name, err)
	}
	if there {
		wasDir := st.Mode&unix.S_IFMT == unix.S_IFDIR
		if x.o.NoOverwriteDirNonDir && wasDir && !isDir {
			return api.Errorf(api.CodeInvalid, "cannot overwrite directory %q with non-directory %q", path.Join(x.at, name), x.at)
		}
		if x.o.NoOverwriteDirNonDir && !wasDir && isDir {
			return api.Errorf(api.CodeInvalid, "cannot overwrite non-directory %q with directory %q", path.Join(x.at, name), x.at)
		}
		if !wasDir || !isDir {
			if err := removeAll(parent, base, 0); err != nil {
				return x.fail("remove", name, err)
			}
			there = false
			defer x.forgetParent() // it may be what was removed
		}
	}
	return x.make(parent, base, name, h, body, there)
}

// make creates the entry base in the directory parent.
func (x *extractor) make(parent int, base, name string, h *tar.Header, body io.Reader, there bool) error {
	mode := uint32(h.Mode & 0o7777)
	var err error
	switch h.Typeflag {
	case tar.TypeDir:
		if !there {
			err = unix.Mkdirat(parent, base, 0o700)
		}
		if err == nil {
			err = x.finishDir(parent, base, name, h)
		}
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse:
		return x.file(parent, base, name, h, body)
	case tar.TypeLink:
		return x.link(parent, base, name, h)
	case tar.TypeSymlink:
		if err = unix.Symlinkat(h.Linkname, parent, base); err == nil {
			err = x.finish(parent, base, h)
		}
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		kind := map[byte]uint32{tar.TypeChar: unix.S_IFCHR, tar.TypeBlock: unix.S_IFBLK, tar.TypeFifo: unix.S_IFIFO}[h.Typeflag]
		dev := unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor))
		if err = unix.Mknodat(parent, base, kind|mode, int(dev)); err == nil {
			err = x.finish(parent, base, h)
		}
		if err == nil { // umask and the change of owner took bits away
			err = unix.Fchmodat(parent, base, mode, 0)
		}
	default:
		return api.Errorf(api.CodeInvalid, "unpack %.200q: unhandled tar header type %d", h.Name, h.Typeflag)
	}
	if err != nil {
		return x.fail("create", name, err)
	}
	return nil
}

func (x *extractor) file(parent int, base, name string, h *tar.Header, body io.Reader) error {
	fd, err := unix.Openat(parent, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return x.fail("create", name, err)
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	// Neither side may take the copy over: the buffer is what bounds it.
	if _, err := io.CopyBuffer(struct{ io.Writer }{f}, struct{ io.Reader }{body}, x.buf); err != nil {
		var e *os.PathError
		if errors.As(err, &e) {
			return x.fail("write", name, e.Err)
		}
		return archiveError(err)
	}
	if err := x.meta(fd, h); err != nil {
		return x.fail("create", name, err)
	}
	setTime(fd, timeOf(h))
	return nil
}

// link makes another name for a file that lies in dest too.
func (x *extractor) link(parent int, base, name string, h *tar.Header) error {
	target, err := x.nameOf(h.Linkname)
	if err != nil {
		return err
	}
	dir, targetBase := path.Split(target)
	if dir == "" {
		dir = "."
	}
	from, err := openHow(x.dest, dir, unix.O_PATH|unix.O_DIRECTORY, x.resolve)
	if err != nil {
		return x.fail("link", target, err)
	}
	defer unix.Close(from)
	if err := unix.Linkat(from, targetBase, parent, base, 0); err != nil {
		return x.fail("link", name, err)
	}
	return nil
}

func (x *extractor) owner(h *tar.Header) (uid, gid int) {
	if x.o.Owner != nil {
		return int(x.o.Owner.UID), int(x.o.Owner.GID)
	}
	return h.Uid, h.Gid
}

// meta gives an open file or directory its owner, mode and attributes, in that order: a change of owner clears bits of
// the mode and capabilities.
func (x *extractor) meta(fd int, h *tar.Header) error {
	uid, gid := x.owner(h)
	if err := unix.Fchown(fd, uid, gid); err != nil {
		return err
	}
	if err := unix.Fchmod(fd, uint32(h.Mode&0o7777)); err != nil {
		return err
	}
	for key, value := range h.PAXRecords {
		name, ok := strings.CutPrefix(key, paxXattr)
		if !ok || !kept(name) {
			continue
		}
		err := unix.Fsetxattr(fd, name, []byte(value), 0)
		if err != nil && err != unix.ENOTSUP && err != unix.EPERM { // docker lets these two pass
			return err
		}
	}
	return nil
}

// finish gives an entry that cannot be opened its owner and time.
func (x *extractor) finish(parent int, base string, h *tar.Header) error {
	uid, gid := x.owner(h)
	if err := unix.Fchownat(parent, base, uid, gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	t := timeOf(h)
	_ = unix.UtimesNanoAt(parent, base, []unix.Timespec{t, t}, unix.AT_SYMLINK_NOFOLLOW) // a time is not worth an archive
	return nil
}

func (x *extractor) finishDir(parent int, base, name string, h *tar.Header) error {
	fd, err := openDir(parent, base)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if len(x.times) < maxDirTimes {
		x.times = append(x.times, dirTime{name, timeOf(h)})
	}
	return x.meta(fd, h)
}

func timeOf(h *tar.Header) unix.Timespec {
	if h.ModTime.IsZero() {
		return unix.Timespec{}
	}
	return unix.Timespec{Sec: h.ModTime.Unix(), Nsec: int64(h.ModTime.Nanosecond())}
}

func setTime(fd int, t unix.Timespec) {
	_ = setTimes(fd, t, t) // a time is not worth an archive
}

// openParent opens a directory below dest, which the archive may never have mentioned: then it is made.
func (x *extractor) openParent(dir string) (int, error) {
	if dir == "" {
		return x.dest, nil
	}
	if x.parentFD >= 0 && dir == x.parent {
		return x.parentFD, nil
	}
	x.forgetParent()
	fd, err := openHow(x.dest, dir, unix.O_PATH|unix.O_DIRECTORY, x.resolve)
	if err == unix.ENOENT {
		fd, err = x.makeDirs(dir)
	}
	if err != nil {
		return -1, x.fail("open", dir, err)
	}
	x.parent, x.parentFD = dir, fd
	return fd, nil
}

// makeDirs makes what is missing of a path and opens its end.
func (x *extractor) makeDirs(dir string) (int, error) {
	fd := -1
	for i := 0; i <= len(dir); i++ {
		if i < len(dir) && dir[i] != '/' {
			continue
		}
		part := dir[:i]
		next, err := openHow(x.dest, part, unix.O_PATH|unix.O_DIRECTORY, x.resolve)
		if err == unix.ENOENT {
			up := fd
			if up < 0 {
				up = x.dest
			}
			if err = unix.Mkdirat(up, path.Base(part), 0o755); err == nil {
				next, err = openHow(x.dest, part, unix.O_PATH|unix.O_DIRECTORY, x.resolve)
			}
		}
		if fd >= 0 {
			unix.Close(fd)
		}
		if err != nil {
			return -1, err
		}
		fd = next
	}
	return fd, nil
}

func (x *extractor) forgetParent() {
	if x.parentFD >= 0 {
		unix.Close(x.parentFD)
	}
	x.parent, x.parentFD = "", -1
}

// fail names the entry that did not work out; EXDEV is the kernel's word for a link that leads out of dest.
func (x *extractor) fail(op, name string, err error) error {
	if err == unix.EXDEV && op != "link" {
		return outside(name, x.at)
	}
	code := api.CodeInvalid
	if err == unix.EIO || err == unix.EMFILE {
		code = api.CodeInternal
	}
	return api.Errorf(code, "%s %s: %w", op, path.Join(x.at, name), err)
}

// removeAll removes an entry of a directory and all that is in it.
func removeAll(dir int, name string, depth int) error {
	err := unix.Unlinkat(dir, name, 0)
	if err == nil || err == unix.ENOENT {
		return nil
	}
	if err != unix.EISDIR && err != unix.EPERM {
		return err
	}
	if depth > maxDepth {
		return tooDeep(name)
	}
	fd, openErr := openDir(dir, name)
	if openErr != nil {
		return err
	}
	defer unix.Close(fd)
	// Removing while reading can pass over names: go on until a round has found none.
	for found := true; found; {
		found = false
		err := eachName(fd, func(name string) error {
			found = true
			return removeAll(fd, name, depth+1)
		})
		if err != nil {
			return err
		}
	}
	return unix.Unlinkat(dir, name, unix.AT_REMOVEDIR)
}
