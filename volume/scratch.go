// Package volume makes the disks that a sandbox may write: scratch disks, the writable layer of one container, and named
// volumes, which outlive containers (Store).
//
// # Scratch disks
//
// A scratch disk is a sparse file with an empty ext4 file system in it, copied from a template that mkfs.ext4 makes once
// per size. Measured for 10 GiB: the template takes 10 to 35 ms to make and 52 KiB of disk, a copy 0.2 to 0.3 ms;
// for 100 GiB, 140 KiB and 0.9 ms.
//
// The file system has a journal, although containers are short-lived: a scratch disk outlives the machine when the
// machine is killed or its host crashes and the container is started again. Without a journal that needs an fsck of a file
// system that the guest wrote, and the guest is hostile: the host never parses one. With it, the guest's own kernel
// replays the journal when it mounts. The journal costs nothing until it is used (it is a hole in the file), and at
// most its size, 4 to 32 MiB, later.
//
// What keeps the copy small and the guest quiet, beside that: the metadata of few block groups lies together (a flex
// group; with one large one the first allocation, which finds the first group full of metadata, has the guest's kernel look
// at all groups of its flex group: at all 80 that 10 GiB have, 4 ms under emulation); no backup superblocks (nobody will repair this file system); no resize inode; and
// inode tables marked as zeroed (assume_storage_prezeroed: a new sparse file is all zeros), so that the guest's kernel
// does not write 160 MiB of zeros per 10 GiB in the background, which ext4's lazy initialization otherwise does.
// mkfs.ext4 before 1.46.6 lacks that last option; then such a guest should mount with noinit_itable.
//
// All disks of one size share one UUID, one hash seed and one set of times: a template is the same bytes wherever and
// whenever it is made. ext4 does not mind two mounted file systems with one UUID, and the guest finds its disks by
// serial number.
package volume

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Sizes a scratch disk may have, bytes.
const (
	MinScratch = 16 << 20
	MaxScratch = 16 << 40
)

// Sentinels, to be found with errors.Is.
var (
	ErrInvalid = errors.New("invalid scratch disk") // its size
	ErrNoSpace = errors.New("no space for a scratch disk")
	ErrNoMkfs  = errors.New("mkfs.ext4 is missing: install the package e2fsprogs")
)

// templateVersion changes with mkfsArgs, so that no template made otherwise is used.
const templateVersion = 2

// templateID is the UUID and the hash seed of every template.
const templateID = "c7ad1e00-5c7a-4c00-8d15-c5c7a7c40001"

// Scratch makes scratch disks. Dir holds the templates in a subdirectory; disks lie best on the same file system.
// The zero value of all but Dir is ready for use; it must not be copied.
type Scratch struct {
	Dir string

	mu sync.Mutex // one mkfs at a time
}

// New makes an empty scratch disk of size bytes (rounded up to a MiB) at path. It does not wait for the disk's own cache:
// after a power failure the file may be short or absent, and a container that never ran gets another one. On error
// nothing is left. Errors: ErrInvalid, ErrNoSpace, ErrNoMkfs, os.ErrExist when path is there, ctx's.
func (s *Scratch) New(ctx context.Context, path string, size int64) error {
	if size < MinScratch || size > MaxScratch {
		return fmt.Errorf("%w: %d bytes is not between %d MiB and %d TiB", ErrInvalid, size, MinScratch>>20, int64(MaxScratch)>>40)
	}
	size = (size + 1<<20 - 1) >> 20 << 20
	if _, err := os.Lstat(path); err == nil {
		return fmt.Errorf("make scratch disk: %w", &os.PathError{Op: "create", Path: path, Err: os.ErrExist})
	}
	template, err := s.template(ctx, size)
	if err != nil {
		return fmt.Errorf("make scratch disk: %w", spaceError(s.Dir, err))
	}
	if err := copyInto(ctx, template, path); err != nil {
		return fmt.Errorf("make scratch disk: %w", spaceError(filepath.Dir(path), err))
	}
	return nil
}

// Copy makes a scratch disk at to that has what the one at from has, which must not change meanwhile. As New otherwise.
func (s *Scratch) Copy(ctx context.Context, from, to string) error {
	if _, err := os.Lstat(to); err == nil {
		return fmt.Errorf("copy scratch disk: %w", &os.PathError{Op: "create", Path: to, Err: os.ErrExist})
	}
	if err := copyInto(ctx, from, to); err != nil {
		return fmt.Errorf("copy scratch disk: %w", spaceError(filepath.Dir(to), err))
	}
	return nil
}

// Clean removes what a crash has left of templates in the making. No disk must be in the making.
func (s *Scratch) Clean() error {
	left, err := filepath.Glob(filepath.Join(s.Dir, "templates", "making-*"))
	if err != nil {
		return err
	}
	for _, path := range left {
		err = errors.Join(err, os.Remove(path))
	}
	return err
}

