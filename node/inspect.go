package node

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/platforms"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/storage"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/cradlevm/cradle/api"
	"github.com/cradlevm/cradle/dockerapi"
	"github.com/cradlevm/cradle/image"
)

// ContainerInspect implements dockerapi.Backend.
func (n *Node) ContainerInspect(_ context.Context, name string, size bool) (container.InspectResponse, error) {
	c, err := n.find(name)
	if err != nil {
		return container.InspectResponse{}, err
	}
	c.mu.Lock()
	r, run, health := c.rec, c.run, c.health
	c.mu.Unlock()
	path, args := "", []string{}
	if words := append(append([]string{}, r.Config.Entrypoint...), r.Config.Cmd...); len(words) > 0 {
		path, args = words[0], words[1:]
	}
	state := &container.State{
		Status: r.Status, Running: active(r.Status), Restarting: r.Status == container.StateRestarting, Paused: r.Status == container.StatePaused,
		OOMKilled: r.OOMKilled, ExitCode: r.ExitCode, Error: r.Error,
		StartedAt: formatTime(r.Started), FinishedAt: formatTime(r.Finished), Health: copyHealth(health),
	}
	if run != nil && up(r.Status) {
		state.Pid = run.vm.PID()
	}
	logPath := ""
	if r.HostConfig.LogConfig.Type != "none" {
		logPath = filepath.Join(c.dir(), "log")
	}
	out := container.InspectResponse{
		ID: r.ID, Created: formatTime(r.Created), Path: path, Args: args, State: state, Image: r.ImageID,
		LogPath: logPath, Name: "/" + r.Name, RestartCount: r.RestartCount, Driver: "erofs", Platform: r.Platform,
		HostConfig: &r.HostConfig, Config: &r.Config, ExecIDs: c.execIDs(), Mounts: c.mounts(r),
		GraphDriver: &storage.DriverData{Name: "erofs", Data: map[string]string{"Scratch": filepath.Join(c.dir(), "scratch.ext4")}},
		NetworkSettings: &container.NetworkSettings{
			Ports: portsOf(r), Networks: endpointsOf(r),
		},
	}
	if size {
		rw := c.diskBytes()
		root := rw
		if img, _, err := c.image(r); err == nil {
			root += img.Size
		}
		out.SizeRw, out.SizeRootFs = &rw, &root
	}
	return out, nil
}

// execIDs lists the execs that have not ended, be it that they have not begun.
func (c *ctr) execIDs() []string {
	var ids []string
	for _, e := range c.listExecs() {
		if !e.hasEnded() {
			ids = append(ids, e.id)
		}
	}
	return ids
}

// mounts lists named volumes and the image's, which live on the container's own disk.
func (c *ctr) mounts(r record) []container.MountPoint {
	out := []container.MountPoint{}
	named := map[string]bool{} // by path
	for _, v := range r.namedVolumes() {
		named[v.Path] = true
		out = append(out, container.MountPoint{
			Type: mount.TypeVolume, Name: v.Name, Source: c.node.volumes.Disk(v.Name), Destination: v.Path, Driver: "local", RW: !v.ReadOnly,
		})
	}
	for _, b := range r.fileBinds() {
		named[b.Path] = true
		out = append(out, container.MountPoint{
			Type: mount.TypeBind, Source: b.Source, Destination: b.Path, Mode: "ro", Propagation: mount.PropagationRPrivate,
		})
	}
	for path := range r.Config.Volumes {
		if named[path] {
			continue
		}
		out = append(out, container.MountPoint{
			Type: mount.TypeVolume, Destination: path, Driver: "local", RW: true,
			Source: filepath.Join(c.dir(), "scratch.ext4"),
		})
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Destination < out[j].Destination })
	return out
}

// diskBytes is what the container's writable disk takes on the host.
func (c *ctr) diskBytes() int64 {
	fi, err := os.Stat(filepath.Join(c.dir(), "scratch.ext4"))
	if err != nil {
		return 0
	}
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		return st.Blocks * 512
	}
	return fi.Size()
}

// ContainerTop implements dockerapi.Backend. The guest's process ids are shown.
func (n *Node) ContainerTop(ctx context.Context, name, psArgs string) (container.TopResponse, error) {
	c, err := n.find(name)
	if err != nil {
		return container.TopResponse{}, err
	}
	r, paused, err := c.currentPaused()
	if err != nil {
		return container.TopResponse{}, err
	}
	if paused {
		return container.TopResponse{}, conflict("container %s is paused, unpause the container before top", c.id)
	}
	layout, err := psLayout(psArgs)
	if err != nil {
		return container.TopResponse{}, err
	}
	list, err := r.vm.Processes(ctx, c.id)
	if err != nil {
		return container.TopResponse{}, err
	}
	out := container.TopResponse{Processes: [][]string{}}
	for _, column := range layout {
		out.Titles = append(out.Titles, column.title)
	}
	for _, p := range list {
		var row []string
		for _, column := range layout {
			row = append(row, column.value(p))
		}
		out.Processes = append(out.Processes, row)
	}
	return out, nil
}

// ContainerPrune implements dockerapi.Backend.
func (n *Node) ContainerPrune(ctx context.Context, filters dockerapi.Filters) (container.PruneReport, error) {
	if err := knownFilters(filters, "label", "until", "label!"); err != nil {
		return container.PruneReport{}, err
	}
	until, err := pruneUntil(filters)
	if err != nil {
		return container.PruneReport{}, err
	}
	var report container.PruneReport
	for _, c := range n.all() {
		r := c.snapshot()
		// What is hibernated goes on some day, and what is being cloned at once.
		if active(r.Status) || r.Hibernated || r.Cloning || !matchesLabels(r.Config.Labels, filters["label"]) || (!until.IsZero() && !r.Created.Before(until)) {
			continue
		}
		if len(filters["label!"]) > 0 && matchesLabels(r.Config.Labels, filters["label!"]) {
			continue
		}
		bytes := c.diskBytes()
		if err := n.ContainerRemove(ctx, c.id, false, true); err != nil {
			continue // started or removed meanwhile: not ours to prune any more
		}
		report.ContainersDeleted = append(report.ContainersDeleted, c.id)
		report.SpaceReclaimed += uint64(bytes)
	}
	n.pruned(events.ContainerEventType, report.SpaceReclaimed)
	return report, nil
}

// pruned tells of a prune, whether or not it found anything.
func (n *Node) pruned(kind events.Type, reclaimed uint64) {
	n.events.add(kind, events.ActionPrune, "", map[string]string{"reclaimed": strconv.FormatUint(reclaimed, 10)})
}

// pruneUntil reads the "until" filter: a duration back from now, a unix time, or RFC 3339.
func pruneUntil(filters dockerapi.Filters) (time.Time, error) {
	if len(filters["until"]) > 1 {
		return time.Time{}, invalid("more than one until filter specified")
	}
	for v := range filters["until"] {
		if d, err := time.ParseDuration(v); err == nil {
			return time.Now().Add(-d), nil
		}
		if t, err := time.Parse(time.RFC3339, v); err == nil {
			return t, nil
		}
		if s, err := strconv.ParseInt(v, 10, 64); err == nil {
			return time.Unix(s, 0), nil
		}
		return time.Time{}, invalid("invalid until filter %q: neither a duration nor a time", v)
	}
	return time.Time{}, nil
}

// statsInterval is how often a stats stream has a sample; docker's is the same.
const statsInterval = time.Second

// ContainerStats implements dockerapi.Backend: the guest's own account.
func (n *Node) ContainerStats(ctx context.Context, name string, stream, oneShot bool, send func(container.StatsResponse) error) error {
	c, err := n.find(name)
	if err != nil {
		return err
	}
	var last container.StatsResponse
	for first := true; ; first = false {
		s, err := c.sample(ctx)
		if err != nil {
			return err
		}
		if first && !stream && !oneShot && !s.Read.IsZero() {
			// Docker's single sample has a predecessor to make rates from.
			last = s
			if !sleep(ctx, statsInterval) {
				return nil
			}
			if s, err = c.sample(ctx); err != nil {
				return err
			}
		}
		s.PreRead, s.PreCPUStats = last.Read, last.CPUStats
		last = s
		if err := send(s); err != nil || !stream {
			return err
		}
		if !sleep(ctx, statsInterval) || n.ctx.Err() != nil {
			return nil
		}
	}
}

