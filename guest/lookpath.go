package guest

import (
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
		return p, runnable(p, name)
	}
	if name == "" {
		return "", api.Errorf(api.CodeCommandNotFound, `exec: "": executable file not found in $PATH`)
	}
	var denied error
	for _, dir := range strings.Split(lastEnv(env, "PATH"), ":") {
		if dir == "" {
			dir = "."
		}
		if !path.IsAbs(dir) {
			dir = path.Join("/", cwd, dir)
		}
		p := path.Join(dir, name)
		err := runnable(p, name)
		if err == nil {
			return p, nil
		}
		if e, ok := err.(*api.Error); ok && e.Code == api.CodeCommandNotRunnable && denied == nil {
			denied = err
		}
	}
	if denied != nil {
		return "", denied
	}
	return "", api.Errorf(api.CodeCommandNotFound, "exec: %q: executable file not found in $PATH", name)
}

// runnable reports why the file at p, called name by the user, could not be executed. The process's own user may
// still lack the permission; then the exec itself fails.
func runnable(p, name string) error {
	var st unix.Stat_t
	err := unix.Stat(p, &st)
	switch {
	case err == unix.ENOENT || err == unix.ENOTDIR:
		return api.Errorf(api.CodeCommandNotFound, "exec: %q: stat %s: %w", name, name, err)
	case err != nil:
		return api.Errorf(api.CodeCommandNotRunnable, "exec: %q: stat %s: %w", name, name, err)
	case st.Mode&unix.S_IFMT == unix.S_IFDIR || st.Mode&0o111 == 0:
		// Today's runc says of the one that it is a directory; docker's older command lines know that a command cannot
		// be run by these words only.
		return api.Errorf(api.CodeCommandNotRunnable, "exec: %q: permission denied", name)
	}
	return nil
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
