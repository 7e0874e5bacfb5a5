package vmtest

import (
	"crypto/rand"
	"crypto/sha256"
	"io"
	"net"
	"testing"
	"time"

	"github.com/cradlevm/cradle/api"
	"github.com/cradlevm/cradle/api/wire"
	"github.com/cradlevm/cradle/vm/vmtest/guestapi"
)

// testEcho sends 64 MiB through the guest and back.
func testEcho(t *testing.T, client *wire.Client) {
	const size = 64 << 20
	s, err := client.Stream(within(t), guestapi.MethodEcho, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	s.SetDeadline(time.Now().Add(limit))
	sent, back := sha256.New(), sha256.New()
	began := time.Now()
	written := make(chan error, 1)
	go func() {
		_, err := io.CopyN(io.MultiWriter(sent, s), rand.Reader, size)
		s.CloseWrite()
		written <- err
	}()
	n, err := io.Copy(back, s)
	if err != nil || n != size {
		t.Errorf("%d of %d bytes came back: %v", n, size, err)
	}
	if err := <-written; err != nil {
		t.Error(err)
	}
	if string(sent.Sum(nil)) != string(back.Sum(nil)) {
		t.Error("the bytes came back changed")
	}
	took := time.Since(began)
	t.Logf("%d MiB there and back in %v: %.0f MiB/s each way", size>>20, took.Round(time.Millisecond), float64(size>>20)/took.Seconds())
}

// testSecondDial checks that the newest connection to the port is the one that counts.
func testSecondDial(t *testing.T, m *machine, first *wire.Client) {
	ping(t, first)
	second := *m
	second.t = t
	client := second.session()
	select {
	case <-first.Done():
	case <-time.After(limit):
		t.Fatal("the first connection lives on")
	}
	ping(t, client)
}

// testReconnect drops connections in the middle of a message, as a daemon that dies does, and takes the guest
// over with the same token.
func testReconnect(t *testing.T, m *machine) {
	for i := range 5 {
		ctx := within(t)
		conn, err := m.Dial(ctx, api.AgentPort)
		if err != nil {
			t.Fatal(err)
		}
		client, err := wire.Dial(ctx, conn, m.token)
		if err != nil {
			t.Fatal(err)
		}
		s, err := client.Stream(ctx, guestapi.MethodEcho, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		// Both directions are full of an unfinished conversation when the connection goes.
		cut := make(chan struct{})
		go func() {
			defer close(cut)
			buf := make([]byte, 10000*(i+1))
			s.Write(buf)
			io.ReadFull(s, buf[:100+i])
		}()
		select {
		case <-cut:
		case <-time.After(limit):
			t.Fatal("echo hangs")
		}
		go s.Write(make([]byte, 1<<20))
		drop(conn)
	}
	fresh := *m
	fresh.t = t
	ping(t, fresh.session())
}

// drop closes a connection under its session, without a goodbye.
func drop(conn net.Conn) { conn.Close() }