func sleep(ctx context.Context, d time.Duration) bool {
	return waitFor(ctx, nil, d) == errTimeout
}

// sample reads the guest's counters; a container that does not run has none.
func (c *ctr) sample(ctx context.Context) (container.StatsResponse, error) {
	rec := c.snapshot()
	out := container.StatsResponse{ID: rec.ID, Name: "/" + rec.Name, OSType: "linux"}
	r, err := c.current()
	if err != nil || rec.Status == container.StatePaused { // a paused guest answers nothing
		return out, nil
	}
	s, err := c.account(ctx, r)
	if err != nil {
		return out, fmt.Errorf("stats of container %s: %w", c.id, err)
	}
	out.Read = time.Now()
	out.CPUStats = container.CPUStats{
		CPUUsage:    container.CPUUsage{TotalUsage: s.CPUNanos, UsageInUsermode: s.CPUUserNanos, UsageInKernelmode: s.CPUSystemNanos},
		SystemUsage: uint64(max(0, time.Since(rec.Started))) * uint64(max(1, s.OnlineCPUs)),
		OnlineCPUs:  uint32(max(1, s.OnlineCPUs)),
	}
	limit := s.MemoryLimit
	if machine := c.node.machineOf(rec); limit == 0 && machine != nil {
		limit = uint64(machine.VM.Memory)
	}
	out.MemoryStats = container.MemoryStats{Usage: s.MemoryBytes, Limit: limit, Stats: map[string]uint64{"inactive_file": s.MemoryFile}}
	out.Networks = c.node.networkStats(rec, s)
	out.PidsStats = container.PidsStats{Current: s.Pids, Limit: s.PidsLimit}
	out.BlkioStats.IoServiceBytesRecursive = []container.BlkioStatEntry{
		{Op: "read", Value: s.BlockReadBytes}, {Op: "write", Value: s.BlockWriteBytes},
	}
	return out, nil
}

// networkStats is what has passed a container's interfaces, and what was dropped in front of them. The guest counts them
// together; docker's clients add them up anyway.
func (n *Node) networkStats(rec record, s api.StatsResult) map[string]container.NetworkStats {
	if len(rec.Links) == 0 {
		return nil
	}
	out := container.NetworkStats{RxBytes: s.NetRxBytes, TxBytes: s.NetTxBytes}
	for _, l := range rec.Links {
		if l.Endpoint == nil {
			continue
		}
		if from, to, err := n.networks.Counters(l.Endpoint.ID); err == nil { // else it is just going
			out.TxPackets, out.RxPackets = out.TxPackets+from.Packets, out.RxPackets+to.Packets
			out.TxDropped, out.RxDropped = out.TxDropped+from.Drops(), out.RxDropped+to.Drops()
		}
	}
	return map[string]container.NetworkStats{"eth0": out}
}

// matchesPlatform reports whether the image can serve where a client asked for want.
func matchesPlatform(want ocispec.Platform, img image.Image) bool {
	return platforms.OnlyStrict(want).Match(ocispec.Platform{
		OS: img.Config.OS, Architecture: img.Config.Architecture, Variant: img.Config.Variant,
	})
}

// checkPlatform refuses an image, found by ref, that is for another platform than the one asked for; nil is any. The
// class is "not found": clients then pull the one they want.
func checkPlatform(ref string, want *ocispec.Platform, img image.Image) error {
	if want == nil || matchesPlatform(*want, img) {
		return nil
	}
	return notFound("image with reference %s was found but its platform (%s) does not match the specified platform (%s)",
		ref, platformOf(img), formatPlatform(*want))
}

func formatPlatform(p ocispec.Platform) string { return strings.TrimSuffix(platforms.Format(p), "/") }
