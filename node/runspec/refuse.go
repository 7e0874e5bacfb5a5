package runspec

import (
	"slices"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
)

// RuntimeName is the one name that --runtime may have.
const RuntimeName = "cradle"

// refuse names the first thing in hc that docker does and cradle does not.
func refuse(hc *container.HostConfig) error {
	for _, r := range []struct {
		wanted bool
		what   string
	}{
		{len(hc.VolumesFrom) > 0, "volumes of another container (--volumes-from)"},
		{hc.VolumeDriver != "" && hc.VolumeDriver != "local", "the volume driver " + hc.VolumeDriver},
		{len(hc.Links) > 0 && !hc.NetworkMode.IsUserDefined(), "linking containers (--link) on the default network"},
		{hc.Cgroup != "", "the cgroup of another container"},
		{hc.CgroupParent != "", "a parent cgroup (--cgroup-parent)"},
		{len(hc.BlkioWeightDevice) > 0, "a block I/O weight by device (--blkio-weight-device)"},
		{len(hc.BlkioDeviceReadBps) > 0, "a read rate by device (--device-read-bps)"},
		{len(hc.BlkioDeviceWriteBps) > 0, "a write rate by device (--device-write-bps)"},
		{len(hc.BlkioDeviceReadIOps) > 0, "a read rate by device (--device-read-iops)"},
		{len(hc.BlkioDeviceWriteIOps) > 0, "a write rate by device (--device-write-iops)"},
		{hc.CPURealtimePeriod != 0, "a realtime period (--cpu-rt-period)"},
		{hc.CPURealtimeRuntime != 0, "a realtime runtime (--cpu-rt-runtime)"},
		{len(hc.DeviceRequests) > 0, "a request for devices of a driver (--gpus)"},
		{hc.CPUCount != 0, "a CPU count (--cpu-count, Windows only)"},
		{hc.CPUPercent != 0, "a CPU percentage (--cpu-percent, Windows only)"},
		{hc.IOMaximumIOps != 0, "a maximum of I/O operations (--io-maxiops, Windows only)"},
		{hc.IOMaximumBandwidth != 0, "a maximum I/O bandwidth (--io-maxbandwidth, Windows only)"},
	} {
		if r.wanted {
			return unsupported("%s", r.what)
		}
	}
	files, err := FileBinds(hc)
	if err != nil {
		return err
	}
	if err := refuseMounts(hc.Mounts); err != nil {
		return err
	}
	volumes, err := NamedVolumes(hc)
	if len(volumes) > 0 && hc.NetworkMode.IsContainer() {
		return unsupported("a named volume (%s) of a container that shares another's virtual machine", volumes[0].Name)
	}
	if err != nil {
		return err
	}
	for _, f := range files {
		if slices.ContainsFunc(volumes, func(v Volume) bool { return v.Path == f.Path }) {
			return invalid("Duplicate mount point: %s", f.Path)
		}
	}
	return nil
}

// refuseMounts lets tmpfs, volumes and bind mounts pass.
func refuseMounts(mounts []mount.Mount) error {
	for _, m := range mounts {
		if m.Consistency != "" && m.Consistency != mount.ConsistencyDefault {
			return unsupported("the consistency %q of mount %s", m.Consistency, m.Target)
		}
		switch m.Type {
		case mount.TypeTmpfs:
		case mount.TypeVolume:
			o := m.VolumeOptions
			switch {
			case m.Source == "" && m.ReadOnly:
				return unsupported("a read-only anonymous volume at %s", m.Target)
			case m.Source == "" && o != nil && (o.NoCopy || len(o.Labels) > 0):
				return unsupported("an option of the anonymous volume at %s", m.Target)
			case o != nil && o.Subpath != "":
				return unsupported("a directory of a volume (volume-subpath) at %s", m.Target)
			case o != nil && o.DriverConfig != nil && (len(o.DriverConfig.Options) > 0 || o.DriverConfig.Name != "" && o.DriverConfig.Name != "local"):
				return unsupported("a driver, or its options, of the volume at %s", m.Target)
			case m.BindOptions != nil || m.TmpfsOptions != nil || m.ImageOptions != nil || m.ClusterOptions != nil:
				return invalid("invalid mount config for type \"volume\": options of another mount type")
			}
		case mount.TypeBind: // FileBinds has looked at it
		case mount.TypeImage, mount.TypeCluster, mount.TypeNamedPipe:
			return unsupported("a mount of type %s (%s)", m.Type, m.Target)
		default:
			return invalid("mount type unknown: %q", m.Type)
		}
	}
	return nil
}

// checkModes refuses namespaces that are not the container's own: in a machine of its own there is no host and no
// other container to share one with.
func checkModes(hc *container.HostConfig) error {
	switch {
	case hc.IpcMode.IsHost() || hc.IpcMode.IsContainer():
		return unsupported("the IPC mode %q (--ipc)", hc.IpcMode)
	case !hc.IpcMode.Valid():
		return invalid("invalid IPC mode: %v", hc.IpcMode)
	case hc.PidMode.IsHost() || hc.PidMode.IsContainer():
		return unsupported("the PID mode %q (--pid)", hc.PidMode)
	case !hc.PidMode.Valid():
		return invalid("invalid PID mode: %v", hc.PidMode)
	case hc.UTSMode.IsHost():
		return unsupported("the UTS mode %q (--uts)", hc.UTSMode)
	case !hc.UTSMode.Valid():
		return invalid("invalid UTS mode: %v", hc.UTSMode)
	case hc.UsernsMode.IsHost():
		return unsupported("the user namespace mode %q (--userns)", hc.UsernsMode)
	case !hc.UsernsMode.Valid():
		return invalid("invalid userns mode: %v", hc.UsernsMode)
	case hc.CgroupnsMode.IsHost():
		return unsupported("the cgroup namespace mode %q (--cgroupns)", hc.CgroupnsMode)
	case !hc.CgroupnsMode.Valid():
		return invalid("invalid cgroup namespace mode: %v", hc.CgroupnsMode)
	case hc.NetworkMode.IsHost():
		return unsupported("the host's network (--network host)")
	case !hc.Isolation.IsDefault():
		return invalid("invalid isolation '%s' on linux", hc.Isolation)
	case hc.Runtime != "" && hc.Runtime != RuntimeName:
		return invalid("unknown or invalid runtime name: %s", hc.Runtime)
	case hc.ShmSize < 0:
		return invalid("SHM size can not be less than 0")
	case hc.OomScoreAdj < -1000 || hc.OomScoreAdj > 1000:
		return invalid("Invalid value %d, range for oom score adj is [-1000, 1000]", hc.OomScoreAdj)
	case hc.Umask != nil && *hc.Umask > 0o777:
		return invalid("invalid umask: %o", *hc.Umask)
	}
	return nil
}
