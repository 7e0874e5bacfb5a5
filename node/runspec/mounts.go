package runspec

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// DefaultShmSize is the size of /dev/shm when the client names none, bytes.
const DefaultShmSize = 64 << 20

// mountsOf are docker's default mounts and the container's tmpfs mounts, parents before children.
func mountsOf(c Container, sec security) ([]specs.Mount, error) {
	user, err := tmpfsMounts(c.Host)
	if err != nil {
		return nil, err
	}
	taken := map[string]bool{}
	for _, m := range user {
		taken[m.Destination] = true
	}
	var out []specs.Mount
	for _, m := range defaultMounts(c.Host) {
		// A mount of the client's replaces docker's, and one over /dev hides all of docker's below it.
		if taken[m.Destination] || taken["/dev"] && strings.HasPrefix(m.Destination, "/dev/") {
			continue
		}
		if m.Destination == "/dev/shm" && c.Host.IpcMode.IsNone() {
			continue
		}
		writable := c.Host.Privileged && m.Destination == "/sys" || sec.writableCgroups && m.Type == "cgroup"
		if writable {
			m.Options = slices.DeleteFunc(m.Options, func(o string) bool { return o == "ro" })
		}
		out = append(out, m)
	}
	return append(out, user...), nil
}

func defaultMounts(hc *container.HostConfig) []specs.Mount {
	shm := hc.ShmSize
	if shm == 0 {
		shm = DefaultShmSize
	}
	return []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"ro", "nosuid", "noexec", "nodev"}},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=" + strconv.FormatInt(shm, 10)}},
	}
}

// tmpfsMounts are --tmpfs and --mount type=tmpfs, sorted by path.
func tmpfsMounts(hc *container.HostConfig) ([]specs.Mount, error) {
	wanted := map[string][]string{}
	for dest, data := range hc.Tmpfs {
		if err := checkDestination(dest); err != nil {
			return nil, err
		}
		var opts []string
		if data != "" {
			opts = strings.Split(data, ",")
		}
		wanted[path.Clean(dest)] = opts
	}
	for _, m := range hc.Mounts {
		if m.Type != mount.TypeTmpfs {
			continue
		}
		if err := checkDestination(m.Target); err != nil {
			return nil, err
		}
		dest := path.Clean(m.Target)
		if _, twice := wanted[dest]; twice {
			return nil, invalid("Duplicate mount point: %s", dest)
		}
		opts, err := tmpfsOptions(m)
		if err != nil {
			return nil, err
		}
		wanted[dest] = opts
	}
	var out []specs.Mount
	for _, dest := range slices.Sorted(maps.Keys(wanted)) {
		opts, err := mergeTmpfs(append([]string{"noexec", "nosuid", "nodev"}, wanted[dest]...))
		if err != nil {
			return nil, err
		}
		out = append(out, specs.Mount{Destination: dest, Type: "tmpfs", Source: "tmpfs", Options: opts})
	}
	return out, nil
}

// tmpfsOptions spells a --mount type=tmpfs as mount options.
func tmpfsOptions(m mount.Mount) ([]string, error) {
	if m.Source != "" {
		return nil, invalid("invalid mount config for type \"tmpfs\": field Source must not be specified")
	}
	if m.BindOptions != nil || m.VolumeOptions != nil || m.ImageOptions != nil || m.ClusterOptions != nil {
		return nil, invalid("invalid mount config for type \"tmpfs\": options of another mount type")
	}
	var opts []string
	if m.ReadOnly {
		opts = append(opts, "ro")
	}
	o := m.TmpfsOptions
	if o == nil {
		return opts, nil
	}
	if o.SizeBytes < 0 {
		return nil, invalid("invalid mount config for type \"tmpfs\": negative size")
	}
	if o.SizeBytes != 0 {
		opts = append(opts, "size="+strconv.FormatInt(o.SizeBytes, 10))
	}
	if o.Mode != 0 {
		opts = append(opts, fmt.Sprintf("mode=%o", o.Mode))
	}
	for _, words := range o.Options {
		if len(words) != 1 || words[0] != "exec" && words[0] != "noexec" {
			return nil, invalid("invalid option: %s", strings.Join(words, "="))
		}
		opts = append(opts, words[0])
	}
	return opts, nil
}

