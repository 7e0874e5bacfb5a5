package runspec

import (
	"errors"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/cradlevm/cradle/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// filter is the compiled seccomp program for a process with these capabilities in its bounding set; nil is none. A
// privileged container has one only when the client gives a profile, as with docker.
func (s *security) filter(caps []string, arch string) ([]byte, error) {
	var profile *specs.LinuxSeccomp
	switch s.seccomp {
	case "unconfined":
		return nil, nil
	case "builtin":
		profile = seccomp.Default(caps, arch)
	case "":
		if s.privileged {
			return nil, nil
		}
		profile = seccomp.Default(caps, arch)
	default:
		p, err := seccomp.Parse([]byte(s.seccomp), caps, arch)
		if err != nil {
			return nil, seccompError(err)
		}
		// An empty profile asks for no filter.
		if p == nil {
			return nil, nil
		}
		profile = p
	}
	program, err := seccomp.Compile(profile, arch)
	if err != nil {
		return nil, seccompError(err)
	}
	return program, nil
}

func seccompError(err error) error {
	if errors.Is(err, seccomp.ErrUnsupported) {
		return cerrdefs.ErrNotImplemented.WithMessage(err.Error())
	}
	return invalid("%v", err)
}
