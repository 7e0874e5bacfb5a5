package dockerapi

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/network"
)

// fakeNet is the fake's network "none"; others are names that it has been given.
func fakeNet(name string) network.Network {
	return network.Network{
		Name: name, ID: fmt.Sprintf("%064x", len(name)), Scope: "local", Driver: "null",
		IPAM: network.IPAM{Driver: "default", Config: []network.IPAMConfig{}}, Options: map[string]string{}, Labels: map[string]string{},
	}
}

func (f *fake) NetworkList(_ context.Context, filters Filters) ([]network.Summary, error) {
	f.note("networks %v", slices.Sorted(maps.Keys(filters)))
	return []network.Summary{{Network: fakeNet("none")}}, nil
}

func (f *fake) NetworkInspect(_ context.Context, name string) (network.Inspect, error) {
	if n := fakeNet("none"); name == "none" || strings.HasPrefix(n.ID, name) {
		return network.Inspect{Network: n}, nil
	}
	return network.Inspect{}, errdefs.ErrNotFound.WithMessage("network " + name + " not found")
}

func (f *fake) NetworkCreate(_ context.Context, r network.CreateRequest) (network.CreateResponse, error) {
	f.note("network create %s", r.Name)
	return network.CreateResponse{ID: fakeNet(r.Name).ID}, nil
}

func (f *fake) NetworkRemove(_ context.Context, name string) error {
	if name == "none" {
		return errdefs.ErrPermissionDenied.WithMessage("none is a pre-defined network and cannot be removed")
	}
	f.note("network remove %s", name)
	return nil
}

func (f *fake) NetworkPrune(_ context.Context, filters Filters) (network.PruneReport, error) {
	f.note("network prune %v", slices.Sorted(maps.Keys(filters)))
	return network.PruneReport{}, nil
}

func (f *fake) NetworkConnect(_ context.Context, name, container string, endpoint *network.EndpointSettings) error {
	f.note("connect %s %s %v", name, container, endpoint.Aliases)
	return nil
}

func (f *fake) NetworkDisconnect(_ context.Context, name, container string, force bool) error {
	f.note("disconnect %s %s %v", name, container, force)
	return nil
}
