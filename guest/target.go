package guest

import (
	"path"

	"github.com/cradlevm/cradle/api"
	"github.com/cradlevm/cradle/guest/files"
	"golang.org/x/sys/unix"
)

// makeTarget returns p with its symbolic links resolved from the calling thread's root, and makes what is missing on
// the way: directories, and at the end a directory or an empty file. Images have dangling links where the runtime is
// to mount, such as /etc/resolv.conf → ../run/systemd/resolve/stub-resolv.conf.
//
// What is made is marked as such: it is none of the container's changes.
func makeTarget(p string, dir bool) (string, error) { return makePath(p, dir, makeMarked) }

// makePath is makeTarget with its own way to make something.
func makePath(p string, dir bool, makeOne func(p string, dir bool) error) (string, error) {
	root, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(root)
	target, err := files.Resolve(root, path.Clean("/"+p), func(at string, last bool, err error) error {
		if err != unix.ENOENT {
			return err
		}
		return makeOne(at, dir || !last)
	})
	if err != nil {
		return "", api.Errorf(api.CodeInvalid, "mount point %s: %w", p, err)
	}
	return target, nil
}

// makeMarked makes a mount point so that neither it nor the time of the directory it is in looks like the container's
// doing.
func makeMarked(p string, dir bool) error {
	var up unix.Stat_t
	if err := unix.Stat(path.Dir(p), &up); err != nil {
		return err
	}
	if err := makeOne(p, dir); err != nil {
		return err
	}
	files.Mark(p)
	times := []unix.Timespec{up.Atim, up.Mtim}
	return unix.UtimesNanoAt(unix.AT_FDCWD, path.Dir(p), times, 0)
}

func makeOne(p string, dir bool) error {
	if dir {
		return unix.Mkdir(p, 0o755)
	}
	fd, err := unix.Open(p, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}
