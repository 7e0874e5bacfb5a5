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
	"github.com/moby/moby/api/types/container"

	"github.com/cradlevm/cradle/api"
	"github.com/cradlevm/cradle/cmd/cradle/front"
	"github.com/cradlevm/cradle/dockerapi"
	"github.com/cradlevm/cradle/node"
)

// addExecHandler serves package front: an exec from its creation to its exit code in one request.
func addExecHandler(mux *http.ServeMux, n *node.Node) {
	mux.HandleFunc("POST /cradle/v1/containers/{name}/exec", func(w http.ResponseWriter, r *http.Request) {
		if err := execOnce(n, w, r); err != nil {
			dockerapi.WriteError(w, err)
		}
	})
}

// execOnce answers an exec. An error means that nothing has been answered and no process been started.
func execOnce(n *node.Node, w http.ResponseWriter, r *http.Request) error {
	words, err := io.ReadAll(http.MaxBytesReader(w, r.Body, api.MaxMessage))
	if err != nil {
		return fmt.Errorf("read the command: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	id, err := n.ExecCreate(r.Context(), r.PathValue("name"), container.ExecCreateRequest{
		AttachStdout: true, AttachStderr: true, Cmd: strings.Split(string(words), "\x00"),
	})
	if err != nil {
		return err
	}
	reply := &execReply{w: w}
	defer reply.end() // the process may outlive its client, and so does the writing of its output
	stdout, stderr := execStream{reply, front.Stdout}, execStream{reply, front.Stderr}
	begun := false
	begin := func() (dockerapi.Streams, error) { // the answer's head goes with the first record
		begun = true
		w.Header().Set("Content-Type", "application/octet-stream")
		w.Header().Set("Transfer-Encoding", "identity") // bytes until the end of the connection, not chunks
		return dockerapi.Streams{Stdout: stdout, Stderr: stderr}, nil
	}
	err = n.ExecStart(r.Context(), id, container.ExecStartRequest{}, begin)
	if err != nil && !begun {
		if !errdefs.IsInvalidArgument(err) && !errdefs.IsPermissionDenied(err) {
			return err
		}
		begin()
		fmt.Fprintf(stdout, "%v\r\n", err) // where docker says it
	}
	if state, err := n.ExecInspect(r.Context(), id); err == nil && state.ExitCode != nil {
		execStream{reply, front.Exit}.Write([]byte{byte(*state.ExitCode)})
	}
	return nil
}

// execReply is the answer's body.
type execReply struct {
	mu sync.Mutex
	w  http.ResponseWriter // nil when the answer has ended
}

func (r *execReply) end() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.w = nil
}

// execStream writes records of one stream.
type execStream struct {
	reply  *execReply
	stream byte
}

func (s execStream) Write(p []byte) (int, error) {
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
