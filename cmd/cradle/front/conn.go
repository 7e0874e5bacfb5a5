package front

import (
	"syscall"
	"unsafe"
)

// address is the daemon's.
type address struct {
	raw  syscall.RawSockaddrUnix
	size int
}

// set makes it of a path of two parts, and tells whether that can be one.
func (a *address) set(dir, rest string) bool {
	if len(dir)+len(rest) >= len(a.raw.Path) {
		return false
	}
	a.raw.Family = syscall.AF_UNIX
	for i := range len(dir) {
		a.raw.Path[i] = int8(dir[i])
	}
	for i := range len(rest) {
		a.raw.Path[len(dir)+i] = int8(rest[i])
	}
	a.size = int(unsafe.Offsetof(a.raw.Path)) + len(dir) + len(rest) + 1
	return true
}

// dial connects; -1 is that it cannot.
func (a *address) dial() int {
	fd, _, errno := syscall.RawSyscall(syscall.SYS_SOCKET, syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if errno != 0 {
		return -1
	}
	_, _, errno = syscall.RawSyscall(syscall.SYS_CONNECT, fd, uintptr(unsafe.Pointer(&a.raw)), uintptr(a.size))
	if errno != 0 || fd <= stderr { // who has closed those has more to come
		closeFile(int(fd))
		return -1
	}
	return int(fd)
}

// conn is a connection to the daemon.
type conn struct {
	fd       int
	buf      []byte
	from, to int     // what of buf has been read and not been used
	signals  signals // those of a run
}

func (c *conn) connect(to *address) bool {
	c.fd = to.dial()
	return c.fd >= 0
}

// fill reads until at least n bytes are there.
func (c *conn) fill(n int) bool {
	for c.to-c.from < n {
		if c.from == c.to {
			c.from, c.to = 0, 0
		}
		if len(c.buf)-c.from < n {
			c.to = copy(c.buf, c.buf[c.from:c.to])
			c.from = 0
		}
		if c.signals.size > 0 {
			c.signals.await(c.fd)
		}
		got, _, errno := syscall.RawSyscall(syscall.SYS_READ, uintptr(c.fd), uintptr(unsafe.Pointer(&c.buf[c.to])), uintptr(len(c.buf)-c.to))
		switch {
		case errno == syscall.EINTR:
		case errno != 0 || got == 0 || got > uintptr(len(c.buf)-c.to):
			return false
		default:
			c.to += int(got)
		}
	}
	return true
}

// maxHead bounds the head of an answer, bytes.
const maxHead = 16 << 10

// head reads the head of an answer, and returns its status (0: there is none) and the id of the container that it tells of,
// if any, which is good until more is read.
func (c *conn) head() (status int, id string) {
	for n := 1; n <= maxHead && c.fill(n); n = c.to - c.from + 1 {
		head := unsafe.String(&c.buf[c.from], c.to-c.from)
		end := index(head, "\r\n\r\n")
		if end < 0 {
			continue
		}
		c.from += end + 4
		head = head[:end+2]
		if at := index(head, "\r\n"+IDField+": "); at >= 0 {
			id = head[at+len("\r\n"+IDField+": "):]
			id = id[:index(id, "\r\n")]
		}
		at := index(head, " ") + 1
		if at == 0 || len(head) < at+3 {
			return 0, ""
		}
		for _, c := range []byte(head[at : at+3]) {
			if c < '0' || c > '9' {
				return 0, ""
			}
			status = 10*status + int(c-'0')
		}
		return status, id
	}
	return 0, ""
}

// index is where part is in s; -1 if it is not.
func index(s, part string) int {
	for i := 0; i+len(part) <= len(s); i++ {
		if s[i:i+len(part)] == part {
			return i
		}
	}
	return -1
}

// The records of the answer's body: a stream (1), three zero bytes, a big-endian length (4), and that many bytes. It is
// docker's frame of a stream, and Exit's is the exit code.
const (
	headSize       = 8
	Stdout    byte = 1
	Stderr    byte = 2
	Exit      byte = 4
	MaxRecord      = 1 << 20
)

// IDField is the field of an answer's head that holds the id of the container that a run has made.
const IDField = "Container"

// What can become of records.
type ending int

const (
	ended      ending = iota
	lost              // the daemon, which had begun
	unwritable        // the output
)

// records writes the output to where it belongs, and returns the exit code. It says what else ends it.
func (c *conn) records() (code int, end ending) {
	for {
		if !c.fill(headSize) {
			return c.lose("its answer has no end")
		}
		head := c.buf[c.from : c.from+headSize]
		stream, n := head[0], int(head[4])<<24|int(head[5])<<16|int(head[6])<<8|int(head[7])
		c.from += headSize
		if n > MaxRecord || stream == Exit && n != 1 {
			return c.lose("it answers nonsense")
		}
		for n > 0 {
			if !c.fill(1) {
				return c.lose("its answer has no end")
			}
			part := c.buf[c.from:min(c.to, c.from+n)]
			c.from += len(part)
			n -= len(part)
			if stream == Exit {
				return int(part[0]), ended
			}
			if !put(stream, part) {
				return 0, unwritable
			}
		}
	}
}

func (c *conn) lose(how string) (code int, end ending) {
	say("lost the cradle daemon: ")
	say(how)
	say("\n")
	return 0, lost
}

// put writes output, or says that it cannot.
func put(stream byte, b []byte) bool {
	fd, name := stdout, "write /dev/stdout: "
	if stream == Stderr {
		fd, name = stderr, "write /dev/stderr: "
	}
	errno := write(fd, b)
	if errno == 0 {
		return true
	}
	say(name)
	say(errno.Error())
	say("\n")
	return false
}
