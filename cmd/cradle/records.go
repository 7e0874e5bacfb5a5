package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"

	"github.com/containerd/errdefs"

	"github.com/cradlevm/cradle/api"
	"github.com/cradlevm/cradle/cmd/cradle/front"
)

// readWords reads the body of a request of package front's: words, separated by zero bytes.
func readWords(w http.ResponseWriter, r *http.Request) ([]string, error) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, api.MaxMessage))
	if err != nil {
		return nil, fmt.Errorf("read the command: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	return strings.Split(string(body), "\x00"), nil
}

// recordReply is an answer whose body is records, of package front's.
type recordReply struct {
	mu sync.Mutex
	w  http.ResponseWriter // nil when the answer has ended
}

// setHead says what the body is.
func (r *recordReply) setHead() {
	r.w.Header().Set("Content-Type", "application/octet-stream")
	r.w.Header().Set("Transfer-Encoding", "identity") // bytes until the end of the connection, not chunks
}

func (r *recordReply) end() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.w = nil
}

// recordStream writes records of one stream.
type recordStream struct {
	reply  *recordReply
	stream byte
}

func (s recordStream) Write(p []byte) (int, error) {
	if len(p) > front.MaxRecord {
		return 0, errors.New("a record that is too long")
	}
	s.reply.mu.Lock()
	defer s.reply.mu.Unlock()
	if s.reply.w == nil {
		return 0, net.ErrClosed
	}
	record := binary.BigEndian.AppendUint32([]byte{s.stream, 0, 0, 0}, uint32(len(p)))
	if _, err := s.reply.w.Write(append(record, p...)); err != nil {
		return 0, err
	}
	return len(p), http.NewResponseController(s.reply.w).Flush()
}
