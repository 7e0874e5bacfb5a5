package node

import (
	"context"
	"os"
	"runtime"
	"strings"
	"time"

	"github.com/moby/moby/api/types/build"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/system"
	"golang.org/x/sys/unix"

	"github.com/cradlevm/cradle/dockerapi"
)

// Info implements dockerapi.Backend.
func (n *Node) Info(ctx context.Context) (system.Info, error) {
	accel, why := n.options.Driver.Accel(ctx)
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return system.Info{}, err
	}
	var mem unix.Sysinfo_t
	if err := unix.Sysinfo(&mem); err != nil {
		return system.Info{}, err
	}
	host, err := os.Hostname()
	if err != nil {
		return system.Info{}, err
	}
	info := system.Info{
		ID: "cradle-" + host, Name: host, ServerVersion: n.options.Version, SystemTime: time.Now().Format(time.RFC3339Nano),
		Driver: "erofs", DriverStatus: [][2]string{
			{"Accelerator", accel}, {"Accelerator reason", why}, {"Guest kernel", n.options.Guest.Release},
		},
		Plugins:     system.PluginsInfo{Volume: []string{"local"}, Network: []string{"null"}, Log: []string{"json-file", "local", "none"}},
		MemoryLimit: true, SwapLimit: true, CPUCfsPeriod: true, CPUCfsQuota: true, CPUShares: true, CPUSet: true, PidsLimit: true,
		LoggingDriver: "json-file", CgroupDriver: "cgroupfs", CgroupVersion: "2", NEventsListener: 0,
		KernelVersion: unix.ByteSliceToString(uts.Release[:]), OperatingSystem: operatingSystem(), OSType: "linux",
		Architecture: unix.ByteSliceToString(uts.Machine[:]), NCPU: runtime.NumCPU(), MemTotal: int64(mem.Totalram) * int64(mem.Unit),
		DockerRootDir: n.options.Root, IndexServerAddress: "https://index.docker.io/v1/", NGoroutines: runtime.NumGoroutine(),
		Runtimes:       map[string]system.RuntimeWithStatus{"cradle": {Runtime: system.Runtime{Path: "cradle"}}},
		DefaultRuntime: "cradle", Isolation: container.IsolationEmpty, LiveRestoreEnabled: true,
		SecurityOptions: []string{"name=seccomp,profile=builtin", "name=vm,accelerator=" + accel}, Warnings: []string{},
	}
	if os.Geteuid() != 0 {
		info.SecurityOptions = append(info.SecurityOptions, "name=rootless")
	}
	for _, c := range n.all() {
		info.Containers++
		switch c.snapshot().Status {
		case container.StateRunning:
			info.ContainersRunning++
		case container.StatePaused:
			info.ContainersPaused++
		default:
			info.ContainersStopped++
		}
	}
	images, err := n.options.Images.List()
	if err != nil {
		return system.Info{}, err
	}
	info.Images = len(images)
	return info, nil
}

// operatingSystem is the host's pretty name.
func operatingSystem() string {
	raw, err := os.ReadFile("/etc/os-release")
	if err != nil {
		return "Linux"
	}
	for _, line := range strings.Split(string(raw), "\n") {
		if v, ok := strings.CutPrefix(line, "PRETTY_NAME="); ok {
			return strings.Trim(v, `"`)
		}
	}
	return "Linux"
}

// Version implements dockerapi.Backend.
func (n *Node) Version(context.Context) (system.VersionResponse, error) {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return system.VersionResponse{}, err
	}
	v := system.VersionResponse{
		Version: n.options.Version, APIVersion: dockerapi.MaxAPIVersion, MinAPIVersion: dockerapi.MinAPIVersion, Os: "linux", Arch: runtime.GOARCH, GoVersion: runtime.Version(),
		KernelVersion: unix.ByteSliceToString(uts.Release[:]),
		Components: []system.ComponentVersion{
			{Name: "Engine", Version: n.options.Version, Details: map[string]string{
				"Os": "linux", "Arch": runtime.GOARCH, "GoVersion": runtime.Version(), "Experimental": "false",
				"ApiVersion": dockerapi.MaxAPIVersion, "MinAPIVersion": dockerapi.MinAPIVersion,
			}},
			{Name: "guest kernel", Version: n.options.Guest.Release},
		},
	}
	v.Platform.Name = "cradle"
	return v, nil
}

// DiskUsage implements dockerapi.Backend.
func (n *Node) DiskUsage(ctx context.Context) (system.DiskUsage, error) {
	containers, err := n.ContainerList(ctx, true, 0, true, nil)
	if err != nil {
		return system.DiskUsage{}, err
	}
	images, err := n.ImageList(ctx, true, nil)
	if err != nil {
		return system.DiskUsage{}, err
	}
	layers, err := n.options.Images.DiskUsage()
	if err != nil {
		return system.DiskUsage{}, err
	}
	cu := &container.DiskUsage{Items: containers, TotalCount: int64(len(containers))}
	for _, c := range containers {
		cu.TotalSize += c.SizeRw
		if up(c.State) {
			cu.ActiveCount++
		} else {
			cu.Reclaimable += c.SizeRw
		}
	}
	iu := &image.DiskUsage{Items: images, TotalCount: int64(len(images)), TotalSize: layers}
	for _, i := range images {
		if i.Containers > 0 {
			iu.ActiveCount++
		} else {
			iu.Reclaimable += i.Size
		}
	}
	iu.Reclaimable = min(iu.Reclaimable, layers)
	return system.DiskUsage{
		ContainerUsage: cu, ImageUsage: iu,
		VolumeUsage: n.volumeUsage(), BuildCacheUsage: &build.DiskUsage{Items: []build.CacheRecord{}},
	}, nil
}

var _ dockerapi.Backend = (*Node)(nil)
