package wire

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cradlevm/cradle/api"
)

var testToken = Token{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}

// queue is a port: a pair of byte queues that outlive whoever talks through them, and deliver in odd pieces.
type queue struct {
	toGuest, toHost *bytePipe
}

type bytePipe struct {
	mu     sync.Mutex
	more   *sync.Cond
	data   []byte
	chunk  func(n int) int // how much of n bytes one read gets
	closed bool
	reader int // who may read: the latest one to have said so
}

func newBytePipe(chunk func(int) int) *bytePipe {
	p := &bytePipe{chunk: chunk}
	p.more = sync.NewCond(&p.mu)
	return p
}

func (p *bytePipe) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(p.data) > 1<<20 && !p.closed {
		p.more.Wait()
	}
	if p.closed {
		return 0, io.ErrClosedPipe
	}
	p.data = append(p.data, b...)
	p.more.Broadcast()
	return len(b), nil
}

func (p *bytePipe) Read(b []byte) (int, error) { return p.readAs(0, b) }

// takeOver makes all readers before the caller see the end.
func (p *bytePipe) takeOver() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.reader++
	p.more.Broadcast()
	return p.reader
}

func (p *bytePipe) readAs(reader int, b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(p.data) == 0 && !p.closed && p.reader == reader {
		p.more.Wait()
	}
	if len(p.data) == 0 || p.reader != reader {
		return 0, io.EOF
	}
	n := copy(b, p.data[:min(len(p.data), max(1, p.chunk(len(p.data))))])
	p.data = p.data[n:]
	p.more.Broadcast()
	return n, nil
}

func (p *bytePipe) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	p.more.Broadcast()
}

func newQueue(chunk func(int) int) *queue {
	return &queue{newBytePipe(chunk), newBytePipe(chunk)}
}

func whole(n int) int { return n }

func single(int) int { return 1 }

func random(n int) int { return 1 + rand.IntN(n) }

type guestEnd struct{ q *queue }

func (g guestEnd) Read(b []byte) (int, error)  { return g.q.toGuest.Read(b) }
func (g guestEnd) Write(b []byte) (int, error) { return g.q.toHost.Write(b) }

// hostEnd is one host process's connection to the port; closing it leaves the queues alone.
type hostEnd struct {
	net.Conn // the other end of a copier's pipe
}

// connect gives the host a connection that net.Conn's deadlines work on.
func (q *queue) connect() net.Conn {
	a, b := net.Pipe()
	me := q.toHost.takeOver()
	go func() {
		buf := make([]byte, 4096)
		for {
			n, err := b.Read(buf)
			if n > 0 {
				q.toGuest.Write(buf[:n])
			}
			if err != nil {
				return
			}
		}
	}()
	go func() {
		buf := make([]byte, 4096)
		for {
			n, err := q.toHost.readAs(me, buf)
			if err != nil {
				b.Close()
				return
			}
			if _, err := b.Write(buf[:n]); err != nil {
				return // these bytes are lost, as in a port that loses its host
			}
		}
	}()
	return hostEnd{a}
}

// testAgent answers a few methods of its own.
func testAgent(c *Call) {
	switch c.Method {
	case "echo":
		var v any
		if err := c.Params(&v); err != nil {
			c.Fail(err)
			return
		}
		c.Reply(v)
	case "fail":
		c.Fail(api.Errorf(api.CodeNotFound, "%s", strings.Repeat("x", 10000)))
	case "bytes": // gives back what it gets until the host half-closes, then the digest
		c.Reply(nil)
		h := sha256.New()
		if _, err := io.Copy(io.MultiWriter(h, c.Stream), c.Stream); err == nil {
			c.Stream.Write(h.Sum(nil))
		}
	case "sink": // reads nothing until the session ends
		c.Reply(nil)
		<-c.Context.Done()
	case "hang":
		<-c.Context.Done()
	}
}

func serve(t *testing.T, q *queue) {
	l := Listen(guestEnd{q})
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go Serve(conn, testAgent)
		}
	}()
	t.Cleanup(func() { q.toGuest.close(); q.toHost.close() })
}

