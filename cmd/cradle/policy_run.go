package main

import (
	"encoding/json"
	"net/http"

	"github.com/containerd/errdefs"

	"github.com/cradlevm/cradle/api"
	"github.com/cradlevm/cradle/dockerapi"
	"github.com/cradlevm/cradle/node"
)

// addPolicyHandlers serves containers' network policies.
func addPolicyHandlers(mux *http.ServeMux, n *node.Node) {
	const all = "/cradle/v1/networks/policies"
	const one = all + "/{name}"
	answer := func(w http.ResponseWriter, what any) {
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(what)
	}
	set := func(w http.ResponseWriter, r *http.Request, p *api.NetworkPolicy) {
		if err := n.NetworkPolicySet(r.Context(), r.PathValue("name"), r.URL.Query().Get("network"), p); err != nil {
			dockerapi.WriteError(w, err)
			return
		}
		w.WriteHeader(http.StatusNoContent)
	}
	mux.HandleFunc("GET "+all, func(w http.ResponseWriter, r *http.Request) { answer(w, n.NetworkPolicies(r.Context())) })
	mux.HandleFunc("GET "+one, func(w http.ResponseWriter, r *http.Request) {
		p, err := n.NetworkPolicy(r.Context(), r.PathValue("name"))
		if err != nil {
			dockerapi.WriteError(w, err)
			return
		}
		answer(w, p)
	})
	mux.HandleFunc("PUT "+one, func(w http.ResponseWriter, r *http.Request) {
		var p api.NetworkPolicy
		body := json.NewDecoder(http.MaxBytesReader(w, r.Body, 64<<10))
		body.DisallowUnknownFields()
		if err := body.Decode(&p); err != nil {
			dockerapi.WriteError(w, errdefs.ErrInvalidArgument.WithMessage("invalid network policy: "+err.Error()))
			return
		}
		set(w, r, &p)
	})
	mux.HandleFunc("DELETE "+one, func(w http.ResponseWriter, r *http.Request) { set(w, r, nil) })
}
