package dockerapi

import (
	"fmt"
	"net/http"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/build"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/plugin"
	"github.com/moby/moby/api/types/volume"
)

// absentRoutes answer truly for what cradle does not have: no volumes, no networks but "none", no plugins, no
// builder. Lists are empty and pruning finds nothing, so that docker system prune works; the rest is refused.
func (s *server) absentRoutes() []route {
	return []route{
		{"GET", "/networks", "", networkList},
		{"GET", "/networks/{id}", "", networkInspect},
		{"DELETE", "/networks/{id}", "", networkRemove},
		{"POST", "/networks/create", "", refused("Creating a network")},
		{"POST", "/networks/prune", "", emptyPrune(struct{ NetworksDeleted []string }{[]string{}}, "label", "label!", "until")},
		{"POST", "/networks/{id}/connect", "", refused("Connecting a container to a network")},
		{"POST", "/networks/{id}/disconnect", "", refused("Disconnecting a container from a network")},

		{"GET", "/volumes", "", volumeList},
		{"POST", "/volumes/create", "", refused("Creating a volume")},
		{"POST", "/volumes/prune", "", emptyPrune(volume.PruneReport{VolumesDeleted: []string{}}, "all", "label", "label!")},
		{"GET", "/volumes/{id}", "", noVolume},
		{"PUT", "/volumes/{id}", "", noVolume},
		{"DELETE", "/volumes/{id}", "", volumeRemove},

		{"GET", "/plugins", "", func(c *call) error { return list(c, []plugin.Plugin{}) }},
		{"GET", "/plugins/privileges", "", refused("Installing a plugin")},
		{"POST", "/plugins/pull", "", refused("Installing a plugin")},
		{"POST", "/plugins/create", "", refused("Creating a plugin")},
		{"GET", "/plugins/{name...}", "/json", noPlugin},
		{"DELETE", "/plugins/{name...}", "", noPlugin},
		{"POST", "/plugins/{name...}", "/enable", noPlugin},
		{"POST", "/plugins/{name...}", "/disable", noPlugin},
		{"POST", "/plugins/{name...}", "/upgrade", noPlugin},
		{"POST", "/plugins/{name...}", "/push", noPlugin},
		{"POST", "/plugins/{name...}", "/set", noPlugin},

		{"POST", "/build", "", refused("Building an image")},
		{"POST", "/build/cancel", "", refused("Building an image")},
		{"POST", "/build/prune", "", emptyPrune(build.CachePruneReport{CachesDeleted: []string{}},
			"description", "id", "inuse", "parent", "private", "shared", "type", "until", "unused-for")},
		{"POST", "/session", "", refused("A BuildKit session")},
		{"POST", "/grpc", "", refused("BuildKit's gRPC")},
	}
}

// emptyPrune answers a prune that finds nothing.
func emptyPrune(answer any, filters ...string) handler {
	return func(c *call) error {
		if _, err := c.filters(filters...); err != nil {
			return err
		}
		return c.json(http.StatusOK, answer)
	}
}

// noneNetwork is the network of containers that have none.
func noneNetwork() network.Inspect {
	return network.Inspect{
		Network: network.Network{
			Name: network.NetworkNone, ID: noneNetworkID, Scope: "local", Driver: "null", EnableIPv4: true,
			IPAM:    network.IPAM{Driver: "default", Config: []network.IPAMConfig{}},
			Options: map[string]string{}, Labels: map[string]string{},
		},
		Containers: map[string]network.EndpointResource{},
	}
}

// noneNetworkID is the SHA-256 of "none": docker's clients expect an id of this form.
const noneNetworkID = "140bedbf9c3f6d56a9846d2ba7088798683f4da0c248231336e6a05679e4fdfe"

func networkList(c *call) error {
	f, err := c.filters("dangling", "driver", "id", "label", "name", "scope", "type")
	if err != nil {
		return err
	}
	none := noneNetwork()
	for key, values := range f {
		if !anyValue(values, func(v string) bool { return noneMatches(none, key, v) }) {
			return list(c, []network.Inspect{})
		}
	}
	return list(c, []network.Inspect{none})
}

func anyValue(values map[string]bool, is func(string) bool) bool {
	for v := range values {
		if is(v) {
			return true
		}
	}
	return len(values) == 0
}

func noneMatches(n network.Inspect, key, value string) bool {
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

func findNetwork(name string) (network.Inspect, error) {
	if n := noneNetwork(); name == n.Name || (len(name) > 0 && strings.HasPrefix(n.ID, name)) {
		return n, nil
	}
	return network.Inspect{}, errdefs.ErrNotFound.WithMessage(fmt.Sprintf("network %s not found", name))
}

func networkInspect(c *call) error {
	n, err := findNetwork(c.id())
	if err != nil {
		return err
	}
	return c.json(http.StatusOK, n)
}

func networkRemove(c *call) error {
	n, err := findNetwork(c.id())
	if err != nil {
		return err
	}
	return errdefs.ErrPermissionDenied.WithMessage(n.Name + " is a pre-defined network and cannot be removed")
}

func volumeList(c *call) error {
	if _, err := c.filters("dangling", "driver", "label", "name"); err != nil {
		return err
	}
	return c.json(http.StatusOK, volume.ListResponse{Volumes: []volume.Volume{}, Warnings: []string{}})
}

func noVolume(c *call) error {
	return errdefs.ErrNotFound.WithMessage(fmt.Sprintf("get %s: no such volume", c.id()))
}

func volumeRemove(c *call) error {
	if c.flag("force") { // that it is gone is all the client wants
		return c.empty(http.StatusNoContent)
	}
	return noVolume(c)
}

func noPlugin(c *call) error {
	return errdefs.ErrNotFound.WithMessage(fmt.Sprintf("plugin %q not found", c.name))
}
