package dockerapi

import (
	"fmt"
	"net/http"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/build"
	"github.com/moby/moby/api/types/plugin"
)

// absentRoutes answer truly for what cradle does not have: no plugins, no builder. Lists are empty and pruning finds nothing, so that docker system prune works; the rest is refused.
func (s *server) absentRoutes() []route {
	return []route{
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

func noPlugin(c *call) error {
	return errdefs.ErrNotFound.WithMessage(fmt.Sprintf("plugin %q not found", c.name))
}
