package guest

import (
	"errors"
	"path"
	"strings"

	"github.com/cradlevm/cradle/api"
	"golang.org/x/sys/unix"
)

// lookPath finds the program that name stands for in the calling thread's root, as a shell would with env's PATH. The
// messages are those that runc has made people used to.
func lookPath(name string, env []string, cwd string) (string, error) {
	if strings.Contains(name, "/") {
		p := name
		if !path.IsAbs(p) {
			p = path.Join("/", cwd, p)
		}
		return p, notRunnable(name, runnable(p))
	}
	if name == "" {
		return "", api.Errorf(api.CodeCommandNotFound, `exec: "": executable file not found in $PATH`)
	}
	var denied error
	for dir := range strings.SplitSeq(lastEnv(env, "PATH"), ":") {
		if dir == "" {
			dir = "."
		}
		if !path.IsAbs(dir) {
			dir = path.Join("/", cwd, dir)
		}
		p := path.Join(dir, name)
		err := runnable(p)
		if err == nil {
			return p, nil
		}
		if !missing(err) && denied == nil {
			denied = err
		}
	}
	if denied != nil {
		return "", notRunnable(name, denied)
	}
	return "", api.Errorf(api.CodeCommandNotFound, "exec: %q: executable file not found in $PATH", name)
}

// runnable reports why the file at p could not be executed. The process's own user may still lack the permission; then the
// exec itself fails.
func runnable(p string) error {
	var st unix.Stat_t
	if err := unix.Stat(p, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR || st.Mode&0o111 == 0 {
		return errNotExecutable
	}
	return nil
}

var errNotExecutable = errors.New("a directory, or nobody may execute it")

// missing reports whether a file is not there.
func missing(err error) bool { return err == unix.ENOENT || err == unix.ENOTDIR }

// notRunnable is what the user, who called the file by name, is told of runnable's error. Where there are many places to look
// nearly all of them lack the file, which is not worth a message each.
func notRunnable(name string, err error) error {
	switch {
	case err == nil:
		return nil
	case missing(err):
		return api.Errorf(api.CodeCommandNotFound, "exec: %q: stat %s: %w", name, name, err)
	case err != errNotExecutable:
		return api.Errorf(api.CodeCommandNotRunnable, "exec: %q: stat %s: %w", name, name, err)
	}
	// Today's runc says of the one that it is a directory; docker's older command lines know that a command cannot
	// be run by these words only.
	return api.Errorf(api.CodeCommandNotRunnable, "exec: %q: permission denied", name)
}

// lastEnv returns the value of the last assignment to name.
func lastEnv(env []string, name string) string {
	for i := len(env) - 1; i >= 0; i-- {
		if k, v, ok := strings.Cut(env[i], "="); ok && k == name {
			return v
		}
	}
	return ""
}