func dial(t *testing.T, q *queue) *Client {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	c, err := Dial(ctx, q.connect(), testToken)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func echo(t *testing.T, c *Client, want string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	var got string
	if err := c.Call(ctx, "echo", want, &got); err != nil || got != want {
		t.Fatalf("%q, %v; want %q", got, err, want)
	}
}

func TestCallsInAnyPieces(t *testing.T) {
	for name, chunk := range map[string]func(int) int{"whole": whole, "single": single, "random": random} {
		t.Run(name, func(t *testing.T) {
			q := newQueue(chunk)
			serve(t, q)
			c := dial(t, q)
			echo(t, c, "hello")
			echo(t, c, strings.Repeat("long ", 20000))
			err := c.Call(context.Background(), "fail", nil, nil)
			var e *api.Error
			if !errors.As(err, &e) || e.Code != api.CodeNotFound || len(e.Message) != maxErrorText {
				t.Errorf("%.80v", err)
			}
		})
	}
}

func TestConcurrentCalls(t *testing.T) {
	q := newQueue(random)
	serve(t, q)
	c := dial(t, q)
	var wg sync.WaitGroup
	for i := range 100 {
		wg.Go(func() { echo(t, c, strings.Repeat(fmt.Sprint(i), 1000)) })
	}
	wg.Wait()
	for n := 0; n < 100 && c.mux.NumStreams() > 0; n++ {
		time.Sleep(10 * time.Millisecond)
	}
	if n := c.mux.NumStreams(); n != 0 {
		t.Errorf("%d streams left", n)
	}
}

// TestResync drops sessions at every point of a conversation; the next one must always work.
func TestResync(t *testing.T) {
	q := newQueue(random)
	serve(t, q)
	for cut := range 60 {
		conn := q.connect()
		c, err := Dial(context.Background(), conn, testToken)
		if err != nil {
			t.Fatal(err)
		}
		go c.Call(context.Background(), "echo", strings.Repeat("x", 100*cut), nil)
		time.Sleep(time.Duration(rand.IntN(500)) * time.Microsecond)
		conn.Close() // mid-message, as a killed host process leaves it
		if cut%2 == 0 {
			// The old process may have got half of a message out.
			q.toGuest.Write([]byte{0, 0, 0, 1, 0, 0}[:cut%6])
		}
	}
	echo(t, dial(t, q), "still here")
}

// TestStaleBytes begins a session on queues full of an older conversation's rest, parts of handshakes included.
func TestStaleBytes(t *testing.T) {
	q := newQueue(random)
	hello := append(append(append([]byte{}, magic[:]...), 0, 0, 0, 1), testToken[:]...)
	for i := range len(hello) {
		q.toGuest.Write(hello[:i])
		q.toHost.Write(append(append([]byte{}, magic[:i%8]...), make([]byte, i)...))
	}
	answer := append(append(append([]byte{}, magic[:]...), 0, 0, 0, 1), make([]byte, nonceSize)...)
	q.toHost.Write(answer)
	// What came before must not have taught the agent a token: it could not be the first whole hello.
	q.toGuest.Write(make([]byte, helloSize))
	l := Listen(guestEnd{q})
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go Serve(conn, testAgent)
		}
	}()
	defer q.toGuest.close()
	l.scanning.Lock()
	l.known, l.token = true, testToken
	l.scanning.Unlock()
	echo(t, dial(t, q), "hello")
}

func TestAnotherTokenIsNotHeard(t *testing.T) {
	q := newQueue(whole)
	serve(t, q)
	c := dial(t, q)
	echo(t, c, "one")
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	// Its hello is garbage to the session there is, which therefore ends; but it gets none itself.
	if _, err := Dial(ctx, q.connect(), Token{9}); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("%v", err)
	}
	echo(t, dial(t, q), "two")
}

// TestSetToken: a session goes on when the token changes, and only the new one opens others.
func TestSetToken(t *testing.T) {
	q := newQueue(whole)
	l := Listen(guestEnd{q})
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go Serve(conn, testAgent)
		}
	}()
	t.Cleanup(func() { q.toGuest.close(); q.toHost.close() })
	c := dial(t, q)
	echo(t, c, "one")
	l.SetToken(Token{9})
	echo(t, c, "two")
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	if _, err := Dial(ctx, q.connect(), testToken); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("the token that was opens a session: %v", err)
	}
	ctx, cancel = context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	c, err := Dial(ctx, q.connect(), Token{9})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	echo(t, c, "three")
}

