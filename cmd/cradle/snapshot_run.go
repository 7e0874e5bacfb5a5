package main

import (
	"encoding/json"
	"net/http"

	"github.com/cradlevm/cradle/dockerapi"
	"github.com/cradlevm/cradle/node"
)

// addSnapshotHandlers serves named snapshots.
func addSnapshotHandlers(mux *http.ServeMux, n *node.Node) {
	answer := func(w http.ResponseWriter, what any, err error) {
		if err != nil {
			dockerapi.WriteError(w, err)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(what)
	}
	const one = "/cradle/v1/snapshots/{name}"
	mux.HandleFunc("POST /cradle/v1/snapshots", func(w http.ResponseWriter, r *http.Request) {
		s, err := n.SnapshotCreate(r.Context(), r.URL.Query().Get("name"), r.URL.Query().Get("container"))
		answer(w, s, err)
	})
	mux.HandleFunc("GET /cradle/v1/snapshots", func(w http.ResponseWriter, r *http.Request) {
		list, err := n.SnapshotList(r.Context())
		answer(w, list, err)
	})
	mux.HandleFunc("GET "+one, func(w http.ResponseWriter, r *http.Request) {
		s, err := n.SnapshotInspect(r.Context(), r.PathValue("name"))
		answer(w, s, err)
	})
	mux.HandleFunc("POST "+one+"/run", func(w http.ResponseWriter, r *http.Request) {
		id, err := n.SnapshotRun(r.Context(), r.PathValue("name"), r.URL.Query().Get("name"))
		answer(w, struct{ ID string }{id}, err)
	})
	mux.HandleFunc("GET "+one+"/archive", exportHandler(n))
	mux.HandleFunc("POST /cradle/v1/snapshots/import", func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		s, err := n.SnapshotImport(r.Context(), q.Get("name"), q.Get("trust") == "true", r.Body)
		answer(w, s, err)
	})
	mux.HandleFunc("DELETE "+one, func(w http.ResponseWriter, r *http.Request) {
		if err := n.SnapshotRemove(r.Context(), r.PathValue("name")); err != nil {
			dockerapi.WriteError(w, err)
			return
		}
		w.WriteHeader(http.StatusNoContent)
	})
}

// exportHandler streams a snapshot as an archive; without its image if asked for image=false.
func exportHandler(n *node.Node) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		answerTar(w, func(begin func()) error {
			return n.SnapshotExport(r.Context(), r.PathValue("name"), r.URL.Query().Get("image") != "false", begin, w)
		})
	}
}
