// Package front is what the command line does before the rest of it is even loaded: `cradle exec CONTAINER COMMAND` and
// `cradle run IMAGE COMMAND`, in the forms that scripts and probes repeat all day.
//
// Docker's command library and the daemon, which are the rest of this program, take ten milliseconds of a processor to
// initialize, five times as much as all that such a command has to do. Go initializes packages in the order of their
// import paths, as soon as what they import is ready (the language's specification, "Program initialization"); this one
// imports only what comes early itself (not even package strings), and so is done before them. Whatever it does not do to
// the letter as docker does, it leaves to them, untouched: all but a few flags, a container or a daemon that does not
// answer, every error before something has begun.
package front

import (
	"os"
	"syscall"
)

func init() {
	if code, done := Run(os.Args[1:], os.Getenv, os.Geteuid(), os.Stdout, os.Stderr); done {
		os.Exit(code)
	}
}

// Run does the command of args if it is one of those that are done here, and returns its exit code. When it is not,
// nothing has happened.
func Run(args []string, getenv func(string) string, uid int, stdout, stderr *os.File) (code int, done bool) {
	var words []string
	switch {
	case len(args) > 2 && args[0] == "exec" && plain(args[1]):
		words = args[2:]
	case len(args) > 1 && args[0] == "run":
		words = runWords(args[1:])
	}
	if words == nil || args[0] == "run" && configured(getenv) {
		return 0, false
	}
	path := Socket(getenv, uid)
	if path == "" {
		return 0, false
	}
	c, err := connect(path)
	if err != nil {
		return 0, false
	}
	defer syscall.Close(c.fd)
	if args[0] == "run" {
		return c.run(path, words, stdout, stderr)
	}
	return c.exec(args[1], words, stdout, stderr)
}

// plain tells whether a word is a container's name or id, as opposed to a flag or to what nobody's name is.
func plain(word string) bool {
	for _, c := range []byte(word) {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '_', c == '.', c == '-':
		default:
			return false
		}
	}
	return word != "" && word[0] != '-' && word[0] != '.'
}

// Socket is the daemon's, where the environment says so in so many words; empty means that it takes more to find it.
func Socket(getenv func(string) string, uid int) string {
	dir, chosen, user := "/run/cradle", getenv("CRADLE_RUN"), getenv("XDG_RUNTIME_DIR")
	switch {
	case getenv("CRADLE_HOST") != "":
		return ""
	case chosen != "":
		dir = chosen
	case uid != 0 && user == "":
		return ""
	case uid != 0:
		dir = user + "/cradle"
	}
	if dir[0] != '/' {
		return ""
	}
	return dir + "/cradle.sock"
}
