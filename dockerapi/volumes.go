package dockerapi

import (
	"context"
	"net/http"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/volume"
)

// VolumeBackend is the named volumes' part.
type VolumeBackend interface {
	// VolumeList: filters are dangling, driver, label, name.
	VolumeList(ctx context.Context, filters Filters) ([]volume.Volume, error)
	VolumeInspect(ctx context.Context, name string) (volume.Volume, error)
	// VolumeCreate returns the volume of that name if there is one. Without a name it gets one.
	VolumeCreate(ctx context.Context, r volume.CreateRequest) (volume.Volume, error)
	// VolumeRemove: ErrConflict in docker's words for one that containers have, running or not; with force one that is not there is
	// no error.
	VolumeRemove(ctx context.Context, name string, force bool) error
	// VolumePrune: filters are all, label, label!.
	VolumePrune(ctx context.Context, filters Filters) (volume.PruneReport, error)
}

func (s *server) volumeRoutes() []route {
	return []route{
		{"GET", "/volumes", "", s.volumeList},
		{"POST", "/volumes/create", "", s.volumeCreate},
		{"POST", "/volumes/prune", "", s.volumePrune},
		{"GET", "/volumes/{id}", "", s.volumeInspect},
		{"PUT", "/volumes/{id}", "", s.volumeUpdate},
		{"DELETE", "/volumes/{id}", "", s.volumeRemove},
	}
}

func (s *server) volumeList(c *call) error {
	filters, err := c.filters("dangling", "driver", "label", "name")
	if err != nil {
		return err
	}
	found, err := s.b.VolumeList(c.r.Context(), filters)
	if err != nil {
		return err
	}
	return c.json(http.StatusOK, volume.ListResponse{Volumes: orList(found), Warnings: []string{}})
}

func (s *server) volumeInspect(c *call) error {
	v, err := s.b.VolumeInspect(c.r.Context(), c.id())
	if err != nil {
		return err
	}
	return c.json(http.StatusOK, v)
}

func (s *server) volumeCreate(c *call) error {
	var r volume.CreateRequest
	if _, err := c.body(&r); err != nil {
		return err
	}
	v, err := s.b.VolumeCreate(c.r.Context(), r)
	if err != nil {
		return err
	}
	return c.json(http.StatusCreated, v)
}

// volumeUpdate is for the volumes of a swarm only.
func (s *server) volumeUpdate(c *call) error {
	if _, err := s.b.VolumeInspect(c.r.Context(), c.id()); err != nil {
		return err
	}
	return errdefs.ErrNotImplemented.WithMessage("Changing a volume is not supported by cradle")
}

func (s *server) volumeRemove(c *call) error {
	if err := s.b.VolumeRemove(c.r.Context(), c.id(), c.flag("force")); err != nil {
		return err
	}
	return c.empty(http.StatusNoContent)
}

func (s *server) volumePrune(c *call) error {
	filters, err := c.filters("all", "label", "label!")
	if err != nil {
		return err
	}
	if !c.version.atLeast(42) { // before, anonymous volumes and named ones were not told apart
		filters["all"] = map[string]bool{"true": true}
	}
	report, err := s.b.VolumePrune(c.r.Context(), filters)
	if err != nil {
		return err
	}
	report.VolumesDeleted = orList(report.VolumesDeleted)
	return c.json(http.StatusOK, report)
}