// copyInto copies template to path: there whole, or not at all.
func copyInto(ctx context.Context, template, path string) (err error) {
	src, err := os.Open(template)
	if err != nil {
		return err
	}
	defer src.Close()
	// Not a random name: what a crash left of an earlier attempt goes with this one.
	partial := path + ".partial"
	if err := os.Remove(partial); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	dst, err := os.OpenFile(partial, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, dst.Close())
		if err != nil {
			os.Remove(partial)
		}
	}()
	if err := copySparse(ctx, dst, src); err != nil {
		return err
	}
	return renameNew(partial, path)
}

// renameNew renames from to to unless to is there.
func renameNew(from, to string) error {
	err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
	// Some file systems do not know the flag; a hard link does the same in two steps.
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) {
		if err := os.Link(from, to); err != nil {
			return err
		}
		return os.Remove(from)
	}
	if err != nil {
		return &os.LinkError{Op: "rename", Old: from, New: to, Err: err}
	}
	return nil
}

// template returns the path of the template for size, making it when it is missing.
func (s *Scratch) template(ctx context.Context, size int64) (string, error) {
	dir := filepath.Join(s.Dir, "templates")
	path := filepath.Join(dir, fmt.Sprintf("ext4-v%d-%dMiB.img", templateVersion, size>>20))
	s.mu.Lock()
	defer s.mu.Unlock()
	if fi, err := os.Stat(path); err == nil && fi.Size() == size {
		return path, nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	f, err := os.CreateTemp(dir, "making-*")
	if err != nil {
		return "", err
	}
	defer os.Remove(f.Name()) // gone after the rename
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		return "", err
	}
	if err := mkfs(ctx, f.Name(), size); err != nil {
		return "", err
	}
	// A template is used for as long as the node lives, so its bytes must be down before its name is.
	if err := f.Sync(); err != nil {
		return "", err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return "", err
	}
	return path, nil
}

// mkfs formats the image at path.
func mkfs(ctx context.Context, path string, size int64) error {
	out, err := runMkfs(ctx, mkfsArgs(path, size, true))
	if err != nil && strings.Contains(out, "assume_storage_prezeroed") {
		out, err = runMkfs(ctx, mkfsArgs(path, size, false))
	}
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, exec.ErrNotFound) || errors.Is(err, os.ErrNotExist):
		return ErrNoMkfs
	case strings.Contains(strings.ToLower(out), syscall.ENOSPC.Error()):
		return syscall.ENOSPC
	}
	return fmt.Errorf("mkfs.ext4: %w: %s", err, strings.TrimSpace(out))
}

func runMkfs(ctx context.Context, args []string) (output string, err error) {
	program, err := exec.LookPath("mkfs.ext4")
	if err != nil {
		// A daemon's PATH often lacks the sbin directories.
		for _, p := range []string{"/usr/sbin/mkfs.ext4", "/sbin/mkfs.ext4"} {
			if _, serr := os.Stat(p); serr == nil {
				program, err = p, nil
				break
			}
		}
	}
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, program, args...)
	// The second is e2fsprogs' own name for the same wish: times in the file system that do not tell when it was made.
	cmd.Env = append(os.Environ(), "SOURCE_DATE_EPOCH=1", "E2FSPROGS_FAKE_TIME=1", "LC_ALL=C")
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// mkfsArgs are the options that the package comment explains. Features are named one by one: the distribution's
// defaults must not decide what the guest's kernel has to know.
func mkfsArgs(path string, size int64, prezeroed bool) []string {
	const mib = 1 << 20
	journal := min(max(size/256/mib, 4), 32)
	extended := "num_backup_sb=0,lazy_journal_init=1,nodiscard,hash_seed=" + templateID
	if prezeroed {
		extended += ",assume_storage_prezeroed=1"
	} else {
		extended += ",lazy_itable_init=1"
	}
	return []string{
		"-q", "-F", "-t", "ext4", "-b", "4096", "-I", "256", "-i", "16384", "-m", "0", "-G", fmt.Sprint(flexGroup(size)),
		"-U", templateID, "-J", fmt.Sprintf("size=%d", journal),
		"-O", "none,has_journal,ext_attr,dir_index,filetype,extent,64bit,flex_bg,sparse_super2,large_file,huge_file,dir_nlink,extra_isize,metadata_csum",
		"-E", extended, path,
	}
}

// flexGroup is how many block groups keep their metadata together: few, for the guest's sake, but on a large disk more, for
// each flex group is a piece to copy.
func flexGroup(size int64) int {
	const groupSize, pieces = 128 << 20, 32
	n := 4
	for int64(n)*groupSize*pieces < size {
		n *= 2
	}
	return n
}

// spaceError gives a full disk its sentinel and says which.
func spaceError(dir string, err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("%w in %s: %w", ErrNoSpace, dir, err)
	}
	return err
}
