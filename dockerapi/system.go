package dockerapi

import (
	"cmp"
	"io"
	"net/http"
	"slices"
	"strings"

	"github.com/moby/moby/api/types"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/moby/api/types/system"
)

func (s *server) systemRoutes() []route {
	return []route{
		{"GET", "/_ping", "", s.ping},
		{"HEAD", "/_ping", "", s.ping},
		{"GET", "/version", "", s.versionInfo},
		{"GET", "/info", "", s.info},
		{"GET", "/events", "", s.events},
		{"GET", "/system/df", "", s.diskUsage},
		{"POST", "/auth", "", s.auth},
	}
}

// ping is how clients find the daemon and choose the version to speak.
func (s *server) ping(c *call) error {
	h := c.w.Header()
	h.Set("Cache-Control", "no-cache, no-store, must-revalidate")
	h.Set("Pragma", "no-cache")
	h.Set("Builder-Version", s.o.BuilderVersion)
	h.Set("Swarm", "inactive")
	h.Set("Content-Type", "text/plain; charset=utf-8")
	if c.r.Method == http.MethodHead {
		h.Set("Content-Length", "0")
		return c.empty(http.StatusOK)
	}
	_, _ = io.WriteString(c.w, "OK")
	return nil
}

func (s *server) versionInfo(c *call) error {
	v, err := s.b.Version(c.r.Context())
	if err != nil {
		return err
	}
	v.APIVersion, v.MinAPIVersion = MaxAPIVersion, MinAPIVersion // this package's to know
	return c.json(http.StatusOK, v)
}

func (s *server) info(c *call) error {
	info, err := s.b.Info(c.r.Context())
	if err != nil {
		return err
	}
	info.Swarm.LocalNodeState = cmp.Or(info.Swarm.LocalNodeState, swarm.LocalNodeStateInactive)
	return c.json(http.StatusOK, info)
}

func (s *server) events(c *call) error {
	since, err := c.time("since")
	if err != nil {
		return err
	}
	until, err := c.time("until")
	if err != nil {
		return err
	}
	if !until.IsZero() && since.After(until) {
		return invalid("`since` time (" + c.query.Get("since") + ") cannot be after `until` time (" + c.query.Get("until") + ")")
	}
	filters, err := c.filters("config", "container", "daemon", "event", "image", "label", "network", "node", "plugin",
		"scope", "secret", "service", "type", "volume")
	if err != nil {
		return err
	}
	stream := &jsonStream{c: c, contentType: eventsType(c.r.Header.Values("Accept"))}
	if stream.contentType == types.MediaTypeJSONSequence {
		stream.prefix = "\x1e"
	}
	stream.open()
	return s.b.Events(c.r.Context(), since, until, filters, func(m events.Message) error {
		return stream.send(shapeEvent(m))
	})
}

// eventsType chooses among the names for a stream of JSON documents, in the order of the client's list. Without
// one it is the name that clients before 1.51 know.
func eventsType(accept []string) string {
	for _, entry := range strings.Split(strings.Join(accept, ","), ",") {
		kind, _, _ := strings.Cut(entry, ";")
		switch kind = strings.TrimSpace(kind); kind {
		case types.MediaTypeJSONLines, types.MediaTypeNDJSON, types.MediaTypeJSONSequence:
			return kind
		}
	}
	return types.MediaTypeJSON
}

func (s *server) diskUsage(c *call) error {
	wanted := c.query["type"]
	all := []string{"container", "image", "volume", "build-cache"}
	for _, kind := range wanted {
		if !slices.Contains(all, kind) {
			return invalid("unknown object type: " + kind)
		}
	}
	if len(wanted) == 0 {
		wanted = all
	}
	u, err := s.b.DiskUsage(c.r.Context())
	if err != nil {
		return err
	}
	u = completeDiskUsage(u, wanted)
	if !c.version.atLeast(52) {
		return c.json(http.StatusOK, legacyDiskUsageOf(u))
	}
	if !c.flag("verbose") {
		dropItems(&u)
	}
	return c.json(http.StatusOK, u)
}

func (s *server) auth(c *call) error {
	b, ok := s.b.(AuthBackend)
	if !ok {
		return unsupported("Logging in through the daemon")
	}
	var auth registry.AuthConfig
	if _, err := c.body(&auth); err != nil {
		return err
	}
	res, err := b.Auth(c.r.Context(), auth)
	if err != nil {
		return err
	}
	return c.json(http.StatusOK, res)
}

// completeDiskUsage has a part for each kind that was asked for and none for the others.
func completeDiskUsage(u system.DiskUsage, wanted []string) system.DiskUsage {
	var out system.DiskUsage
	if slices.Contains(wanted, "container") {
		out.ContainerUsage = orEmpty(u.ContainerUsage)
	}
	if slices.Contains(wanted, "image") {
		out.ImageUsage = orEmpty(u.ImageUsage)
	}
	if slices.Contains(wanted, "volume") {
		out.VolumeUsage = orEmpty(u.VolumeUsage)
	}
	if slices.Contains(wanted, "build-cache") {
		out.BuildCacheUsage = orEmpty(u.BuildCacheUsage)
	}
	return out
}

// orEmpty copies what p points to: the Backend's answer is not ours to change.
func orEmpty[T any](p *T) *T {
	var v T
	if p != nil {
		v = *p
	}
	return &v
}

// dropItems leaves the totals.
func dropItems(u *system.DiskUsage) {
	if u.ContainerUsage != nil {
		u.ContainerUsage.Items = nil
	}
	if u.ImageUsage != nil {
		u.ImageUsage.Items = nil
	}
	if u.VolumeUsage != nil {
		u.VolumeUsage.Items = nil
	}
	if u.BuildCacheUsage != nil {
		u.BuildCacheUsage.Items = nil
	}
}
