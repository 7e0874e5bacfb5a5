package dockerapi

import (
	"context"
	"maps"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/volume"
)

// fakeVolume is the fake's one volume, "data".
func fakeVolume() volume.Volume {
	return volume.Volume{Name: "data", Driver: "local", Scope: "local", Mountpoint: "/v", Labels: map[string]string{}, CreatedAt: "2020-01-01T00:00:00Z"}
}

func (f *fake) VolumeList(_ context.Context, filters Filters) ([]volume.Volume, error) {
	f.note("volumes %v", slices.Sorted(maps.Keys(filters)))
	return nil, nil
}

func (f *fake) VolumeInspect(_ context.Context, name string) (volume.Volume, error) {
	if name != "data" {
		return volume.Volume{}, errdefs.ErrNotFound.WithMessage("get " + name + ": no such volume")
	}
	return fakeVolume(), nil
}

func (f *fake) VolumeCreate(_ context.Context, r volume.CreateRequest) (volume.Volume, error) {
	f.note("volume create %s %v", r.Name, r.Labels)
	v := fakeVolume()
	v.Name = r.Name
	return v, nil
}

func (f *fake) VolumeRemove(ctx context.Context, name string, force bool) error {
	if _, err := f.VolumeInspect(ctx, name); err != nil && !force {
		return err
	}
	f.note("volume remove %s %v", name, force)
	return nil
}

func (f *fake) VolumePrune(_ context.Context, filters Filters) (volume.PruneReport, error) {
	f.note("volume prune %v", slices.Sorted(maps.Keys(filters)))
	return volume.PruneReport{}, nil
}
