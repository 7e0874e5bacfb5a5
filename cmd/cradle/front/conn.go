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

// head reads the head of an answer and returns its status and the id of the container that it tells of, if any.
func (c *conn) head() (status, id string, err error) {
	for at := 1; ; at = len(c.buf) + 1 {
		if err := c.fill(at); err != nil {
			return "", "", err
		}
		if head, rest, ok := bytes.Cut(c.buf, []byte("\r\n\r\n")); ok {
			c.buf = rest
			_, after, _ := bytes.Cut(head, []byte(" "))
			_, value, _ := bytes.Cut(head, []byte("\r\n"+IDField+": "))
			value, _, _ = bytes.Cut(value, []byte("\r\n"))
			return string(after[:min(3, len(after))]), string(value), nil
		}
		if len(c.buf) > maxHead {
			return "", "", errEnd
		}
	}
}

// post asks for something at path, with words, separated by zero bytes, as the body. more are further fields of the head,
// each with its line's end.
func (c *conn) post(path, more string, words []string) error {
	size := max(0, len(words)-1)
	for _, w := range words {
		size += len(w)
	}
	request := append([]byte("POST "), path...)
	request = append(append(request, " HTTP/1.1\r\nHost: cradle\r\nConnection: close\r\n"...), more...)
	request = append(append(append(request, "Content-Length: "...), decimal(size)...), "\r\n\r\n"...)
	for i, w := range words {
		if i > 0 {
			request = append(request, 0)
		}
		request = append(request, w...)
	}
	return c.write(request)
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

// lost is the end of a daemon that had begun.
type lost struct{ error }

// Error implements error.
func (l lost) Error() string { return "lost the cradle daemon: " + l.error.Error() }

func decimal(n int) string {
	if n < 10 {
		return string(rune('0' + n))
	}
	return decimal(n/10) + decimal(n%10)
}

// records writes the output to where it belongs, and returns the exit code. The error is lost when it is the daemon's.
func (c *conn) records(stdout, stderr *os.File) (code int, err error) {
	for {
		if err := c.fill(headSize); err != nil {
			return 0, lost{err}
		}
		stream := c.buf[0]
		n := int(c.buf[4])<<24 | int(c.buf[5])<<16 | int(c.buf[6])<<8 | int(c.buf[7])
		if n > MaxRecord || stream == Exit && n != 1 {
			return 0, lost{errors.New("it answers nonsense")}
		}
		if err := c.fill(headSize + n); err != nil {
			return 0, lost{err}
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
