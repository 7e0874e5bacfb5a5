package files

import (
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// maxFollowed is how many links a path may lead through, as with the kernel.
const maxFollowed = 40

// Resolve returns the path that p leads to, clean and without links: all of them are resolved inside root as if that
// were "/". For each part of the way that cannot be opened, absent is called with its path, whether it is the last,
// and why; it may make what is missing. If it returns nil the walk goes on, and what follows is taken literally as
// long as it is not there either. Errors: absent's, unix.ELOOP.
func Resolve(root int, p string, absent func(at string, last bool, err error) error) (string, error) {
	todo := strings.Split(p, "/")
	done := "/"
	buf := make([]byte, unix.PathMax)
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
		fd, err := open(root, here, unix.O_PATH|unix.O_NOFOLLOW)
		if err != nil {
			if err := absent(here, isLast(todo), err); err != nil {
				return "", err
			}
			done = here
			continue
		}
		n, err := unix.Readlinkat(fd, "", buf)
		unix.Close(fd)
		if err != nil {
			done = here // not a link
			continue
		}
		if links++; links > maxFollowed {
			return "", unix.ELOOP
		}
		to := string(buf[:n])
		if path.IsAbs(to) {
			done = "/"
		}
		todo = append(strings.Split(to, "/"), todo...)
	}
	return done, nil
}

// isLast reports whether nothing but slashes and dots is left.
func isLast(todo []string) bool {
	for _, name := range todo {
		if name != "" && name != "." {
			return false
		}
	}
	return true
}
