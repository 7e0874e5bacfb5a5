package main

import (
	"encoding/json"
	"net/http"

	"github.com/cradlevm/cradle/dockerapi"
	"github.com/cradlevm/cradle/node"
)

// addCostHandlers serves what running containers use and cost.
func addCostHandlers(mux *http.ServeMux, n *node.Node) {
	mux.HandleFunc("GET /cradle/v1/costs", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(n.Costs(r.Context()))
	})
	mux.HandleFunc("GET /cradle/v1/containers/{name}/cost", func(w http.ResponseWriter, r *http.Request) {
		cost, err := n.ContainerCost(r.Context(), r.PathValue("name"))
		if err != nil {
			dockerapi.WriteError(w, err)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(cost)
	})
}
