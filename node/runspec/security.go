package runspec

import (
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/container"
)

// security is what --security-opt says.
type security struct {
	noNewPrivileges bool
	writableCgroups bool
	privileged      bool
	seccomp         string // a profile in JSON; "", "builtin" or "unconfined"
}

// parseSecurity reads HostConfig.SecurityOpt: no-new-privileges, writable-cgroups, seccomp, and the options of
// AppArmor and SELinux, which the guest's kernel has not: their "off" is accepted, all else refused.
func parseSecurity(hc *container.HostConfig) (security, error) {
	s := security{privileged: hc.Privileged, writableCgroups: hc.Privileged}
	for _, opt := range hc.SecurityOpt {
		key, value, ok := strings.Cut(opt, "=")
		if !ok {
			// The separator docker deprecated, still sent by old clients.
			key, value, ok = strings.Cut(opt, ":")
		}
		if !ok {
			switch opt {
			case "no-new-privileges", "writable-cgroups":
				key, value = opt, "true"
			case "disable":
				key, value = "label", "disable"
			default:
				return s, invalid("invalid --security-opt 1: %q", opt)
			}
		}
		if err := s.set(key, value, opt); err != nil {
			return s, err
		}
	}
	return s, nil
}

// DefaultFilter tells whether a container has the seccomp filter that docker gives where nothing is said, or none.
func DefaultFilter(hc *container.HostConfig) bool {
	s, err := parseSecurity(hc)
	return err == nil && s.seccomp == ""
}

func (s *security) set(key, value, opt string) error {
	switch key {
	case "no-new-privileges", "writable-cgroups":
		on, err := strconv.ParseBool(value)
		if err != nil {
			return invalid("invalid --security-opt 2: %q", opt)
		}
		if key == "no-new-privileges" {
			s.noNewPrivileges = on
		} else {
			s.writableCgroups = on
		}
	case "seccomp":
		s.seccomp = value
	case "apparmor":
		if value != "unconfined" && value != "" {
			return unsupported("the AppArmor profile %q (--security-opt apparmor)", value)
		}
	case "label":
		if value != "disable" {
			return unsupported("the SELinux label %q (--security-opt label)", value)
		}
	default:
		return invalid("invalid --security-opt 2: %q", opt)
	}
	return nil
}
