package launch

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// capNames are the kernel's capabilities in the order of their numbers.
var capNames = [...]string{
	"CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP",
	"LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER",
	"SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE",
	"SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP",
	"MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF",
	"CHECKPOINT_RESTORE",
}

// CapSet is a set of capabilities by number.
type CapSet uint64

// AllCaps is every capability this package knows.
const AllCaps = CapSet(1<<len(capNames) - 1)

// ParseCaps turns names such as CAP_SYS_ADMIN into a set.
func ParseCaps(names []string) (CapSet, error) {
	var set CapSet
next:
	for _, name := range names {
		for i, n := range capNames {
			if len(name) == len(n)+4 && name[:4] == "CAP_" && name[4:] == n {
				set |= 1 << i
				continue next
			}
		}
		return 0, fmt.Errorf("unknown capability %.40q", name)
	}
	return set, nil
}

// Caps are a process's five sets.
type Caps struct{ Bounding, Effective, Permitted, Inheritable, Ambient CapSet }

// Confine takes from the calling thread's bounding set what is not in set, for good: what it starts from then on need not
// drop that itself (Spec.Confined), each capability by a system call that copies the process's credentials.
func Confine(set CapSet) error {
	for i := range capNames {
		if set&(1<<i) == 0 {
			if err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(i), 0, 0, 0); err != nil && err != unix.EINVAL {
				return fmt.Errorf("drop capability %s: %w", capNames[i], err)
			}
		}
	}
	return nil
}

// dropBounding removes from the bounding set what c does not have. A capability that the kernel does not know
// (EINVAL) is not there to be dropped.
func (p *program) dropBounding(c *Caps) {
	for i := range capNames {
		if c.Bounding&(1<<i) == 0 {
			p.try("drop capability", []unix.Errno{unix.EINVAL}, unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, uintptr(i))
		}
	}
}

// setCaps makes the sets the process's own; it runs after the user has been changed. The caller has no ambient capabilities.
func (p *program) setCaps(c *Caps) {
	head := &unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	data := make([]unix.CapUserData, 2)
	for i := range data {
		data[i] = unix.CapUserData{
			Effective:   uint32(c.Effective >> (32 * i)),
			Permitted:   uint32(c.Permitted >> (32 * i)),
			Inheritable: uint32(c.Inheritable >> (32 * i)),
		}
	}
	p.add("set capabilities", unix.SYS_CAPSET, hold(p, head), held(p, data))
	for i := range capNames {
		if c.Ambient&(1<<i) != 0 {
			p.add("raise ambient capability", unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, uintptr(i))
		}
	}
}
