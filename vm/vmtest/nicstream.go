package vmtest

import (
	"bufio"
	"encoding/binary"
	"io"
	"net"
	"testing"
	"time"

	"github.com/cradlevm/cradle/vm/vmtest/guestapi"
)

// stream is the other end of an interface that is a stream (vm.Streamer).
type stream struct {
	conn net.Conn
	from *bufio.Reader
}

func newStream(conn net.Conn) *stream { return &stream{conn, bufio.NewReader(conn)} }

func (s *stream) receive(t *testing.T) []byte {
	t.Helper()
	s.conn.SetReadDeadline(time.Now().Add(limit))
	for {
		var length [4]byte
		if _, err := io.ReadFull(s.from, length[:]); err != nil {
			t.Fatalf("no frame from the guest: %v", err)
		}
		b := make([]byte, min(binary.BigEndian.Uint32(length[:]), 1<<16))
		if _, err := io.ReadFull(s.from, b); err != nil {
			t.Fatalf("half a frame from the guest: %v", err)
		}
		if len(b) > 14 && binary.BigEndian.Uint16(b[12:]) == guestapi.FrameType {
			return b
		}
	}
}

func (s *stream) send(b []byte) error {
	_, err := s.conn.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...))
	return err
}
