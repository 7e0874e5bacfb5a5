package node

import (
	"context"
	"strings"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/network"

	"github.com/cradlevm/cradle/dockerapi"
)

// noneNetworkID is the id under which the API shows the network "none": SHA-256 of its name, since docker's clients expect
// an id of this form.
const noneNetworkID = "140bedbf9c3f6d56a9846d2ba7088798683f4da0c248231336e6a05679e4fdfe"

// noneNetwork is the network of containers that have none.
func noneNetwork() network.Network {
	return network.Network{
		Name: network.NetworkNone, ID: noneNetworkID, Scope: "local", Driver: "null", EnableIPv4: true,
		IPAM:    network.IPAM{Driver: "default", Config: []network.IPAMConfig{}},
		Options: map[string]string{}, Labels: map[string]string{},
	}
}

// NetworkList implements dockerapi.Backend.
func (n *Node) NetworkList(_ context.Context, filters dockerapi.Filters) ([]network.Summary, error) {
	none := noneNetwork()
	for key, values := range filters {
		if !anyValue(values, func(v string) bool { return noneMatches(none, key, v) }) {
			return nil, nil
		}
	}
	return []network.Summary{{Network: none}}, nil
}

func anyValue(values map[string]bool, is func(string) bool) bool {
	for v := range values {
		if is(v) {
			return true
		}
	}
	return len(values) == 0
}

func noneMatches(n network.Network, key, value string) bool {
	switch key {
	case "name":
		return strings.Contains(n.Name, value)
	case "id":
		return strings.HasPrefix(n.ID, value)
	case "driver":
		return n.Driver == value
	case "scope":
		return n.Scope == value
	case "type":
		return value == "builtin"
	}
	return false // it has no labels, and a built-in network never dangles
}

func findNetwork(name string) (network.Network, error) {
	if n := noneNetwork(); name == n.Name || (len(name) > 0 && strings.HasPrefix(n.ID, name)) {
		return n, nil
	}
	return network.Network{}, notFound("network %s not found", name)
}

// NetworkInspect implements dockerapi.Backend.
func (n *Node) NetworkInspect(_ context.Context, name string) (network.Inspect, error) {
	found, err := findNetwork(name)
	return network.Inspect{Network: found}, err
}

// NetworkCreate implements dockerapi.Backend.
func (n *Node) NetworkCreate(context.Context, network.CreateRequest) (network.CreateResponse, error) {
	return network.CreateResponse{}, unsupported("Creating a network is not supported by cradle yet")
}

// NetworkRemove implements dockerapi.Backend.
func (n *Node) NetworkRemove(_ context.Context, name string) error {
	found, err := findNetwork(name)
	if err != nil {
		return err
	}
	return cerrdefs.ErrPermissionDenied.WithMessage(found.Name + " is a pre-defined network and cannot be removed")
}

// NetworkPrune implements dockerapi.Backend.
func (n *Node) NetworkPrune(context.Context, dockerapi.Filters) (network.PruneReport, error) {
	return network.PruneReport{}, nil
}

// NetworkConnect implements dockerapi.Backend.
func (n *Node) NetworkConnect(context.Context, string, string, *network.EndpointSettings) error {
	return unsupported("Connecting a container to a network is not supported by cradle yet")
}

// NetworkDisconnect implements dockerapi.Backend.
func (n *Node) NetworkDisconnect(context.Context, string, string, bool) error {
	return unsupported("Disconnecting a container from a network is not supported by cradle yet")
}
