package runspec

import (
	"os"
	"path"
	"regexp"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/container"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// guestDevice is a device of the guest's kernel that a container may be given. The numbers are assigned for good in
// Linux's Documentation/admin-guide/devices.txt.
type guestDevice struct {
	path         string
	kind         string
	major, minor int64
	mode         os.FileMode // permissions that devtmpfs and udev give it
}

func guestDevices() []guestDevice {
	out := []guestDevice{
		{"/dev/fuse", "c", 10, 229, 0o666},
		{"/dev/net/tun", "c", 10, 200, 0o666},
		{"/dev/kmsg", "c", 1, 11, 0o644},
		{"/dev/loop-control", "c", 10, 237, 0o660},
	}
	for i := range int64(8) {
		out = append(out, guestDevice{"/dev/loop" + strconv.FormatInt(i, 10), "b", 7, i, 0o660})
	}
	return out
}

// baseDevices every container has, made by the agent; --device of one of them changes nothing.
func baseDevices() []guestDevice {
	return []guestDevice{
		{"/dev/null", "c", 1, 3, 0o666}, {"/dev/zero", "c", 1, 5, 0o666}, {"/dev/full", "c", 1, 7, 0o666}, {"/dev/random", "c", 1, 8, 0o666},
		{"/dev/urandom", "c", 1, 9, 0o666}, {"/dev/tty", "c", 5, 0, 0o666}, {"/dev/console", "c", 5, 1, 0o666}, {"/dev/ptmx", "c", 5, 2, 0o666},
		{"", "c", 136, -1, 0o666}, // pseudo terminals
	}
}

// devicesOf are the extra device nodes and the device rules. --device names a device of the host, which no machine
// has; those few that the guest's kernel has by itself (fuse, tun, loop, kmsg) are given, the others refused by name.
// A privileged container gets all of them and may use any number.
func devicesOf(hc *container.HostConfig) ([]specs.LinuxDevice, []specs.LinuxDeviceCgroup, error) {
	var nodes []specs.LinuxDevice
	add := func(d guestDevice, at string) {
		nodes = append(nodes, specs.LinuxDevice{Path: at, Type: d.kind, Major: d.major, Minor: d.minor, FileMode: &d.mode})
	}
	rules := []specs.LinuxDeviceCgroup{{Allow: hc.Privileged, Access: "rwm"}}
	if hc.Privileged {
		for _, d := range guestDevices() {
			add(d, d.path)
		}
	} else {
		for _, d := range baseDevices() {
			rules = append(rules, allow(d, "rwm"))
		}
		// Any container may make nodes (mknod), as with docker; using them is another matter.
		rules = append(rules, allow(guestDevice{kind: "c", major: -1, minor: -1}, "m"),
			allow(guestDevice{kind: "b", major: -1, minor: -1}, "m"))
	}
	for _, m := range hc.Devices {
		d, err := findDevice(m)
		if err != nil {
			return nil, nil, err
		}
		at := m.PathInContainer
		if at == "" {
			at = m.PathOnHost
		}
		if err := checkDestination(at); err != nil {
			return nil, nil, err
		}
		if at = path.Clean(at); !hc.Privileged || at != d.path {
			add(d, at)
		}
		if !hc.Privileged {
			rules = append(rules, allow(d, access(m)))
		}
	}
	for _, text := range hc.DeviceCgroupRules {
		r, err := deviceRule(text)
		if err != nil {
			return nil, nil, err
		}
		rules = append(rules, r)
	}
	return nodes, rules, nil
}

func access(m container.DeviceMapping) string {
	if m.CgroupPermissions == "" {
		return "rwm"
	}
	return m.CgroupPermissions
}

func findDevice(m container.DeviceMapping) (guestDevice, error) {
	if p := access(m); len(p) > 3 || strings.Trim(p, "rwm") != "" {
		return guestDevice{}, invalid("invalid device mode: %s", p)
	}
	for _, d := range append(guestDevices(), baseDevices()...) {
		if d.path != "" && d.path == path.Clean(m.PathOnHost) {
			return d, nil
		}
	}
	return guestDevice{}, unsupported("the host's device %s (--device): a virtual machine has its own devices; giving it one of the host's", m.PathOnHost)
}

// allow permits access to d; a negative number means any.
func allow(d guestDevice, access string) specs.LinuxDeviceCgroup {
	r := specs.LinuxDeviceCgroup{Allow: true, Type: d.kind, Access: access}
	if d.major >= 0 {
		r.Major = &d.major
	}
	if d.minor >= 0 {
		r.Minor = &d.minor
	}
	return r
}

// deviceRule parses --device-cgroup-rule: "c 10:200 rwm", with * for any number.
func deviceRule(text string) (specs.LinuxDeviceCgroup, error) {
	m := regexp.MustCompile(`^([acb]) ([0-9]+|\*):([0-9]+|\*) ([rwm]{1,3})$`).FindStringSubmatch(text)
	if m == nil {
		return specs.LinuxDeviceCgroup{}, invalid("invalid device cgroup rule format: '%s'", text)
	}
	d := guestDevice{kind: m[1], major: -1, minor: -1}
	for i, n := range []*int64{&d.major, &d.minor} {
		if m[2+i] == "*" {
			continue
		}
		v, err := strconv.ParseInt(m[2+i], 10, 32)
		if err != nil {
			return specs.LinuxDeviceCgroup{}, invalid("invalid device cgroup rule format: '%s'", text)
		}
		*n = v
	}
	return allow(d, m[4]), nil
}
