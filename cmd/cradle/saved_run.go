package main

import (
	"encoding/json"
	"net/http"
	"strconv"

	"github.com/containerd/errdefs"

	"github.com/cradlevm/cradle/dockerapi"
	"github.com/cradlevm/cradle/node"
)

// addSavedHandlers serves what there is about containers that are saved while they run.
func addSavedHandlers(mux *http.ServeMux, n *node.Node) {
	mux.HandleFunc("POST /cradle/v1/containers/{name}/clone", func(w http.ResponseWriter, r *http.Request) {
		count, err := strconv.Atoi(r.URL.Query().Get("count"))
		if err != nil && r.URL.Query().Has("count") {
			dockerapi.WriteError(w, errdefs.ErrInvalidArgument.WithMessage("invalid count of clones"))
			return
		}
		if !r.URL.Query().Has("count") {
			count = 1
		}
		report, err := n.ContainerClone(r.Context(), r.PathValue("name"), node.CloneOptions{Count: count, Name: r.URL.Query().Get("name")})
		if err != nil {
			dockerapi.WriteError(w, err)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(report)
	})
	act := func(path string, do func(r *http.Request, name string) error) {
		mux.HandleFunc("POST /cradle/v1/containers/{name}/"+path, func(w http.ResponseWriter, r *http.Request) {
			if err := do(r, r.PathValue("name")); err != nil {
				dockerapi.WriteError(w, err)
				return
			}
			w.WriteHeader(http.StatusNoContent)
		})
	}
	act("save-state", func(r *http.Request, name string) error { return n.ContainerSaveState(r.Context(), name) })
	act("restore-state", func(r *http.Request, name string) error { return n.ContainerRestoreState(r.Context(), name) })
	act("discard-state", func(r *http.Request, name string) error { return n.ContainerDiscardState(r.Context(), name) })
}