// mergeTmpfs keeps the last word on every subject: "noexec,exec" is "exec", "size=1m,size=2m" is "size=2m".
func mergeTmpfs(opts []string) ([]string, error) {
	opposite := map[string]string{
		"ro": "rw", "exec": "noexec", "suid": "nosuid", "dev": "nodev", "sync": "async", "atime": "noatime",
		"diratime": "nodiratime", "strictatime": "relatime",
	}
	for a, b := range maps.Clone(opposite) {
		opposite[b] = a
	}
	last := map[string]int{} // subject → index of its last mention
	subject := func(o string) (string, bool) {
		key, _, valued := strings.Cut(o, "=")
		if valued {
			return key, slices.Contains([]string{"size", "mode", "uid", "gid", "nr_inodes", "nr_blocks", "mpol", "huge"}, key)
		}
		b, ok := opposite[o]
		return min(o, b), ok
	}
	for i, o := range opts {
		s, ok := subject(o)
		if !ok || strings.ContainsRune(o, 0) {
			return nil, invalid("Invalid tmpfs option %q", o)
		}
		last[s] = i
	}
	var out []string
	for i, o := range opts {
		if s, _ := subject(o); last[s] == i {
			out = append(out, o)
		}
	}
	return out, nil
}

// checkDestination refuses a mount over the root or at a relative path.
func checkDestination(dest string) error {
	switch {
	case dest == "":
		return invalid("invalid mount config: field Target must not be empty")
	case strings.ContainsRune(dest, 0):
		return invalid("invalid mount path: it contains a zero byte")
	case !strings.HasPrefix(dest, "/"):
		return invalid("invalid mount path: '%s' mount path must be absolute", dest)
	case path.Clean(dest) == "/":
		return invalid("invalid specification: destination can't be '/'")
	}
	return nil
}

// volumesOf are the paths that become anonymous volumes: the image's and the client's -v PATH, and --mount
// type=volume without a name. A tmpfs at the same path goes first, as with docker.
func volumesOf(c Container) ([]string, error) {
	taken := map[string]bool{}
	tmpfs, err := tmpfsMounts(c.Host)
	if err != nil {
		return nil, err
	}
	for _, m := range tmpfs {
		taken[m.Destination] = true
	}
	named, err := NamedVolumes(c.Host)
	if err != nil {
		return nil, err
	}
	binds, err := FileBinds(c.Host)
	if err != nil {
		return nil, err
	}
	var paths []string
	for _, v := range named {
		paths = append(paths, v.Path)
	}
	for _, b := range binds {
		paths = append(paths, b.Path)
	}
	for _, p := range paths {
		if taken[p] {
			return nil, invalid("Duplicate mount point: %s", p)
		}
		taken[p] = true
	}
	set := map[string]bool{}
	for dest := range c.Config.Volumes {
		if err := checkDestination(dest); err != nil {
			return nil, err
		}
		set[path.Clean(dest)] = true
	}
	for _, m := range c.Host.Mounts {
		if m.Type != mount.TypeVolume || m.Source != "" {
			continue
		}
		if err := checkDestination(m.Target); err != nil {
			return nil, err
		}
		set[path.Clean(m.Target)] = true
	}
	maps.DeleteFunc(set, func(dest string, _ bool) bool { return taken[dest] })
	return slices.Sorted(maps.Keys(set)), nil
}

// maskedPaths are hidden from the container: the client's list, else docker's.
func maskedPaths(hc *container.HostConfig) []string {
	if hc.MaskedPaths != nil {
		return slices.Clone(hc.MaskedPaths)
	}
	if hc.Privileged {
		return nil
	}
	return []string{
		"/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
		"/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware",
		"/sys/devices/virtual/powercap",
	}
}

// readonlyPaths cannot be written by the container: the client's list, else docker's.
func readonlyPaths(hc *container.HostConfig) []string {
	if hc.ReadonlyPaths != nil {
		return slices.Clone(hc.ReadonlyPaths)
	}
	if hc.Privileged {
		return nil
	}
	return []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
}
