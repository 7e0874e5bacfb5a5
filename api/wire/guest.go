package wire

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"github.com/cradlevm/cradle/api"
	"github.com/hashicorp/yamux"
)

// Listener turns a port that knows no connections into sessions, one at a time.
type Listener struct {
	port     io.ReadWriter
	sessions chan *portConn
	writing  sync.Mutex // one whole write at a time reaches the port

	scanning sync.Mutex // guards what follows
	known    bool       // token is set
	token    Token
	current  *portConn
	// tail are the last bytes read when they may be the beginning of a hello; passed of them have been given to the
	// session all the same.
	tail   []byte
	passed int
}

// SetToken makes token the one that sessions open with from now on.
func (l *Listener) SetToken(token Token) {
	l.scanning.Lock()
	defer l.scanning.Unlock()
	l.known, l.token = true, token
}

// patience is how long bytes that only look like the beginning of a hello are kept from the session. A real hello
// arrives in one piece, or nearly so.
const patience = 20 * time.Millisecond

// Listen reads the port until it fails. Reads of the port must block while no host is connected.
func Listen(port io.ReadWriter) *Listener {
	l := &Listener{port: port, sessions: make(chan *portConn)}
	go l.read()
	return l
}

// Accept returns the next session's byte stream, or the port's error. The session before it has ended by then.
func (l *Listener) Accept() (net.Conn, error) {
	c, ok := <-l.sessions
	if !ok {
		return nil, io.EOF
	}
	return c, nil
}

// read passes what the port brings to the current session and watches it for a hello.
func (l *Listener) read() {
	defer close(l.sessions)
	defer func() {
		l.scanning.Lock()
		defer l.scanning.Unlock()
		if l.current != nil {
			l.current.Close()
		}
	}()
	buf := make([]byte, 64<<10)
	for {
		n, err := l.port.Read(buf[helloSize:])
		if err != nil {
			return
		}
		if l.scan(buf, n) != nil {
			return
		}
	}
}

// scan looks at n new bytes at buf[helloSize:]; the tail of those before is put in front of them.
func (l *Listener) scan(buf []byte, n int) error {
	l.scanning.Lock()
	defer l.scanning.Unlock()
	start := helloSize - len(l.tail)
	copy(buf[start:], l.tail)
	data, passed := buf[start:helloSize+n], l.passed
	for {
		at, whole := l.findHello(data)
		if at > passed {
			l.deliver(data[passed:at])
		}
		passed = max(passed-at, 0)
		data = data[at:]
		if !whole {
			break
		}
		var nonce [nonceSize]byte
		copy(nonce[:], data[helloSize-nonceSize:helloSize])
		data, passed = data[helloSize:], 0
		if err := l.begin(nonce); err != nil {
			return err
		}
	}
	l.tail, l.passed = append(l.tail[:0], data...), passed
	if passed < len(data) && len(data) <= sureSize {
		tail := string(data)
		time.AfterFunc(patience, func() { l.pass(tail) })
	}
	return nil
}

// pass gives the session the bytes held back, if they are still the ones that were when the wait began: they are no
// hello, or a hello cut in two, which the session then does not survive anyway. Once bytes of the token have
// matched there is no doubt left, and no session is shown a part of it.
func (l *Listener) pass(tail string) {
	l.scanning.Lock()
	defer l.scanning.Unlock()
	if string(l.tail) == tail && l.passed < len(tail) {
		l.deliver(l.tail[l.passed:])
		l.passed = len(tail)
	}
}

// deliver hands bytes to the session. The lock is held.
func (l *Listener) deliver(p []byte) {
	if l.current != nil {
		l.current.w.Write(p) // a session that has been closed takes none
	}
}

// begin ends the session there is and starts another. The lock is held.
func (l *Listener) begin(nonce [nonceSize]byte) error {
	if l.current != nil {
		l.current.Close()
	}
	l.current = newPortConn(l)
	if err := l.answer(nonce); err != nil {
		return err
	}
	l.sessions <- l.current
	return nil
}

// findHello returns where in data the next hello begins and whether all of it is there. Without one, it returns
// len(data); with what may be the beginning of one at data's end, its place and false.
func (l *Listener) findHello(data []byte) (at int, whole bool) {
	for at < len(data) {
		i := bytes.IndexByte(data[at:], magic[0])
		if i < 0 {
			return len(data), false
		}
		at += i
		rest := data[at:]
		if l.matchesHello(rest) {
			if len(rest) < helloSize {
				return at, false
			}
			if !l.known {
				l.known = true
				copy(l.token[:], rest[12:])
			}
			return at, true
		}
		at++
	}
	return at, false
}

