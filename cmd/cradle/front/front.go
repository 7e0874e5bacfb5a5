// Package front is what the command line does before the rest of it is even there: `cradle exec CONTAINER COMMAND`,
// `cradle run IMAGE COMMAND` and `cradle ps`, in the forms that scripts and probes repeat all day, and `cradle --version`.
//
// Docker's command library and the daemon, which are the rest of this program, take seven milliseconds of a processor to
// initialize, and Go's runtime for a program of that size takes two more; all that such a command has to do are a dozen
// system calls. So the program's entry is this package's (entry_linux_amd64.s, which the linker is told by -E), and the
// runtime's only after it. Whatever is not done here to the letter as docker does it is left to the runtime and docker's
// library, as if nothing had happened: all but a few flags, a container or a daemon that does not answer, every error before
// something has begun. A program that was linked without -E does the same, and takes longer.
//
// As there is no runtime, there is no memory but the stack and one buffer, no goroutine, no map, and no package but those
// parts of syscall and unsafe that are in need of nothing either (TestNeedsNoRuntime).
package front

import (
	"syscall"
	"unsafe"

	"github.com/docker/cli/cli/version"
)

// run does the command of args if it is one of those that are done here, and returns its exit code. When it is not,
// nothing has happened. room is for what is sent and received.
func run(args []string, env environment, room []byte) (code int, done bool) {
	c := conn{fd: -1, buf: room}
	switch {
	case len(args) > 2 && args[0] == "exec" && plain(args[1]):
	case len(args) > 1 && args[0] == "run" && runWords(args[1:], nil) && !configured(env, room):
	case len(args) > 0 && args[0] == "ps" && psWords(args[1:], nil) && !configured(env, room):
	case len(args) == 1 && (args[0] == "--version" || args[0] == "-v"):
		return 0, sayVersion()
	default:
		return 0, false
	}
	uid, _, _ := syscall.RawSyscall(syscall.SYS_GETEUID, 0, 0, 0)
	var socket address
	if dir, rest := Socket(env.get, int(uid)); dir == "" || !socket.set(dir, rest) || !c.connect(&socket) {
		return 0, false
	}
	switch args[0] {
	case "run":
		code, done = c.run(&socket, args[1:])
	case "ps":
		code, done = c.ps(args[1:])
	default:
		code, done = c.exec(args[1], args[2:])
	}
	closeFile(c.fd)
	return code, done
}

// sayVersion prints the version, if the linker was told it.
func sayVersion() bool {
	if version.Version == "unknown-version" {
		return false
	}
	for _, part := range [...]string{"cradle version ", version.Version, ", build ", version.GitCommit, "\n"} {
		write(stdout, unsafe.Slice(unsafe.StringData(part), len(part)))
	}
	return true
}

// plain tells whether a word is a container's name or id, as opposed to a flag or to what nobody's name is.
func plain(word string) bool {
	for i := range len(word) {
		switch c := word[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '_', c == '.', c == '-':
		default:
			return false
		}
	}
	return word != "" && word[0] != '-' && word[0] != '.'
}

// Socket is the daemon's, in two parts, where the environment says so in so many words; empty means that it takes more to
// find it.
func Socket(getenv func(string) string, uid int) (dir, rest string) {
	dir, rest = "/run/cradle", "/cradle.sock"
	chosen, user := getenv("CRADLE_RUN"), getenv("XDG_RUNTIME_DIR")
	switch {
	case getenv("CRADLE_HOST") != "":
		return "", ""
	case chosen != "":
		dir = chosen
	case uid != 0 && user == "":
		return "", ""
	case uid != 0:
		dir, rest = user, "/cradle/cradle.sock"
	}
	if dir[0] != '/' {
		return "", ""
	}
	return dir, rest
}
