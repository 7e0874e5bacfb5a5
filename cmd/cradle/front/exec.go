package front

import (
	"bytes"
	"errors"
	"os"
	"syscall"
)

// conn is a connection to the daemon. It is read and written by plain system calls: package net is a great part of what
// is not loaded yet.
type conn struct {
	fd  int
	buf []byte // what has been read and not been used
}

func connect(path string) (*conn, error) {
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	if err := syscall.Connect(fd, &syscall.SockaddrUnix{Name: path}); err != nil {
		syscall.Close(fd)
		return nil, err
	}
	return &conn{fd: fd}, nil
}

func (c *conn) write(b []byte) error {
	for len(b) > 0 {
		n, err := syscall.SendmsgN(c.fd, b, nil, nil, syscall.MSG_NOSIGNAL)
		if err != nil && err != syscall.EINTR {
			return err
		}
		b = b[max(0, n):]
	}
	return nil
}

var errEnd = errors.New("its answer has no end")

// fill reads until at least n bytes are there.
func (c *conn) fill(n int) error {
	for len(c.buf) < n {
		if cap(c.buf)-len(c.buf) < 4<<10 {
			c.buf = append(make([]byte, 0, 2*cap(c.buf)+8<<10), c.buf...)
		}
		got, err := syscall.Read(c.fd, c.buf[len(c.buf):cap(c.buf)])
		switch {
		case err == syscall.EINTR:
		case err != nil:
			return err
		case got <= 0:
			return errEnd
		default:
			c.buf = c.buf[:len(c.buf)+got]
		}
	}
	return nil
}

// maxHead bounds the head of an answer, bytes.
const maxHead = 16 << 10

// head reads the head of an answer and returns its status.
func (c *conn) head() (status string, err error) {
	for at := 1; ; at = len(c.buf) + 1 {
		if err := c.fill(at); err != nil {
			return "", err
		}
		if head, rest, ok := bytes.Cut(c.buf, []byte("\r\n\r\n")); ok {
			c.buf = rest
			_, after, _ := bytes.Cut(head, []byte(" "))
			return string(after[:min(3, len(after))]), nil
		}
		if len(c.buf) > maxHead {
			return "", errEnd
		}
	}
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

// exec runs a command in a container: POST /cradle/v1/containers/NAME/exec with the words of the command, separated by
// zero bytes, as the body. The daemon says that it has begun with the answer 100 (the request expects it): before that
// nothing has happened, and after it an answer other than 200 says the same.
func (c *conn) exec(name string, words []string, stdout, stderr *os.File) (code int, done bool) {
	size := len(words) - 1
	for _, w := range words {
		size += len(w)
	}
	request := append([]byte("POST /cradle/v1/containers/"), name...)
	request = append(request, "/exec HTTP/1.1\r\nHost: cradle\r\nConnection: close\r\nExpect: 100-continue\r\nContent-Length: "...)
	request = append(append(request, decimal(size)...), "\r\n\r\n"...)
	for i, w := range words {
		if i > 0 {
			request = append(request, 0)
		}
		request = append(request, w...)
	}
	if err := c.write(request); err != nil {
		return 0, false
	}
	status, err := c.head()
	if err != nil || status != "100" {
		return 0, false
	}
	if status, err = c.head(); err == nil && status != "200" {
		return 0, false
	}
	if err == nil {
		code, err = c.records(stdout, stderr)
	}
	if err != nil {
		stderr.WriteString("lost the cradle daemon: " + err.Error() + "\n")
		return 1, true
	}
	return code, true
}

func decimal(n int) string {
	if n < 10 {
		return string(rune('0' + n))
	}
	return decimal(n/10) + decimal(n%10)
}

// records writes the output to where it belongs, and returns the exit code.
func (c *conn) records(stdout, stderr *os.File) (code int, err error) {
	for {
		if err := c.fill(headSize); err != nil {
			return 0, err
		}
		stream := c.buf[0]
		n := int(c.buf[4])<<24 | int(c.buf[5])<<16 | int(c.buf[6])<<8 | int(c.buf[7])
		if n > MaxRecord || stream == Exit && n != 1 {
			return 0, errors.New("it answers nonsense")
		}
		if err := c.fill(headSize + n); err != nil {
			return 0, err
		}
		payload := c.buf[headSize : headSize+n]
		switch stream {
		case Exit:
			return int(payload[0]), nil
		case Stderr:
			_, err = stderr.Write(payload)
		default:
			_, err = stdout.Write(payload)
		}
		if err != nil {
			return 0, err
		}
		c.buf = c.buf[:copy(c.buf, c.buf[headSize+n:])]
	}
}
