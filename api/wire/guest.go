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

	known bool // token is set
	token Token
}

// Listen reads the port until it fails. Reads of the port must block while no host is connected.
func Listen(port io.ReadWriter) *Listener {
	l := &Listener{port: port, sessions: make(chan *portConn)}
	go l.scan()
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

// scan passes what the port brings to the current session and watches it for a hello.
func (l *Listener) scan() {
	defer close(l.sessions)
	var current *portConn
	defer func() {
		if current != nil {
			current.Close()
		}
	}()
	buf := make([]byte, 64<<10)
	held := 0 // bytes at the start of buf that may be the beginning of a hello
	for {
		n, err := l.port.Read(buf[held:])
		if err != nil {
			return
		}
		data := buf[:held+n]
		for len(data) > 0 {
			at, whole := l.findHello(data)
			if at > 0 {
				if current != nil {
					current.deliver(data[:at])
				}
				data = data[at:]
			}
			if len(data) == 0 || !whole {
				break
			}
			var nonce [nonceSize]byte
			copy(nonce[:], data[helloSize-nonceSize:helloSize])
			data = data[helloSize:]
			if current != nil {
				current.Close()
			}
			current = newPortConn(l)
			if l.answer(nonce) != nil {
				return
			}
			l.sessions <- current
		}
		held = copy(buf, data)
	}
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

// deliver hands bytes to the session; a session that has been closed takes none.
func (c *portConn) deliver(p []byte) { c.w.Write(p) }

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

// Call is one call as its handler sees it. The handler must Reply or Fail exactly once; a handler of a streaming
// method then uses the stream. The stream is closed when the handler returns.
type Call struct {
	Method string
	// Context ends when the session does.
	Context context.Context
	Stream  *Stream

	params json.RawMessage
}

// Params decodes the call's parameters.
func (c *Call) Params(into any) error {
	if len(c.params) == 0 {
		return nil
	}
	if err := json.Unmarshal(c.params, into); err != nil {
		return api.Errorf(api.CodeInvalid, "%s: %w", c.Method, err)
	}
	return nil
}

// Reply answers with result, which may be nil.
func (c *Call) Reply(result any) error {
	var resp response
	if result != nil {
		body, err := json.Marshal(result)
		if err != nil {
			return c.Fail(err)
		}
		resp.Result = body
	}
	return writeFrame(c.Stream, resp)
}

// Fail answers with an error; one that is not an *api.Error goes as CodeInternal.
func (c *Call) Fail(err error) error {
	var e *api.Error
	if !errors.As(err, &e) {
		e = api.Errorf(api.CodeInternal, "%w", err)
	}
	return writeFrame(c.Stream, response{Error: e})
}

// Serve runs the calls of one session, each in a goroutine of its own, until the session ends and all of its
// handlers have returned.
func Serve(conn net.Conn, handle func(*Call)) error {
	mux, err := yamux.Server(conn, muxConfig())
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
			defer calls.Done()
			defer s.Close()
			var req request
			if readFrame(s, &req) != nil {
				return
			}
			handle(&Call{Method: req.Method, Context: ctx, Stream: &Stream{s}, params: req.Params})
		}()
	}
}
