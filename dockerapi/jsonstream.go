package dockerapi

import (
	"encoding/json"
	"fmt"
	"net/http"
	"sync"

	"github.com/moby/moby/api/types/jsonstream"
)

// jsonStream answers with JSON documents, one a line, each sent at once.
type jsonStream struct {
	c           *call
	contentType string
	prefix      string // before each document: the RS of application/json-seq

	mu sync.Mutex // a Backend may report progress from several goroutines
}

// open sends the headers, for clients that wait for them before anything happens.
func (s *jsonStream) open() {
	s.c.w.Header().Set("Content-Type", s.contentType)
	s.c.w.WriteHeader(http.StatusOK)
	s.c.w.Flush()
}

func (s *jsonStream) send(v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.c.w.status == 0 {
		s.c.w.Header().Set("Content-Type", s.contentType)
	}
	if _, err := s.c.w.Write([]byte(s.prefix + string(text) + "\n")); err != nil {
		return fmt.Errorf("send: %w", err)
	}
	s.c.w.Flush()
	return nil
}

// progressMessage adds the error as clients before 1.52 read it.
type progressMessage struct {
	jsonstream.Message
	LegacyError string `json:"error,omitempty"`
}

// progress runs work that reports its progress to the client. An error before the first message is an ordinary
// one; later it can only be a message itself.
func (c *call) progress(work func(Progress) error) error {
	s := &jsonStream{c: c, contentType: "application/json"}
	send := func(m jsonstream.Message) {
		p := progressMessage{Message: m}
		if m.Error != nil && !c.version.atLeast(52) {
			p.LegacyError = m.Error.Message
		}
		_ = s.send(p) // the client's hang-up ends the request's context too
	}
	err := work(send)
	if c.w.status == 0 {
		if err == nil {
			s.open()
		}
		return err
	}
	if err != nil && !clientGone(c.r.Context(), err) {
		c.log.Error("request failed", "method", c.r.Method, "path", c.r.URL.Path, "error", err)
		send(jsonstream.Message{Error: &jsonstream.Error{Message: ErrorText(err)}})
	}
	return nil
}
