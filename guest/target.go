package guest

import (
	"path"
	"strings"

	"github.com/cradlevm/cradle/api"
	"golang.org/x/sys/unix"
)

// makeTarget returns p with its symbolic links resolved from the calling thread's root, and makes what is missing on
// the way: directories, and at the end a directory or an empty file. Images have dangling links where the runtime is
// to mount, such as /etc/resolv.conf → ../run/systemd/resolve/stub-resolv.conf.
func makeTarget(p string, dir bool) (string, error) {
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
