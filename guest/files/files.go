// Package files reads and writes the files of a container for the host: what docker's cp, export, diff and commit need.
//
// The container's files are as hostile as the archives that come in. Every path is resolved by the kernel below a
// directory (openat2), entries are reached from the descriptor of their directory and never followed, and what is
// kept in memory does not grow with what is read, but for names: those of one directory and, up to a limit, those of
// files with several links.
package files

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/cradlevm/cradle/api"
	"golang.org/x/sys/unix"
)

const (
	maxDepth = 1024      // of directories in one another: each costs a descriptor
	nameRun  = 1 << 16   // names of a directory that are sorted together
	copyUnit = 128 << 10 // bytes
	maxLinks = 1 << 16   // files with several names that an archive remembers
	// mountMark is the attribute of what Mark was called for.
	mountMark = "trusted.cradle.mountpoint"
)

// Mark notes that the directory or file at p, in the calling thread's root, was made for something to be mounted on:
// it is no change of the container's. A file system that cannot say so does without.
func Mark(p string) { _ = unix.Lsetxattr(p, mountMark, []byte{'1'}, 0) }

// open resolves p inside the directory root as if that were "/" and opens it.
func open(root int, p string, flags int) (int, error) {
	return openHow(root, p, flags, unix.RESOLVE_IN_ROOT)
}

func openHow(dir int, p string, flags int, resolve uint64) (int, error) {
	rel := strings.TrimLeft(p, "/")
	if rel == "" {
		rel = "."
	}
	how := unix.OpenHow{Flags: uint64(flags | unix.O_CLOEXEC), Resolve: resolve | unix.RESOLVE_NO_MAGICLINKS}
	for try := 0; ; try++ {
		fd, err := unix.Openat2(dir, rel, &how)
		// EAGAIN: something was renamed while the kernel looked.
		if (err != unix.EAGAIN && err != unix.EINTR) || try > 100 {
			return fd, err
		}
	}
}

// pathError gives a failure its place and what it means to the caller.
func pathError(op, p string, err error) error {
	code := api.CodeInvalid
	switch err {
	case unix.ENOENT:
		code = api.CodeNotFound
	case unix.EIO, unix.ENOMEM, unix.EMFILE, unix.ENFILE:
		code = api.CodeInternal
	}
	return api.Errorf(code, "%s %s: %w", op, p, err)
}

// Stat describes what is at p, without following a link at its end unless a slash or "/." comes after.
func Stat(root int, p string) (api.PathStat, error) {
	p = absolute(p)
	fd, err := open(root, p, unix.O_PATH|unix.O_NOFOLLOW)
	if err != nil {
		return api.PathStat{}, pathError("lstat", p, err)
	}
	defer unix.Close(fd)
	return statOf(root, fd, p)
}

func statOf(root, fd int, p string) (api.PathStat, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return api.PathStat{}, pathError("lstat", p, err)
	}
	s := api.PathStat{Name: path.Base(p), Size: st.Size, Mode: st.Mode, MtimeNanos: st.Mtim.Nano()}
	if st.Mode&unix.S_IFMT == unix.S_IFLNK {
		var err error
		if s.LinkTarget, err = Resolve(root, p, func(string, bool, error) error { return nil }); err != nil {
			return api.PathStat{}, pathError("lstat", p, err)
		}
	}
	return s, nil
}

// absolute cleans p but keeps a slash or "/." at its end, which say that a directory is meant.
func absolute(p string) string {
	clean := path.Clean("/" + p)
	switch {
	case p == "." || strings.HasSuffix(p, "/."):
		return strings.TrimSuffix(clean, "/") + "/."
	case strings.HasSuffix(p, "/") && clean != "/":
		return clean + "/"
	}
	return clean
}

// eachName calls do with the names in a directory, sorted unless there are very many of them. A directory that has been
// removed has none.
func eachName(fd int, do func(name string) error) error {
	again, err := unix.Openat(fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err == unix.ENOENT {
		return nil
	}
	if err != nil {
		return err
	}
	dir := os.NewFile(uintptr(again), "directory")
	defer dir.Close()
	for {
		names, err := dir.Readdirnames(nameRun)
		slices.Sort(names)
		for _, name := range names {
			if err := do(name); err != nil {
				return err
			}
		}
		if err == io.EOF || errors.Is(err, unix.ENOENT) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// openDir opens a directory below another without following a link.
func openDir(dir int, name string) (int, error) {
	return unix.Openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
}

func tooDeep(name string) error {
	return api.Errorf(api.CodeInvalid, "%.80q…: directories nested more than %d deep", name, maxDepth)
}

// kernelFS reports whether fd lies in a file system whose files are the kernel's talk: they have no true size, and
// reading them is not copying.
func kernelFS(fd int) bool {
	var s unix.Statfs_t
	if unix.Fstatfs(fd, &s) != nil {
		return false
	}
	switch uint32(s.Type) {
	case unix.PROC_SUPER_MAGIC, unix.SYSFS_MAGIC, unix.CGROUP2_SUPER_MAGIC, unix.CGROUP_SUPER_MAGIC, unix.DEVPTS_SUPER_MAGIC,
		unix.DEBUGFS_MAGIC, unix.TRACEFS_MAGIC, unix.SECURITYFS_MAGIC, unix.BPF_FS_MAGIC, mqueueMagic:
		return true
	}
	return false
}

const mqueueMagic = 0x19800202

// kept reports whether an extended attribute travels with a file: capabilities and the user's own, as with docker.
func kept(name string) bool {
	return name == "security.capability" || strings.HasPrefix(name, "user.")
}

// outside is docker's refusal of an entry that would lie elsewhere.
func outside(name, dir string) error {
	return api.Errorf(api.CodeInvalid, "%.200q is outside of %q", name, dir)
}

// procPath names an open file for calls that have no form for descriptors.
func procPath(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }
