package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	mobyvolume "github.com/moby/moby/api/types/volume"

	"github.com/cradlevm/cradle/api"
	"github.com/cradlevm/cradle/dockerapi"
	"github.com/cradlevm/cradle/node/runspec"
	"github.com/cradlevm/cradle/vm"
	"github.com/cradlevm/cradle/volume"
)

// A named volume is a disk, and a disk's file system belongs to one kernel at a time: a volume is lent to one container, from the
// making of its machine until that has gone.

// lending is to whom a volume has been lent last. Whether it still has it, its record tells.
type lending struct {
	container string // id
	starting  bool   // its machine is being made
}

// namedVolumes are a record's. It was checked when it was made.
func (r *record) namedVolumes() []runspec.Volume {
	list, err := runspec.NamedVolumes(&r.HostConfig)
	if err != nil {
		return nil
	}
	return list
}

// volumeSerial names a volume's disk in its container's machine: they are numbered in the order of their paths.
func volumeSerial(i int) string { return fmt.Sprintf("volume%d", i) }

// volumeError gives an error of the volumes its class.
func volumeError(err error) error {
	for kind, class := range map[error]error{
		volume.ErrName: cerrdefs.ErrInvalidArgument, volume.ErrInvalid: cerrdefs.ErrInvalidArgument, volume.ErrNotFound: cerrdefs.ErrNotFound,
	} {
		if errors.Is(err, kind) {
			return &classed{err.Error(), class}
		}
	}
	return err
}

// makeVolumes makes those of a new container's volumes that are not there yet.
func (n *Node) makeVolumes(ctx context.Context, rec record) error {
	for _, v := range rec.namedVolumes() {
		if _, err := n.makeVolume(ctx, v.Name, v.Labels, nil); err != nil {
			return err
		}
	}
	return nil
}

func (n *Node) makeVolume(ctx context.Context, name string, labels, options map[string]string) (volume.Volume, error) {
	size, err := n.volumeSize(options)
	if err != nil {
		return volume.Volume{}, err
	}
	v, made, err := n.volumes.Create(ctx, volume.Volume{Name: name, Labels: labels, Options: options, Size: size})
	if made {
		n.volumeEvent(events.ActionCreate, name)
	}
	return v, volumeError(err)
}

// volumeSize is that of a new volume's disk, bytes: its option size, else that of a writable disk.
func (n *Node) volumeSize(options map[string]string) (int64, error) {
	size, err := runspec.ScratchSize(&container.HostConfig{}, n.settings)
	for key, value := range options {
		switch {
		case key == "size":
			if size, err = units.RAMInBytes(value); err != nil || size < volume.MinScratch {
				return 0, invalid("invalid volume option size=%s: at least %s", value, units.BytesSize(volume.MinScratch))
			}
		case key == "type" && value == "none", key == "o" && value == "bind", key == "device":
			return 0, unsupported("the volume option %s=%s: a volume is not a directory of the host's, which is not supported by cradle", key, value)
		default:
			return 0, unsupported("the volume option %s is not supported by cradle", key)
		}
	}
	return size, err
}

func (n *Node) volumeEvent(action events.Action, name string) {
	n.events.add(events.VolumeEventType, action, name, map[string]string{"driver": "local"})
}

// lendVolumes lends a container its volumes, which are made where they have gone, and completes what is to be made of them: disks of the
// machine and a part of the request. settled is to be called once the record says whether there is a machine. Errors: a conflict when
// another container that runs has one of them.
func (n *Node) lendVolumes(ctx context.Context, rec record) (disks []vm.Disk, mounts []api.VolumeDisk, settled func(), err error) {
	list := rec.namedVolumes()
	if len(list) == 0 {
		return nil, nil, func() {}, nil
	}
	n.lendMu.Lock()
	defer n.lendMu.Unlock()
	if err := n.awaitVolumes(ctx, list, rec.ID); err != nil {
		return nil, nil, nil, err
	}
	if err := n.makeVolumes(ctx, rec); err != nil {
		return nil, nil, nil, err
	}
	serials := map[string]string{} // one that is mounted twice has one disk
	for _, v := range list {
		serial, there := serials[v.Name]
		if !there {
			serial = volumeSerial(len(serials))
			serials[v.Name] = serial
			disks = append(disks, vm.Disk{Serial: serial, Path: n.volumes.Disk(v.Name)})
			n.lent[v.Name] = lending{rec.ID, true}
		}
		mounts = append(mounts, api.VolumeDisk{
			Disk: api.Disk{Serial: serial, FSType: "ext4"}, Path: v.Path, ReadOnly: v.ReadOnly, NoCopy: v.NoCopy,
		})
	}
	return disks, mounts, func() {
		n.lendMu.Lock()
		defer n.lendMu.Unlock()
		for name := range serials {
			n.lent[name] = lending{rec.ID, false}
		}
	}, nil
}

// awaitVolumes waits until volumes can be lent to a container: one that has ended keeps its own until its machine has flushed them, which a
// client that stops one container and starts another knows nothing of. lendMu is held, but not while it waits.
func (n *Node) awaitVolumes(ctx context.Context, list []runspec.Volume, id string) error {
	for i := 0; i < len(list); {
		who := n.holder(list[i].Name)
		if who == nil || who.id == id {
			i++
			continue
		}
		if n.lent[list[i].Name].starting || who.isUp() {
			return conflict("volume %s is in use by container %s: cradle lends a volume to one running container at a time", list[i].Name, who.snapshot().Name)
		}
		who.mu.Lock()
		r := who.run
		who.mu.Unlock()
		n.lendMu.Unlock()
		ended := n.awaitReturn(ctx, r)
		n.lendMu.Lock()
		if !ended {
			return fmt.Errorf("wait for volume %s of container %s: %w", list[i].Name, who.id, context.Cause(ctx))
		}
		i = 0 // meanwhile others may have been lent
	}
	return nil
}

// awaitReturn waits for a run's machine to go; without one for a moment, in which a desk may be closed.
func (n *Node) awaitReturn(ctx context.Context, r *run) bool {
	if r == nil {
		return sleep(ctx, 50*time.Millisecond)
	}
	select {
	case <-r.torn:
		return true
	case <-ctx.Done():
		return false
	}
}

// addMounts adds a container's volumes, and files of the host's, to a plan. settled is to be called as lendVolumes says.
func (c *ctr) addMounts(ctx context.Context, p *plan) (settled func(), err error) {
	files, err := p.rec.boundFiles()
	if err != nil {
		return nil, err
	}
	p.request.Files = append(p.request.Files, files...)
	disks, mounts, settled, err := c.node.lendVolumes(ctx, p.rec)
	if err != nil {
		return nil, err
	}
	p.config.VM.Disks = append(p.config.VM.Disks, disks...)
	p.request.VolumeDisks = mounts
	return settled, nil
}

// holder is the container that a volume is lent to, nil when there is none. lendMu is held.
func (n *Node) holder(name string) *ctr {
	l, ok := n.lent[name]
	if !ok {
		return nil
	}
	c, err := n.find(l.container)
	if err != nil || c.id != l.container {
		return nil
	}
	if rec := c.snapshot(); !l.starting && rec.Sandbox == nil {
		return nil
	}
	return c
}

// recoverLent remembers whom an earlier daemon has lent volumes to.
func (n *Node) recoverLent(rec record) {
	if rec.Sandbox == nil {
		return
	}
	for _, v := range rec.namedVolumes() {
		n.lent[v.Name] = lending{container: rec.ID}
	}
}

// volumeUsers are the ids of the containers that have a volume of this name, running or not.
func (n *Node) volumeUsers(name string) []string {
	var ids []string
	for _, c := range n.all() {
		rec := c.snapshot()
		if slices.ContainsFunc(rec.namedVolumes(), func(v runspec.Volume) bool { return v.Name == name }) {
			ids = append(ids, c.id)
		}
	}
	slices.Sort(ids)
	return ids
}

// describeVolume is a volume as the API has it.
func (n *Node) describeVolume(v volume.Volume) mobyvolume.Volume {
	out := mobyvolume.Volume{
		Name: v.Name, Driver: "local", Mountpoint: n.volumes.Disk(v.Name), Scope: "local", Labels: v.Labels, Options: v.Options,
		CreatedAt: v.Created.Format(time.RFC3339),
	}
	if out.Labels == nil {
		out.Labels = map[string]string{}
	}
	return out
}

// VolumeList implements dockerapi.Backend.
func (n *Node) VolumeList(_ context.Context, filters dockerapi.Filters) ([]mobyvolume.Volume, error) {
	if err := knownFilters(filters, "dangling", "driver", "label", "name"); err != nil {
		return nil, err
	}
	var out []mobyvolume.Volume
	for _, v := range n.volumes.List() {
		if n.volumeMatches(v, filters) {
			out = append(out, n.describeVolume(v))
		}
	}
	return out, nil
}

