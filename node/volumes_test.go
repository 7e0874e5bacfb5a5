package node

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	mobyvolume "github.com/moby/moby/api/types/volume"

	"github.com/cradlevm/cradle/dockerapi"
)

func withVolumes(binds ...string) func(*container.CreateRequest) {
	return func(r *container.CreateRequest) { r.HostConfig.Binds = binds }
}

// volumeNames are the volumes that a filter leaves.
func (h *house) volumeNames(key, value string) []string {
	h.t.Helper()
	filters := dockerapi.Filters{}
	if key != "" {
		filters[key] = map[string]bool{value: true}
	}
	list, err := h.VolumeList(context.Background(), filters)
	if err != nil {
		h.t.Fatal(err)
	}
	var names []string
	for _, v := range list {
		names = append(names, v.Name)
	}
	return names
}

// A volume comes with the container that names it, is lent to one at a time, and stays until it is removed.
func TestVolumes(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		ctx := context.Background()
		one := h.run("one", "sleep", withVolumes("data:/d", "more:/e:ro", "data:/f"))
		h.create("two", "sleep", withVolumes("data:/d"))
		m := h.machineOf(one)
		if got := m.Disks(); !slices.Equal(got, []string{"layer0", "scratch", "volume0", "volume1"}) {
			t.Errorf("disks %v", got)
		}
		if got := h.volumeNames("", ""); !slices.Equal(got, []string{"data", "more"}) {
			t.Errorf("volumes %v", got)
		}
		r, err := h.ContainerInspect(ctx, "one", false)
		if err != nil || len(r.Mounts) != 3 || r.Mounts[0].Name != "data" || r.Mounts[0].Destination != "/d" || !r.Mounts[0].RW || r.Mounts[1].RW {
			t.Errorf("mounts %+v, %v", r.Mounts, err)
		}
		for when := range 2 { // and with the next daemon
			if err := h.ContainerStart(ctx, "two"); !cerrdefs.IsConflict(err) || !strings.Contains(err.Error(), "volume data is in use by container one") {
				t.Errorf("%d: a second container: %v", when, err)
			}
			if err := h.VolumeRemove(ctx, "data", true); !cerrdefs.IsConflict(err) || !strings.Contains(err.Error(), "volume is in use") {
				t.Errorf("%d: removed: %v", when, err)
			}
			h.restart()
		}
		if _, err := h.ContainerClone(ctx, "one", CloneOptions{Count: 1}); !cerrdefs.IsConflict(err) {
			t.Errorf("a clone: %v", err)
		}
		if err := h.ContainerRemove(ctx, "one", true, true); err != nil {
			t.Fatal(err)
		}
		if m := h.driver.Running(); len(m) != 0 {
			t.Errorf("%d machines run", len(m))
		}
		h.start("two")
		if err := h.ContainerRemove(ctx, "two", true, true); err != nil {
			t.Fatal(err)
		}
		if got := h.volumeNames("dangling", "true"); !slices.Equal(got, []string{"data", "more"}) {
			t.Errorf("volumes in use by nobody: %v", got)
		}
		if err := h.VolumeRemove(ctx, "data", false); err != nil {
			t.Error(err)
		}
		if err := h.VolumeRemove(ctx, "data", false); !cerrdefs.IsNotFound(err) {
			t.Errorf("removed twice: %v", err)
		}
		if err := h.VolumeRemove(ctx, "data", true); err != nil {
			t.Errorf("removed by force: %v", err)
		}
	})
}

// What was written to a volume is on its disk before the machine ends, however that comes about.
func TestVolumesAreFlushed(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		ctx := context.Background()
		for name, end := range map[string]func(id string){
			"removed":  func(id string) { _ = h.ContainerRemove(ctx, id, true, false) },
			"killed":   func(id string) { _ = h.ContainerKill(ctx, id, "KILL"); h.torn(id) },
			"autokill": func(id string) { _ = h.ContainerKill(ctx, id, "KILL"); h.torn(id) },
			"paused":   func(id string) { _ = h.ContainerPause(ctx, id); _ = h.ContainerRemove(ctx, id, true, false) },
		} {
			id := h.run(name, "sleep", withVolumes("data:/d"), func(r *container.CreateRequest) { r.HostConfig.AutoRemove = name == "autokill" })
			m := h.machineOf(id)
			end(id)
			<-m.Done()
			if !m.Polite() {
				t.Errorf("%s: the machine was killed", name)
			}
			_ = h.ContainerRemove(ctx, id, true, false)
		}
	})
}

