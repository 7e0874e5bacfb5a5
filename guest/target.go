package guest

import (
	"path"
	"strings"

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
	todo := strings.Split(path.Clean("/"+p), "/")
	done := "/"
	for links := 0; len(todo) > 0; {
		name := todo[0]
		todo = todo[1:]
		switch name {
		case "", ".":
			continue
		case "..":
			done = path.Dir(done)
			continue
		}
		here := path.Join(done, name)
		last := true
		for _, t := range todo {
			last = last && (t == "" || t == ".")
		}
		var st unix.Stat_t
		err := unix.Lstat(here, &st)
		if err == unix.ENOENT {
			err = makeOne(here, dir || !last)
			st.Mode = 0
		}
		if err != nil {
			return "", api.Errorf(api.CodeInvalid, "mount point %s: %w", p, err)
		}
		if st.Mode&unix.S_IFMT != unix.S_IFLNK {
			done = here
			continue
		}
		if links++; links > 40 {
			return "", api.Errorf(api.CodeInvalid, "mount point %s: %w", p, unix.ELOOP)
		}
		to, err := readLink(here)
		if err != nil {
			return "", err
		}
		if path.IsAbs(to) {
			done = "/"
		}
		todo = append(strings.Split(to, "/"), todo...)
	}
	return done, nil
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

func readLink(p string) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlink(p, buf)
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}