func (n *Node) volumeMatches(v volume.Volume, filters dockerapi.Filters) bool {
	return matchesLabels(v.Labels, filters["label"]) &&
		anyValue(filters["name"], func(s string) bool { return strings.Contains(v.Name, s) }) &&
		anyValue(filters["driver"], func(s string) bool { return s == "local" }) &&
		anyValue(filters["dangling"], func(s string) bool { return (s == "true" || s == "1") == (len(n.volumeUsers(v.Name)) == 0) })
}

// VolumeInspect implements dockerapi.Backend.
func (n *Node) VolumeInspect(_ context.Context, name string) (mobyvolume.Volume, error) {
	v, err := n.volumes.Get(name)
	if err != nil {
		return mobyvolume.Volume{}, volumeError(err)
	}
	return n.describeVolume(v), nil
}

// VolumeCreate implements dockerapi.Backend.
func (n *Node) VolumeCreate(ctx context.Context, r mobyvolume.CreateRequest) (mobyvolume.Volume, error) {
	switch {
	case r.Driver != "" && r.Driver != "local":
		return mobyvolume.Volume{}, unsupported("The volume driver %s is not supported by cradle", r.Driver)
	case r.ClusterVolumeSpec != nil:
		return mobyvolume.Volume{}, unsupported("A cluster volume is not supported by cradle")
	}
	if r.Name == "" {
		r.Name = newID()
	}
	v, err := n.makeVolume(ctx, r.Name, r.Labels, r.DriverOpts)
	if err != nil {
		return mobyvolume.Volume{}, err
	}
	return n.describeVolume(v), nil
}

// VolumeRemove implements dockerapi.Backend.
func (n *Node) VolumeRemove(_ context.Context, name string, force bool) error {
	n.lendMu.Lock()
	defer n.lendMu.Unlock()
	if users := n.volumeUsers(name); len(users) > 0 {
		return conflict("remove %s: volume is in use - [%s]", name, strings.Join(users, ", "))
	}
	err := n.volumes.Remove(name)
	switch {
	case force && errors.Is(err, volume.ErrNotFound): // that it is gone is all the client wants
		return nil
	case err != nil:
		return volumeError(err)
	}
	delete(n.lent, name)
	n.volumeEvent(events.ActionDestroy, name)
	return nil
}

// VolumePrune implements dockerapi.Backend. Without the filter all only anonymous volumes go, of which there are none: those live on
// their containers' disks.
func (n *Node) VolumePrune(ctx context.Context, filters dockerapi.Filters) (mobyvolume.PruneReport, error) {
	report := mobyvolume.PruneReport{VolumesDeleted: []string{}}
	if err := knownFilters(filters, "all", "label", "label!"); err != nil {
		return report, err
	}
	if !filters["all"]["true"] && !filters["all"]["1"] {
		return report, nil
	}
	for _, v := range n.volumes.List() {
		if !matchesLabels(v.Labels, filters["label"]) || len(filters["label!"]) > 0 && matchesLabels(v.Labels, filters["label!"]) {
			continue
		}
		used, err := n.volumes.Used(v.Name)
		if err == nil {
			err = n.VolumeRemove(ctx, v.Name, false)
		}
		switch {
		case cerrdefs.IsConflict(err), cerrdefs.IsNotFound(err): // in use, or gone meanwhile
		case err != nil:
			return report, err
		default:
			report.VolumesDeleted = append(report.VolumesDeleted, v.Name)
			report.SpaceReclaimed += uint64(used)
		}
	}
	return report, nil
}

// volumeUsage is what named volumes take on the host.
func (n *Node) volumeUsage() *mobyvolume.DiskUsage {
	usage := &mobyvolume.DiskUsage{Items: []mobyvolume.Volume{}}
	for _, v := range n.volumes.List() {
		size, err := n.volumes.Used(v.Name)
		if err != nil { // it has gone meanwhile
			continue
		}
		users := int64(len(n.volumeUsers(v.Name)))
		item := n.describeVolume(v)
		item.UsageData = &mobyvolume.UsageData{Size: size, RefCount: users}
		usage.Items = append(usage.Items, item)
		usage.TotalSize += size
		if users > 0 {
			usage.ActiveCount++
		} else {
			usage.Reclaimable += size
		}
	}
	usage.TotalCount = int64(len(usage.Items))
	return usage
}
