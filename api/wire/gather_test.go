package wire

import (
	"bytes"
	"context"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/cradlevm/cradle/api"
)

// writes notes the sizes of the writes on a connection, and what was written.
type writes struct {
	net.Conn
	mu    sync.Mutex
	sizes []int
	all   bytes.Buffer
}

func (w *writes) Write(p []byte) (int, error) {
	w.mu.Lock()
	w.sizes = append(w.sizes, len(p))
	w.all.Write(p)
	w.mu.Unlock()
	if w.Conn == nil {
		return len(p), nil
	}
	return w.Conn.Write(p)
}

func (w *writes) count() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.sizes)
}

func TestGathererWritesTheSameBytes(t *testing.T) {
	header := func(kind, flags byte, length int) []byte {
		return []byte{0, kind, 0, flags, 0, 0, 0, 1, byte(length >> 24), byte(length >> 16), byte(length >> 8), byte(length)}
	}
	big := bytes.Repeat([]byte{7}, gatherLimit+1)
	const last = 8 // the piece that is the header of a stream's last word
	pieces := [][]byte{
		header(muxWindowUpdate, muxFlagSYN, 0), header(muxData, 0, 5), []byte("hello"), // opened and asked: one write
		header(muxData, 0, muxHeaderSize), header(muxWindowUpdate, muxFlagSYN, 0), // a body that looks like a header: one
		header(muxWindowUpdate, muxFlagACK, 0), // a stream has been seen: with the answer
		header(muxData, 0, 5), []byte("hello"),
		header(muxData, 0, 6), []byte("answer"), // the last word, which has been announced: with the stream's end
		header(muxWindowUpdate, 4, 0),
		header(muxData, 4, 0), // an end alone: one, at once
		header(muxData, 0, len(big)), big,
		header(muxWindowUpdate, muxFlagSYN, 0), header(muxWindowUpdate, 0, 99),
	}
	// What is announced is the frame of that size that comes next; a smaller one is a part of it, and goes at once.
	if g := (&gatherer{}); true {
		g.expectEnd(3, 6)
		if g.endOf(3, 5) || g.endOf(3, 6) {
			t.Error("a part is taken for the end")
		}
	}
	var w writes
	g := &gatherer{Conn: &w}
	for i, p := range pieces {
		if i == last {
			g.expectEnd(1, 6)
		}
		if n, err := g.Write(slices.Clone(p)); n != len(p) || err != nil {
			t.Fatalf("wrote %d of %d bytes, %v", n, len(p), err)
		}
	}
	if want := bytes.Join(pieces, nil); !bytes.Equal(w.all.Bytes(), want) {
		t.Error("the bytes were changed")
	}
	if want := []int{29, 24, 29, 30, 12, 12, len(big), 24}; !slices.Equal(w.sizes, want) {
		t.Errorf("writes of %v bytes, want %v", w.sizes, want)
	}
}

// TestACallIsOneWrite counts what wakes an emulated guest, and what it has to do in order to answer.
func TestACallIsOneWrite(t *testing.T) {
	a, b := net.Pipe()
	host, guest := &writes{Conn: a}, &writes{Conn: b}
	asked := make(chan int, 1)
	served := make(chan error, 1)
	go func() {
		hello := make([]byte, helloSize)
		if _, err := io.ReadFull(b, hello); err != nil {
			served <- err
			return
		}
		answer := append(append(append([]byte{}, magic[:]...), 0, 0, 0, api.ProtocolVersion), hello[len(hello)-nonceSize:]...)
		if _, err := b.Write(answer); err != nil {
			served <- err
			return
		}
		served <- Serve(guest, func(c *Call) {
			asked <- host.count()
			_ = c.Finish(nil)
		})
	}()
	c, err := Dial(context.Background(), host, testToken)
	if err != nil {
		t.Fatal(err)
	}
	before := host.count()
	if err := c.Call(context.Background(), "ping", map[string]string{"a": strings.Repeat("b", 1000)}, nil); err != nil {
		t.Fatal(err)
	}
	if got := <-asked - before; got != 1 {
		t.Errorf("the request took %d writes", got)
	}
	if got := host.count() - before; got != 1 {
		t.Errorf("the call took %d writes of the host", got)
	}
	if got := guest.count(); got != 1 {
		t.Errorf("the answer took %d writes", got)
	}
	c.Close()
	<-served
}
