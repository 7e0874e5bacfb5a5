package runspec

import (
	"path"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/container"
)

// defaultPath is docker's PATH for a process whose image names none.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// environment is a process's environment: docker's defaults, then the container's own. HOME is left to the agent,
// which knows the user.
func environment(config *container.Config, tty bool) []string {
	defaults := []string{"PATH=" + defaultPath, "HOSTNAME=" + config.Hostname}
	if tty {
		defaults = append(defaults, "TERM=xterm")
	}
	return overrideEnv(defaults, config.Env)
}

// overrideEnv sets the variables of over in base, in place where base has them; "KEY" without "=" removes one.
func overrideEnv(base, over []string) []string {
	out := make([]string, 0, len(base)+len(over))
	at := make(map[string]int, len(base)+len(over))
	for _, e := range slices.Concat(base, over) {
		key, _, set := strings.Cut(e, "=")
		i, known := at[key]
		switch {
		case !set:
			if known {
				out[i] = ""
				delete(at, key)
			}
		case known:
			out[i] = e
		default:
			at[key] = len(out)
			out = append(out, e)
		}
	}
	return slices.DeleteFunc(out, func(e string) bool { return e == "" })
}

// checkEnv refuses what is no variable.
func checkEnv(env []string) error {
	for _, e := range env {
		if e == "" || e[0] == '=' || strings.ContainsRune(e, 0) {
			return invalid("invalid environment variable: %s", strings.ReplaceAll(e, "\x00", "\\0"))
		}
	}
	return nil
}

func workingDir(dir string) string {
	if dir == "" {
		return "/"
	}
	return path.Clean("/" + dir)
}