// TestLastByteIsNotHeldBack: a message that ends like a hello begins must reach the session without another byte.
func TestLastByteIsNotHeldBack(t *testing.T) {
	q := newQueue(whole)
	serve(t, q)
	c := dial(t, q)
	s, err := c.Stream(context.Background(), "bytes", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	for n := 1; n <= len(magic); n++ {
		if _, err := s.Write(magic[:n]); err != nil {
			t.Fatal(err)
		}
		s.SetReadDeadline(time.Now().Add(5 * time.Second))
		got := make([]byte, n)
		if _, err := io.ReadFull(s, got); err != nil || !bytes.Equal(got, magic[:n]) {
			t.Fatalf("%d bytes: %x, %v", n, got, err)
		}
	}
}

func TestHalfCloseAndBackpressure(t *testing.T) {
	q := newQueue(random)
	serve(t, q)
	c := dial(t, q)
	s, err := c.Stream(context.Background(), "bytes", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	const size = 5 << 20
	data := make([]byte, size)
	for i := range data {
		data[i] = byte(rand.Uint32())
	}
	go func() {
		s.Write(data)
		s.CloseWrite()
	}()
	got, err := io.ReadAll(s)
	if err != nil || len(got) != size+sha256.Size {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	want := sha256.Sum256(data)
	if !bytes.Equal(got[:size], data) || !bytes.Equal(got[size:], want[:]) {
		t.Error("bytes differ")
	}

	// A stream whose reader sleeps takes a window's worth and no more, and holds up nobody else.
	sink, err := c.Stream(context.Background(), "sink", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	sink.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
	n, err := sink.Write(make([]byte, 4<<20))
	if err == nil || n > 1<<20 {
		t.Errorf("%d bytes went into a stream that nobody reads: %v", n, err)
	}
	echo(t, c, "meanwhile")
}

// TestEndOfSessionIsNotEOF: a reader must be able to tell the end of the data from the loss of the session.
func TestEndOfSessionIsNotEOF(t *testing.T) {
	q := newQueue(whole)
	serve(t, q)
	c := dial(t, q)
	s, err := c.Stream(context.Background(), "sink", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	dial(t, q) // takes over: the agent drops the first session
	time.AfterFunc(100*time.Millisecond, func() { c.Close() })
	if _, err := s.Read(make([]byte, 1)); !errors.Is(err, ErrSession) {
		t.Errorf("%v", err)
	}
	if err := c.Call(context.Background(), "echo", nil, nil); !errors.Is(err, ErrSession) {
		t.Errorf("%v", err)
	}
}

// TestContextEndsACall although the guest does not answer, or does not even read.
func TestContextEndsACall(t *testing.T) {
	q := newQueue(whole)
	serve(t, q)
	c := dial(t, q)
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if err := c.Call(ctx, "hang", nil, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
	a, b := net.Pipe() // nobody reads b after the handshake
	go func() {
		hello := make([]byte, helloSize)
		io.ReadFull(b, hello)
		out := binary.BigEndian.AppendUint32(append([]byte{}, magic[:]...), api.ProtocolVersion)
		b.Write(append(out, hello[helloSize-nonceSize:]...))
	}()
	c, err := Dial(context.Background(), a, testToken)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel = context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if err := c.Call(ctx, "echo", "x", nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
	b.Close()
}

func TestVersion(t *testing.T) {
	a, b := net.Pipe()
	go func() {
		hello := make([]byte, helloSize)
		io.ReadFull(b, hello)
		out := binary.BigEndian.AppendUint32(append([]byte{}, magic[:]...), 99)
		b.Write(append(out, hello[helloSize-nonceSize:]...))
	}()
	if _, err := Dial(context.Background(), a, testToken); !errors.Is(err, ErrVersion) {
		t.Errorf("%v", err)
	}
}

func TestGuestMayNotCall(t *testing.T) {
	q := newQueue(whole)
	l := Listen(guestEnd{q})
	defer q.toGuest.close()
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		// A stream the guest opens: version 0, window update, SYN, stream 2.
		conn.Write([]byte{0, 1, 0, 1, 0, 0, 0, 2, 0, 0, 0, 0})
	}()
	c := dial(t, q)
	select {
	case <-c.Done():
	case <-time.After(5 * time.Second):
		t.Error("the session goes on")
	}
}