// matchesHello reports whether data begins with a hello, as far as data goes.
func (l *Listener) matchesHello(data []byte) bool {
	if !prefixes(data, magic[:]) {
		return false
	}
	return !l.known || len(data) <= 12 || prefixes(data[12:], l.token[:])
}

// prefixes reports whether a and b agree as far as the shorter one goes.
func prefixes(a, b []byte) bool {
	n := min(len(a), len(b))
	return bytes.Equal(a[:n], b[:n])
}

func (l *Listener) answer(nonce [nonceSize]byte) error {
	out := make([]byte, 0, answerSize)
	out = append(out, magic[:]...)
	out = binary.BigEndian.AppendUint32(out, api.ProtocolVersion)
	out = append(out, nonce[:]...)
	l.writing.Lock()
	defer l.writing.Unlock()
	_, err := l.port.Write(out)
	return err
}

// portConn is one session's view of the port.
type portConn struct {
	l      *Listener
	r      *io.PipeReader
	w      *io.PipeWriter
	closed chan struct{}
	once   sync.Once
}

func newPortConn(l *Listener) *portConn {
	r, w := io.Pipe()
	return &portConn{l: l, r: r, w: w, closed: make(chan struct{})}
}

func (c *portConn) Read(p []byte) (int, error) { return c.r.Read(p) }

func (c *portConn) Write(p []byte) (int, error) {
	c.l.writing.Lock()
	defer c.l.writing.Unlock()
	select {
	case <-c.closed:
		return 0, net.ErrClosed
	default:
		return c.l.port.Write(p)
	}
}

func (c *portConn) Close() error {
	c.once.Do(func() {
		close(c.closed)
		c.r.CloseWithError(net.ErrClosed)
		c.w.CloseWithError(io.EOF)
	})
	return nil
}

func (*portConn) LocalAddr() net.Addr              { return portAddr{} }
func (*portConn) RemoteAddr() net.Addr             { return portAddr{} }
func (*portConn) SetDeadline(time.Time) error      { return nil }
func (*portConn) SetReadDeadline(time.Time) error  { return nil }
func (*portConn) SetWriteDeadline(time.Time) error { return nil }

type portAddr struct{}

func (portAddr) Network() string { return "port" }
func (portAddr) String() string  { return api.AgentPortName }

// Call is one call as its handler sees it. The handler must Finish, Fail or Reply exactly once; a handler of a streaming
// method uses the stream after its Reply. The stream is closed when the handler returns.
type Call struct {
	Method string
	// Context ends when the session does.
	Context context.Context
	Stream  *Stream

	request request
}

// Params decodes the call's parameters.
func (c *Call) Params(into any) error {
	if err := c.request.decode(into); err != nil {
		return api.Errorf(api.CodeInvalid, "%s: %w", c.Method, err)
	}
	return nil
}

// Reply answers with result, which may be nil; more is to come.
func (c *Call) Reply(result any) error {
	b, err := answer(result)
	if err != nil {
		return c.Fail(err)
	}
	_, err = c.Stream.Write(b)
	return err
}

// Finish answers with result, which may be nil; that is all.
func (c *Call) Finish(result any) error {
	b, err := answer(result)
	if err != nil {
		return c.Fail(err)
	}
	return c.Stream.Last(b)
}

// answer is the frame of a response with a result.
func answer(result any) ([]byte, error) {
	var resp response
	if result != nil {
		body, err := json.Marshal(result)
		if err != nil {
			return nil, err
		}
		resp.Result = body
	}
	return frame(resp)
}

// Fail answers with an error; one that is not an *api.Error goes as CodeInternal.
func (c *Call) Fail(err error) error {
	var e *api.Error
	if !errors.As(err, &e) {
		e = api.Errorf(api.CodeInternal, "%w", err)
	}
	b, err := frame(response{Error: e})
	if err != nil {
		return err
	}
	return c.Stream.Last(b)
}

// Serve runs the calls of one session, each in a goroutine of its own, until the session ends and all of its
// handlers have returned.
func Serve(conn net.Conn, handle func(*Call)) error {
	port := &gatherer{Conn: conn}
	mux, err := yamux.Server(port, muxConfig())
	if err != nil {
		return err
	}
	defer mux.Close()
	ctx, cancel := context.WithCancel(context.Background())
	var calls sync.WaitGroup
	defer calls.Wait()
	defer cancel()
	for {
		s, err := mux.AcceptStream()
		if err != nil {
			return err
		}
		calls.Add(1)
		go func() {
			MakeRoom()
			defer calls.Done()
			defer s.Close()
			req, err := readRequest(s)
			if err != nil {
				return
			}
			handle(&Call{Method: req.method, Context: ctx, Stream: &Stream{s, mux, port}, request: req})
		}()
	}
}
