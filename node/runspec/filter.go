package runspec

import (
	"crypto/sha256"
	"errors"
	"strconv"
	"strings"
	"sync"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/cradlevm/cradle/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Filters remembers compiled seccomp filters by what they were made from: to compile one takes longer than all the rest of
// a request, and nearly all containers, and all of their execs, have the same. A nil *Filters remembers nothing. Its
// methods may be called from any goroutine.
type Filters struct {
	mu   sync.Mutex
	made map[[sha256.Size]byte][]byte
}

// maxFilters is how many are remembered; at some 10 KiB each.
const maxFilters = 64

// NewFilters returns an empty memory.
func NewFilters() *Filters { return &Filters{made: map[[sha256.Size]byte][]byte{}} }

// get returns what was made from the inputs, or has it made. Failures are not remembered.
func (f *Filters) get(make func() ([]byte, error), inputs ...string) ([]byte, error) {
	if f == nil {
		return make()
	}
	key := sha256.Sum256([]byte(strings.Join(inputs, "\x00")))
	f.mu.Lock()
	program, ok := f.made[key]
	f.mu.Unlock()
	if ok {
		return program, nil
	}
	program, err := make()
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.made) >= maxFilters { // profiles by the dozen: whoever makes them up does not use them again
		clear(f.made)
	}
	f.made[key] = program
	return program, nil
}

// filter is the compiled seccomp program for a process with these capabilities in its bounding set; nil is none. It may
// be another request's as well, and must not be changed. A privileged container has one only when the client gives a
// profile, as with docker.
func (s *security) filter(caps []string, o Settings) ([]byte, error) {
	return o.Filters.get(func() ([]byte, error) { return s.compile(caps, o.Arch) },
		o.Arch, strconv.FormatBool(s.privileged), s.seccomp, strings.Join(caps, ","))
}

func (s *security) compile(caps []string, arch string) ([]byte, error) {
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
