package main

import (
	"fmt"
	"net/http"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"

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
	words, err := readWords(w, r)
	if err != nil {
		return err
	}
	id, err := n.ExecCreate(r.Context(), r.PathValue("name"), container.ExecCreateRequest{
		AttachStdout: true, AttachStderr: true, Cmd: words,
	})
	if err != nil {
		return err
	}
	reply := &recordReply{w: w}
	defer reply.end() // the process may outlive its client, and so does the writing of its output
	stdout, stderr := recordStream{reply, front.Stdout}, recordStream{reply, front.Stderr}
	begun := false
	begin := func() (dockerapi.Streams, error) { // the answer's head goes with the first record
		begun = true
		reply.setHead()
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
		recordStream{reply, front.Exit}.Write([]byte{byte(*state.ExitCode)})
	}
	return nil
}
