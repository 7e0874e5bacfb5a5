package seccomp

import (
	"encoding/json"
	"fmt"
	"slices"

	moby "github.com/moby/profiles/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

//go:generate go run gen.go -o tables_gen.go

// Bounds of a profile that a client sends.
const (
	maxProfile = 1 << 20 // bytes of JSON; docker's default has 20 KiB
	maxRules   = 4096
	maxNames   = 65536 // of all rules together
)

// Default is docker's default profile for a guest of arch and a container with these capabilities ("CAP_…"). The profile
// is the moby project's own, github.com/moby/profiles/seccomp, which needs nothing that is not here anyway; the copy in
// containerd/v2/contrib brings gRPC, and follows the building machine's architecture and kernel instead of the guest's.
func Default(caps []string, arch string) *specs.LinuxSeccomp {
	// The profile is good by construction, so that resolving it cannot fail; a test says so.
	p, _ := resolve(moby.DefaultProfile(), caps, arch)
	return p
}

// Parse reads a profile as docker takes it with --security-opt seccomp=<json>: an OCI profile, whose rules may depend on
// capabilities, architecture and kernel version. nil means that the profile asks for no filter at all. The guest's kernel
// counts as 6.1, the oldest that cradle boots. Errors: ErrInvalid.
func Parse(data []byte, caps []string, arch string) (*specs.LinuxSeccomp, error) {
	if len(data) > maxProfile {
		return nil, fmt.Errorf("%w: %d bytes, %d at most", ErrInvalid, len(data), maxProfile)
	}
	var p moby.Seccomp
	if err := json.Unmarshal(data, &p); err != nil {
		return nil, fmt.Errorf("%w: decoding seccomp profile failed: %v", ErrInvalid, err)
	}
	if p.DefaultAction == "" && len(p.Syscalls) == 0 {
		return nil, nil
	}
	return resolve(&p, caps, arch)
}

// resolve settles what of p depends on the container and its machine.
func resolve(p *moby.Seccomp, caps []string, arch string) (*specs.LinuxSeccomp, error) {
	if len(p.Architectures) != 0 && len(p.ArchMap) != 0 {
		return nil, fmt.Errorf("%w: both 'architectures' and 'archMap' are specified, use either of them", ErrInvalid)
	}
	out := p.LinuxSeccomp
	out.Architectures = slices.Clone(p.Architectures)
	out.Syscalls = nil
	if native, err := abis(arch); err == nil {
		for _, a := range p.ArchMap {
			if a.Arch == native[0].arch {
				out.Architectures = append([]specs.Arch{a.Arch}, a.SubArches...)
				break
			}
		}
	}
	if len(p.Syscalls) > maxRules {
		return nil, fmt.Errorf("%w: %d rules, %d at most", ErrInvalid, len(p.Syscalls), maxRules)
	}
	names := 0
	for _, s := range p.Syscalls {
		if s == nil {
			return nil, fmt.Errorf("%w: a rule is null", ErrInvalid)
		}
		r := s.LinuxSyscall
		//lint:ignore SA1019 profiles written for old dockers have it
		if old := s.Name; old != "" {
			if len(r.Names) != 0 {
				return nil, fmt.Errorf("%w: both 'name' and 'names' are specified, use either of them", ErrInvalid)
			}
			r.Names = []string{old}
		}
		if !applies(s, caps, arch) {
			continue
		}
		if names += len(r.Names); names > maxNames {
			return nil, fmt.Errorf("%w: more than %d names", ErrInvalid, maxNames)
		}
		out.Syscalls = append(out.Syscalls, r)
	}
	return &out, nil
}

// applies: excluded by any capability it names, included only with all of them.
func applies(s *moby.Syscall, caps []string, arch string) bool {
	has := func(c string) bool { return slices.Contains(caps, c) }
	if x := s.Excludes; x != nil {
		if slices.Contains(x.Arches, arch) || slices.ContainsFunc(x.Caps, has) || x.MinKernel != nil && kernelHas(*x.MinKernel) {
			return false
		}
	}
	if i := s.Includes; i != nil {
		if len(i.Arches) > 0 && !slices.Contains(i.Arches, arch) {
			return false
		}
		if slices.ContainsFunc(i.Caps, func(c string) bool { return !has(c) }) {
			return false
		}
		if i.MinKernel != nil && !kernelHas(*i.MinKernel) {
			return false
		}
	}
	return true
}

// kernelHas compares with the oldest kernel that a guest runs.
func kernelHas(v moby.KernelVersion) bool {
	const kernel, major = 6, 1
	return v.Kernel < kernel || v.Kernel == kernel && v.Major <= major
}
