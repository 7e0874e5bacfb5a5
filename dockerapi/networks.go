package dockerapi

import (
	"context"
	"net/http"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/network"
)

// NetworkBackend is the networks' part. Names are a network's name, id or unambiguous id prefix.
type NetworkBackend interface {
	// NetworkList: filters are dangling, driver, id, label, name, scope, type.
	NetworkList(ctx context.Context, filters Filters) ([]network.Summary, error)
	NetworkInspect(ctx context.Context, name string) (network.Inspect, error)
	// NetworkCreate: r.Name is not empty.
	NetworkCreate(ctx context.Context, r network.CreateRequest) (network.CreateResponse, error)
	// NetworkRemove: ErrPermissionDenied for one that is built in, ErrPermissionDenied in docker's words for one in use.
	NetworkRemove(ctx context.Context, name string) error
	// NetworkPrune: filters are label, label!, until.
	NetworkPrune(ctx context.Context, filters Filters) (network.PruneReport, error)
	// NetworkConnect: endpoint is never nil.
	NetworkConnect(ctx context.Context, name, container string, endpoint *network.EndpointSettings) error
	NetworkDisconnect(ctx context.Context, name, container string, force bool) error
}

func (s *server) networkRoutes() []route {
	return []route{
		{"GET", "/networks", "", s.networkList},
		{"GET", "/networks/{id}", "", s.networkInspect},
		{"DELETE", "/networks/{id}", "", s.networkRemove},
		{"POST", "/networks/create", "", s.networkCreate},
		{"POST", "/networks/prune", "", s.networkPrune},
		{"POST", "/networks/{id}/connect", "", s.networkConnect},
		{"POST", "/networks/{id}/disconnect", "", s.networkDisconnect},
	}
}

func (s *server) networkList(c *call) error {
	filters, err := c.filters("dangling", "driver", "id", "label", "name", "scope", "type")
	if err != nil {
		return err
	}
	found, err := s.b.NetworkList(c.r.Context(), filters)
	if err != nil {
		return err
	}
	return list(c, found)
}

func (s *server) networkInspect(c *call) error {
	n, err := s.b.NetworkInspect(c.r.Context(), c.id())
	if err != nil {
		return err
	}
	if scope := c.query.Get("scope"); scope != "" && scope != n.Scope {
		return errdefs.ErrNotFound.WithMessage("network " + c.id() + " not found")
	}
	if n.Containers == nil {
		n.Containers = map[string]network.EndpointResource{}
	}
	return c.json(http.StatusOK, n)
}

func (s *server) networkRemove(c *call) error {
	if err := s.b.NetworkRemove(c.r.Context(), c.id()); err != nil {
		return err
	}
	return c.empty(http.StatusNoContent)
}

func (s *server) networkCreate(c *call) error {
	var r network.CreateRequest
	if _, err := c.body(&r); err != nil {
		return err
	}
	if r.Name == "" {
		return invalid("network name cannot be empty")
	}
	created, err := s.b.NetworkCreate(c.r.Context(), r)
	if err != nil {
		return err
	}
	return c.json(http.StatusCreated, created)
}

func (s *server) networkPrune(c *call) error {
	filters, err := c.filters("label", "label!", "until")
	if err != nil {
		return err
	}
	report, err := s.b.NetworkPrune(c.r.Context(), filters)
	if err != nil {
		return err
	}
	report.NetworksDeleted = orList(report.NetworksDeleted)
	return c.json(http.StatusOK, report)
}

func (s *server) networkConnect(c *call) error {
	var r network.ConnectRequest
	if _, err := c.body(&r); err != nil {
		return err
	}
	if r.EndpointConfig == nil {
		r.EndpointConfig = &network.EndpointSettings{}
	}
	if err := s.b.NetworkConnect(c.r.Context(), c.id(), r.Container, r.EndpointConfig); err != nil {
		return err
	}
	return c.empty(http.StatusOK)
}

func (s *server) networkDisconnect(c *call) error {
	var r network.DisconnectRequest
	if _, err := c.body(&r); err != nil {
		return err
	}
	if err := s.b.NetworkDisconnect(c.r.Context(), c.id(), r.Container, r.Force); err != nil {
		return err
	}
	return c.empty(http.StatusOK)
}