func TestVolumeAPI(t *testing.T) {
	h := newHouse(t)
	ctx := context.Background()
	v, err := h.VolumeCreate(ctx, mobyvolume.CreateRequest{Name: "labelled", Labels: map[string]string{"a": "b"}, DriverOpts: map[string]string{"size": "64m"}})
	if err != nil || v.Name != "labelled" || v.Driver != "local" || v.Labels["a"] != "b" {
		t.Fatalf("%+v, %v", v, err)
	}
	random, err := h.VolumeCreate(ctx, mobyvolume.CreateRequest{})
	if err != nil || len(random.Name) != 64 {
		t.Errorf("%+v, %v", random, err)
	}
	for _, r := range []mobyvolume.CreateRequest{
		{Name: "n", Driver: "nfs"}, {Name: "n", DriverOpts: map[string]string{"type": "none", "o": "bind", "device": "/srv"}},
		{Name: "n", DriverOpts: map[string]string{"o": "uid=1"}},
	} {
		if _, err := h.VolumeCreate(ctx, r); !cerrdefs.IsNotImplemented(err) {
			t.Errorf("%+v: %v", r, err)
		}
	}
	for _, r := range []mobyvolume.CreateRequest{{Name: "../n"}, {Name: "n", DriverOpts: map[string]string{"size": "1"}}} {
		if _, err := h.VolumeCreate(ctx, r); !cerrdefs.IsInvalidArgument(err) {
			t.Errorf("%+v: %v", r, err)
		}
	}
	for filter, want := range map[[2]string]int{
		{"name", "label"}: 1, {"label", "a=b"}: 1, {"label", "a=c"}: 0, {"driver", "local"}: 2, {"dangling", "0"}: 0,
	} {
		if got := h.volumeNames(filter[0], filter[1]); len(got) != want {
			t.Errorf("%v: %v", filter, got)
		}
	}
	if u := h.volumeUsage(); u.TotalCount != 2 || u.ActiveCount != 0 || u.TotalSize == 0 || u.Reclaimable != u.TotalSize {
		t.Errorf("%+v", u)
	}
	if report, err := h.VolumePrune(ctx, nil); err != nil || len(report.VolumesDeleted) != 0 {
		t.Errorf("anonymous ones only: %+v, %v", report, err)
	}
	h.create("user", "sleep", withVolumes("labelled:/d"))
	report, err := h.VolumePrune(ctx, dockerapi.Filters{"all": {"true": true}})
	if err != nil || !slices.Equal(report.VolumesDeleted, []string{random.Name}) || report.SpaceReclaimed == 0 {
		t.Errorf("%+v, %v", report, err)
	}
	var said []string
	ended, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	err = h.Events(ended, time.Unix(1, 0), time.Now(), dockerapi.Filters{"type": {"volume": true}, "volume": {random.Name: true}}, func(m events.Message) error {
		said = append(said, string(m.Action))
		return nil
	})
	if err != nil || !slices.Equal(said, []string{"create", "destroy"}) {
		t.Errorf("events %v, %v", said, err)
	}
}

// Who stops one container and starts another with its volume is not told that it is in use: the first one's machine is still being ended.
func TestVolumeIsReturned(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		ctx := context.Background()
		for _, name := range []string{"one", "two"} {
			h.create(name, "sleep", withVolumes("data:/d"))
		}
		for range 3 {
			for _, name := range []string{"one", "two"} {
				h.start(name)
				if err := h.ContainerStop(ctx, name, "KILL", nil); err != nil {
					t.Fatal(err)
				}
			}
		}
	})
}
