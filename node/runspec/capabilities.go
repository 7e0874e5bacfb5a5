package runspec

import (
	"slices"
	"strings"

	"github.com/moby/moby/api/types/container"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// defaultCapabilities are what docker gives a container that asks for nothing.
func defaultCapabilities() []string {
	return []string{
		"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID",
		"CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL",
		"CAP_AUDIT_WRITE",
	}
}

// knownCapabilities are all capabilities of Linux 5.9 and later, by number.
func knownCapabilities() []string {
	return []string{
		"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID",
		"CAP_SETUID", "CAP_SETPCAP", "CAP_LINUX_IMMUTABLE", "CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST",
		"CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_IPC_LOCK", "CAP_IPC_OWNER", "CAP_SYS_MODULE", "CAP_SYS_RAWIO",
		"CAP_SYS_CHROOT", "CAP_SYS_PTRACE", "CAP_SYS_PACCT", "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_NICE",
		"CAP_SYS_RESOURCE", "CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_MKNOD", "CAP_LEASE", "CAP_AUDIT_WRITE",
		"CAP_AUDIT_CONTROL", "CAP_SETFCAP", "CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN", "CAP_SYSLOG", "CAP_WAKE_ALARM",
		"CAP_BLOCK_SUSPEND", "CAP_AUDIT_READ", "CAP_PERFMON", "CAP_BPF", "CAP_CHECKPOINT_RESTORE",
	}
}

const everyCapability = "ALL"

// capabilities are the container's: docker's default with --cap-add and --cap-drop, or all of them.
func capabilities(hc *container.HostConfig) (*specs.LinuxCapabilities, error) {
	add, err := capabilityNames(hc.CapAdd)
	if err != nil {
		return nil, invalid("invalid CapAdd: %v", err)
	}
	drop, err := capabilityNames(hc.CapDrop)
	if err != nil {
		return nil, invalid("invalid CapDrop: %v", err)
	}
	var set []string
	switch {
	case hc.Privileged:
		set = knownCapabilities()
	case slices.Contains(add, everyCapability):
		set = without(knownCapabilities(), drop)
	case slices.Contains(drop, everyCapability):
		set = add
	default:
		set = without(defaultCapabilities(), drop)
		for _, c := range add {
			if !slices.Contains(set, c) {
				set = append(set, c)
			}
		}
	}
	return capabilitySet(set), nil
}

// capabilityNames brings names to the form CAP_X, or ALL.
func capabilityNames(names []string) ([]string, error) {
	var out []string
	known := knownCapabilities()
	for _, n := range names {
		n = strings.ToUpper(n)
		if n != everyCapability {
			if !strings.HasPrefix(n, "CAP_") {
				n = "CAP_" + n
			}
			if !slices.Contains(known, n) {
				return nil, invalid("unknown capability: %q", n)
			}
		}
		if !slices.Contains(out, n) {
			out = append(out, n)
		}
	}
	return out, nil
}

func without(all, drop []string) []string {
	return slices.DeleteFunc(all, func(c string) bool { return slices.Contains(drop, c) })
}

// capabilitySet gives a process exactly set: nothing inheritable or ambient, as docker since CVE-2022-24769.
func capabilitySet(set []string) *specs.LinuxCapabilities {
	return &specs.LinuxCapabilities{Bounding: set, Effective: set, Permitted: set}
}
