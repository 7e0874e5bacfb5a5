package front

import (
	"syscall"
	"unsafe"
)

// request is what is asked for: put together in a buffer, and sent whenever that is full.
type request struct {
	fd     int
	buf    []byte
	n      int // bytes in buf
	failed bool
}

func (r *request) text(s string) {
	for len(s) > 0 {
		if r.n == len(r.buf) {
			r.send()
		}
		n := copy(r.buf[r.n:], s)
		r.n, s = r.n+n, s[n:]
	}
}

func (r *request) number(n int) {
	var room [20]byte
	b := digits(&room, n)
	r.text(unsafe.String(&b[0], len(b)))
}

// send sends what there is, and tells whether all of it has been sent, ever.
func (r *request) send() bool {
	for b := r.buf[:r.n]; len(b) > 0 && !r.failed; {
		n, _, errno := syscall.RawSyscall6(syscall.SYS_SENDTO, uintptr(r.fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), syscall.MSG_NOSIGNAL, 0, 0)
		if errno == 0 {
			b = b[n:]
		} else if errno != syscall.EINTR {
			r.failed = true
		}
	}
	r.n = 0
	return !r.failed
}

// words are a request's body: separated by zero bytes. They are counted first, with r nil.
type words struct {
	r    *request
	size int // of them all
	some bool
}

// add adds a word, which is in two parts. A nil w takes it, too.
func (w *words) add(head, rest string) {
	if w == nil {
		return
	}
	if w.some {
		w.text("\x00")
	}
	w.some = true
	w.text(head)
	w.text(rest)
}

func (w *words) text(s string) {
	w.size += len(s)
	if w.r != nil {
		w.r.text(s)
	}
}

func (w *words) number(n int) {
	var room [20]byte
	b := digits(&room, n)
	w.text(unsafe.String(&b[0], len(b)))
}

// body is what a request tells of: what follows the command's name, or an exec's container.
type body struct {
	command       string
	args          []string
	terminal      bool
	rows, columns int
}

func (b *body) write(w *words) {
	switch b.command {
	case "exec":
		for _, word := range b.args {
			w.add(word, "")
		}
	case "ps":
		psWords(b.args, w)
	case "run":
		if b.terminal {
			w.add(SetSize, "")
			w.number(b.rows)
			w.text("x")
			w.number(b.columns)
		}
		runWords(b.args, w)
	}
}

// post asks for something at a path of three parts. more are further fields of the head, each with its line's end.
func (c *conn) post(dir, name, rest, more string, b *body) bool {
	r := request{fd: c.fd, buf: c.buf}
	count := words{}
	b.write(&count)
	r.text("POST ")
	r.text(dir)
	r.text(name)
	r.text(rest)
	r.text(" HTTP/1.1\r\nHost: cradle\r\nConnection: close\r\n")
	r.text(more)
	r.text("Content-Length: ")
	r.number(count.size)
	r.text("\r\n\r\n")
	b.write(&words{r: &r})
	return r.send()
}
