package front

import (
	"os"
	"os/signal"
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

// runWords makes the words of a request of what follows `run`; nil where there is more to it than is done here.
func runWords(args []string) []string {
	var words []string
	for len(args) > 0 && args[0] != "" && args[0][0] == '-' {
		flag, value, rest := args[0], "", args[1:]
		switch flag {
		case "--rm":
			words, args = append(words, SetRemove), rest
			continue
		case "-d", "--detach":
			words, args = append(words, SetDetach), rest
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
			return nil
		default:
			value, rest = rest[0], rest[1:]
		}
		switch {
		case flag == "--network" && plain(value):
			value = SetNetwork + value
		case flag == "--name" && plain(value):
			value = SetName + value
		case (flag == "--env" || flag == "-e" && at == len(args[0])) && assigns(value):
			value = SetEnv + value
		default:
			return nil
		}
		words, args = append(words, value), rest
	}
	if len(args) == 0 || !image(args[0]) {
		return nil
	}
	return append(append(words, ""), args...)
}

// assigns tells whether a word is an environment variable with a value, as opposed to one whose value is in ours.
func assigns(word string) bool {
	for i, c := range []byte(word) {
		switch {
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
	for i, c := range []byte(word) {
		switch {
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
func configured(getenv func(string) string) bool {
	dir, home := getenv("DOCKER_CONFIG"), getenv("HOME")
	switch {
	case getenv("DOCKER_DEFAULT_PLATFORM") != "":
		return true
	case dir == "" && home == "":
		return true // it asks the system
	case dir == "":
		dir = home + "/.docker"
	}
	var st syscall.Stat_t
	return syscall.Stat(dir+"/config.json", &st) != syscall.ENOENT
}

// Exit codes of a run that are not the container's.
const (
	exitOutput = 1   // the output cannot be written
	exitLost   = 125 // docker's code for a daemon that fails
)

// run makes and starts a container: POST /cradle/v1/run with the words as the body. The answer is 200, with the id in its
// head, once there is a container, and begins before that one does; any other says that there is none. Signals are the
// container's from the beginning; if there is none, they are ours again.
func (c *conn) run(socket string, words []string, stdout, stderr *os.File) (code int, done bool) {
	if size := terminalSize(stdout); size != "" {
		words = append([]string{SetSize + size}, words...)
	}
	signals := make(chan os.Signal, 128)
	signal.Notify(signals)
	if err := c.post("/cradle/v1/run", "", words); err != nil {
		return 0, giveUp(signals)
	}
	status, id, err := c.head()
	if err != nil || status != "200" || !plain(id) {
		return 0, giveUp(signals)
	}
	defer signal.Stop(signals)
	go forward(signals, socket, id, stderr)
	code, err = c.records(stdout, stderr)
	if err == nil {
		return code, true
	}
	stderr.WriteString(err.Error() + "\n")
	if _, ok := err.(lost); ok {
		return exitLost, true
	}
	return exitOutput, true
}

// giveUp gives back the signals, those that have come included, and returns false.
func giveUp(signals chan os.Signal) bool {
	signal.Stop(signals)
	for {
		select {
		case s := <-signals:
			if n := number(s); n != 0 {
				syscall.Kill(syscall.Getpid(), n)
			}
		default:
			return false
		}
	}
}

// forward passes signals on to the container. The third that asks for an end is the end of its patience, as it is with
// docker's own, whether the daemon answers or not.
func forward(signals <-chan os.Signal, socket, id string, stderr *os.File) {
	numbers := make(chan syscall.Signal, cap(signals))
	defer close(numbers)
	go deliver(numbers, socket, id)
	ends := 0
	for s := range signals {
		n := number(s)
		if n == 0 {
			continue
		}
		select {
		case numbers <- n:
		default: // as a signal that is pending already
		}
		if n == syscall.SIGINT || n == syscall.SIGTERM {
			if ends++; ends == 3 {
				stderr.WriteString("\ngot 3 SIGTERM/SIGINTs, forcefully exiting\n")
				os.Exit(1)
			}
		}
	}
}

// deliver asks for one signal after the other. Whatever comes of it: a container that has ended is no error.
func deliver(numbers <-chan syscall.Signal, socket, id string) {
	for n := range numbers {
		c, err := connect(socket)
		if err != nil {
			continue
		}
		if c.post("/containers/"+id+"/kill?signal="+decimal(int(n)), "", nil) == nil {
			c.head()
		}
		syscall.Close(c.fd)
	}
}

// number is a signal's; 0 for those that are this program's own business.
func number(s os.Signal) syscall.Signal {
	n, _ := s.(syscall.Signal)
	if n == syscall.SIGCHLD || n == syscall.SIGPIPE || n == syscall.SIGURG { // the last is Go's scheduler's
		return 0
	}
	return n
}

// terminalSize is the size of a terminal, rows and columns as "24x80"; empty for what is none.
func terminalSize(f *os.File) string {
	raw, err := f.SyscallConn()
	if err != nil {
		return ""
	}
	var size struct{ rows, columns, x, y uint16 }
	var errno syscall.Errno
	err = raw.Control(func(fd uintptr) {
		_, _, errno = syscall.Syscall(syscall.SYS_IOCTL, fd, syscall.TIOCGWINSZ, uintptr(unsafe.Pointer(&size)))
	})
	if err != nil || errno != 0 {
		return ""
	}
	return decimal(int(size.rows)) + "x" + decimal(int(size.columns))
}
