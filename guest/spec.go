package guest

import (
	"path"
	"slices"
	"strings"

	"github.com/cradlevm/cradle/api"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// refuse is one thing a spec may ask for and the agent does not do.
type refuse struct {
	asked bool
	name  string
}

func firstRefused(list []refuse) error {
	for _, r := range list {
		if r.asked {
			return api.Errorf(api.CodeUnsupported, "%s is not supported", r.name)
		}
	}
	return nil
}

// checkCreate looks at all of a request before anything is done for it.
func checkCreate(r *api.CreateRequest) error {
	if err := checkPrepare(r); err != nil {
		return err
	}
	return checkProcess(r.Spec.Process)
}

// checkPrepare is checkCreate for the half of a request that does not depend on who the container is.
func checkPrepare(r *api.CreateRequest) error {
	s := r.Spec
	if !validID(r.ID) {
		return api.Errorf(api.CodeInvalid, "container id %.40q is not 1 to 128 letters, digits, '.', '_' or '-'", r.ID)
	}
	if n := len(r.Rootfs.Layers); n < 1 || n > 500 {
		return api.Errorf(api.CodeInvalid, "%d layers, not 1 to 500", n)
	}
	disks := r.Rootfs.Layers[:len(r.Rootfs.Layers):len(r.Rootfs.Layers)]
	if r.Rootfs.Upper != nil {
		disks = append(disks, *r.Rootfs.Upper)
	}
	for _, v := range r.VolumeDisks {
		disks = append(disks, v.Disk)
	}
	for _, d := range disks {
		if d.FSType != "erofs" && d.FSType != "ext4" {
			return api.Errorf(api.CodeUnsupported, "filesystem type %.20q", d.FSType)
		}
	}
	if s == nil {
		return api.Errorf(api.CodeInvalid, "no spec")
	}
	if s.Linux == nil {
		s.Linux = &specs.Linux{}
	}
	for _, f := range r.Files {
		if !cleanPath(f.Path) || len(f.Data) > maxGiven || f.Mode&^0o7777 != 0 {
			return api.Errorf(api.CodeInvalid, "file %.80q", f.Path)
		}
	}
	volumes := slices.Clone(r.Volumes)
	for _, v := range r.VolumeDisks {
		volumes = append(volumes, v.Path)
	}
	for _, v := range volumes {
		if !cleanPath(v) || v == "/" {
			return api.Errorf(api.CodeInvalid, "volume %.80q", v)
		}
	}
	for _, m := range s.Mounts {
		if !path.IsAbs(m.Destination) {
			return api.Errorf(api.CodeInvalid, "mount destination %.80q is not absolute", m.Destination)
		}
	}
	return checkLinux(s)
}

// checkLinux refuses the container-wide fields of a spec that the agent would have to ignore.
func checkLinux(s *specs.Spec) error {
	l := s.Linux
	err := firstRefused([]refuse{
		{s.Hooks != nil, "hooks"},
		{s.Solaris != nil, "solaris"}, {s.Windows != nil, "windows"}, {s.VM != nil, "vm"}, {s.ZOS != nil, "zos"},
		{s.FreeBSD != nil, "freebsd"},
		{len(l.UIDMappings)+len(l.GIDMappings) > 0, "linux.uidMappings"},
		{len(l.NetDevices) > 0, "linux.netDevices"},
		{l.Seccomp != nil, "linux.seccomp (the host compiles it)"},
		{l.MountLabel != "", "linux.mountLabel"},
		{l.IntelRdt != nil, "linux.intelRdt"},
		{l.MemoryPolicy != nil, "linux.memoryPolicy"},
		{len(l.TimeOffsets) > 0, "linux.timeOffsets"},
		{l.Personality != nil && len(l.Personality.Flags) > 0, "linux.personality.flags"},
	})
	if err != nil {
		return err
	}
	for _, n := range l.Namespaces {
		switch {
		case n.Type == specs.UserNamespace || n.Type == specs.TimeNamespace:
			return api.Errorf(api.CodeUnsupported, "linux.namespaces: %s is not supported", n.Type)
		case n.Path != "":
			return api.Errorf(api.CodeUnsupported, "linux.namespaces: a path (%s) is not supported", n.Type)
		}
	}
	return nil
}

// checkProcess refuses what a process may not ask for.
func checkProcess(p *specs.Process) error {
	if p == nil || len(p.Args) == 0 || p.Args[0] == "" && len(p.Args) == 1 {
		return api.Errorf(api.CodeInvalid, "no command specified")
	}
	if p.Cwd != "" && !path.IsAbs(p.Cwd) {
		return api.Errorf(api.CodeInvalid, "cwd %.80q is not absolute", p.Cwd)
	}
	for _, list := range [][]string{p.Args, p.Env, {p.Cwd}} {
		for _, s := range list {
			if strings.IndexByte(s, 0) >= 0 {
				return api.Errorf(api.CodeInvalid, "a zero byte in %.40q", s)
			}
		}
	}
	return firstRefused([]refuse{
		{p.ApparmorProfile != "" && p.ApparmorProfile != "unconfined", "process.apparmorProfile"},
		{p.SelinuxLabel != "", "process.selinuxLabel"},
		{p.CommandLine != "", "process.commandLine"},
	})
}

// validID keeps ids fit to be file names.
func validID(id string) bool {
	if id == "" || len(id) > 128 || id[0] == '.' {
		return false
	}
	for _, c := range []byte(id) {
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '.' || c == '_' || c == '-') {
			return false
		}
	}
	return true
}

func cleanPath(p string) bool {
	return path.IsAbs(p) && path.Clean(p) == p && strings.IndexByte(p, 0) < 0
}
