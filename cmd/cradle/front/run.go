package front

import (
	"syscall"
	"unsafe"
)

// What a run's words can begin with: settings, each of them one of these or, where it ends in "=", with a value; an empty
// word ends them, and the image and the command follow.
const (
	SetRemove  = "rm"
	SetDetach  = "detach"
	SetNetwork = "network="
	SetName    = "name="
	SetEnv     = "env=" // and K=V
	SetSize    = "size="
)

// runWords makes the words of a request of what follows `run`; false where there is more to it than is done here.
func runWords(args []string, w *words) bool {
	for len(args) > 0 && args[0] != "" && args[0][0] == '-' {
		flag, value, rest := args[0], "", args[1:]
		switch flag {
		case "--rm":
			w.add(SetRemove, "")
			args = rest
			continue
		case "-d", "--detach":
			w.add(SetDetach, "")
			args = rest
			continue
		}
		at := 0
		for at < len(flag) && flag[at] != '=' {
			at++
		}
		switch {
		case at < len(flag):
			flag, value = flag[:at], flag[at+1:]
		case len(rest) == 0:
			return false
		default:
			value, rest = rest[0], rest[1:]
		}
		switch {
		case flag == "--network" && plain(value):
			w.add(SetNetwork, value)
		case flag == "--name" && plain(value):
			w.add(SetName, value)
		case (flag == "--env" || flag == "-e" && at == len(args[0])) && assigns(value):
			w.add(SetEnv, value)
		default:
			return false
		}
		args = rest
	}
	if len(args) == 0 || !image(args[0]) {
		return false
	}
	w.add("", "")
	for _, word := range args {
		w.add(word, "")
	}
	return true
}

// assigns tells whether a word is an environment variable with a value, as opposed to one whose value is in ours.
func assigns(word string) bool {
	for i := range len(word) {
		switch c := word[i]; {
		case c == '=':
			return i > 0
		case c == '_', c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9':
		default:
			return false
		}
	}
	return false
}

// image tells whether a word looks like an image's name, as opposed to a summoned directory's.
func image(word string) bool {
	for i := range len(word) {
		switch c := word[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9':
		case i > 0 && (c == '_' || c == '.' || c == '-' || c == '/' || c == ':' || c == '@'):
		default:
			return false
		}
	}
	return word != ""
}

// configured tells whether something but the command may have a say in what docker's library makes of it: its
// configuration file (proxies), or a platform chosen by the environment.
func configured(env environment, room []byte) bool {
	dir, rest := env.get("DOCKER_CONFIG"), "/config.json\x00"
	switch home := env.get("HOME"); {
	case env.get("DOCKER_DEFAULT_PLATFORM") != "":
		return true
	case dir == "" && home == "":
		return true // it asks the system
	case dir == "":
		dir, rest = home, "/.docker/config.json\x00"
	}
	if len(dir)+len(rest) > len(room) {
		return true
	}
	n := copy(room, dir)
	n += copy(room[n:], rest)
	return exists(room[:n])
}

// Exit codes of a run that are not the container's.
const (
	exitOutput = 1   // the output cannot be written
	exitLost   = 125 // docker's code for a daemon that fails
)

// run makes and starts a container: POST /cradle/v1/run with the words as the body. The answer is 200, with the id in its
// head, once there is a container, and begins before that one does; any other says that there is none. Signals are the
// container's from the beginning; if there is none, they are ours again.
func (c *conn) run(socket *address, args []string) (code int, done bool) {
	s := &c.signals
	s.socket = *socket
	if !s.hold() {
		return 0, false
	}
	b := body{command: "run", args: args}
	b.rows, b.columns, b.terminal = terminalSize()
	if !c.post("/cradle/v1/run", "", "", "", &b) {
		return 0, s.release()
	}
	if status, id := c.head(); status != 200 || !plain(id) || !s.forward(id) {
		return 0, s.release()
	}
	code, end := c.records()
	switch end {
	case lost:
		return exitLost, true
	case unwritable:
		return exitOutput, true
	}
	return code, true
}

// terminalSize is the size of the terminal that the output goes to, if it goes to one.
func terminalSize() (rows, columns int, ok bool) {
	var size struct{ rows, columns, x, y uint16 }
	_, _, errno := syscall.RawSyscall(syscall.SYS_IOCTL, stdout, syscall.TIOCGWINSZ, uintptr(unsafe.Pointer(&size)))
	return int(size.rows), int(size.columns), errno == 0
}
