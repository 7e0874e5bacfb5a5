// Package runspec turns what a docker client asks for into what the guest's agent does: pure functions from
// docker's container.Config and container.HostConfig to api.CreateRequest, and from container.ExecCreateRequest to
// api.ExecRequest. It touches no file, no clock and no network.
//
// The way of a container through it:
//
//	Merge     the client's Config completed by the image's, as dockerd does at create
//	Prepare   Config and HostConfig checked and completed with docker's defaults: what inspect shows
//	VMSize    the machine it needs; ScratchSize, its writable disk; Log, its log
//	Create    the agent's request (all but the root filesystem); Exec, the request of one exec
//
// # What a microVM changes
//
// The container is alone in its machine, so its limits are kept twice: by the machine's size from outside and by the
// container's cgroup from inside. Any sysctl may be set, since the kernel is the container's own. "privileged" means
// everything the guest's kernel has, and nothing of the host. Sharing with the host or with another container (pid,
// ipc, uts, user, cgroup or network namespaces) does not exist and is refused by name.
//
// # Errors
//
// All errors carry a class of github.com/containerd/errdefs: ErrInvalidArgument, in docker's words where it has
// them, for what no docker would accept; ErrNotImplemented, naming the option, for what docker does and cradle does
// not. Every field of HostConfig is honoured, refused, or answered with a warning; a test walks the struct to see that
// none is passed over.
package runspec

import (
	"fmt"
	"slices"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/cradlevm/cradle/api"
	"github.com/moby/moby/api/types/container"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Settings are the node's own choices. The zero value of a field means the default.
type Settings struct {
	Arch      string   // of the guest, as in GOARCH; default amd64
	CPUs      int      // of a machine whose container has no CPU limit; default 1
	MaxCPUs   int      // the most one container may ask for, normally the host's CPUs; default 64
	Memory    int64    // of a machine whose container has no memory limit, bytes; default 512 MiB
	MaxMemory int64    // the most one machine may have, bytes; default 1 TiB
	Scratch   int64    // size of the writable disk without --storage-opt size, bytes; default 10 GiB
	Filters   *Filters // remembers what was compiled; nil compiles each time
}

func (s Settings) withDefaults() Settings {
	if s.Arch == "" {
		s.Arch = "amd64"
	}
	if s.CPUs <= 0 {
		s.CPUs = 1
	}
	if s.MaxCPUs <= 0 {
		s.MaxCPUs = 64
	}
	if s.Memory <= 0 {
		s.Memory = 512 << 20
	}
	if s.MaxMemory <= 0 {
		s.MaxMemory = 1 << 40
	}
	if s.Scratch <= 0 {
		s.Scratch = 10 << 30
	}
	return s
}

// Container is what requests are made from: an id and what Prepare returned.
type Container struct {
	ID     string
	Config *container.Config
	Host   *container.HostConfig
	// Net is how the container is found on its networks, once that is known.
	Net Addressing
}

// Create makes the agent's request for c; only Rootfs is left to the caller. Errors: ErrInvalidArgument,
// ErrNotImplemented; none when c went through Prepare with the same settings.
func Create(c Container, s Settings) (api.CreateRequest, error) {
	s = s.withDefaults()
	p, err := processOf(c)
	if err != nil {
		return api.CreateRequest{}, err
	}
	sec, err := parseSecurity(c.Host)
	if err != nil {
		return api.CreateRequest{}, err
	}
	filter, err := sec.filter(p.Capabilities.Bounding, s)
	if err != nil {
		return api.CreateRequest{}, err
	}
	mounts, err := mountsOf(c, sec)
	if err != nil {
		return api.CreateRequest{}, err
	}
	linux, err := linuxOf(c, s)
	if err != nil {
		return api.CreateRequest{}, err
	}
	files, err := Files(c)
	if err != nil {
		return api.CreateRequest{}, err
	}
	volumes, err := volumesOf(c)
	if err != nil {
		return api.CreateRequest{}, err
	}
	return api.CreateRequest{
		ID: c.ID,
		Spec: &specs.Spec{
			Version:     specs.Version,
			Process:     p,
			Root:        &specs.Root{Path: "rootfs", Readonly: c.Host.ReadonlyRootfs},
			Hostname:    c.Config.Hostname,
			Domainname:  c.Config.Domainname,
			Mounts:      mounts,
			Annotations: c.Host.Annotations,
			Linux:       linux,
		},
		User:      userOf(c.Config.User),
		GroupAdd:  slices.Clone(c.Host.GroupAdd),
		Seccomp:   filter,
		Files:     files,
		Volumes:   volumes,
		Init:      c.Host.Init != nil && *c.Host.Init,
		StdinOpen: c.Config.OpenStdin,
	}, nil
}

// processOf is the container's first process.
func processOf(c Container) (*specs.Process, error) {
	args := slices.Concat(c.Config.Entrypoint, c.Config.Cmd)
	if len(args) == 0 {
		return nil, invalid("no command specified")
	}
	caps, err := capabilities(c.Host)
	if err != nil {
		return nil, err
	}
	limits, err := rlimits(c.Host.Ulimits)
	if err != nil {
		return nil, err
	}
	sec, err := parseSecurity(c.Host)
	if err != nil {
		return nil, err
	}
	p := &specs.Process{
		Terminal:        c.Config.Tty,
		Args:            args,
		Env:             environment(c.Config, c.Config.Tty),
		Cwd:             workingDir(c.Config.WorkingDir),
		Capabilities:    caps,
		Rlimits:         limits,
		NoNewPrivileges: sec.noNewPrivileges,
		User:            specs.User{Umask: c.Host.Umask},
	}
	if c.Host.OomScoreAdj != 0 {
		score := c.Host.OomScoreAdj
		p.OOMScoreAdj = &score
	}
	if c.Config.Tty {
		p.ConsoleSize = consoleSize(c.Host.ConsoleSize)
	}
	return p, nil
}

// Exec makes the agent's request for one exec in c, as docker exec does: all that it leaves out, the seccomp filter
// included, is the container's, also of a privileged exec, of which docker changes only the capabilities. Errors:
// ErrInvalidArgument.
func Exec(c Container, exec string, r container.ExecCreateRequest) (api.ExecRequest, error) {
	if len(r.Cmd) == 0 {
		return api.ExecRequest{}, invalid("No exec command specified")
	}
	if err := checkEnv(r.Env); err != nil {
		return api.ExecRequest{}, err
	}
	asked := api.ExecRequest{ID: c.ID, Exec: exec, Args: slices.Clone(r.Cmd), Terminal: r.Tty, StdinOpen: r.AttachStdin}
	if len(r.Env) > 0 || r.Tty != c.Config.Tty {
		asked.Env = overrideEnv(environment(c.Config, r.Tty), r.Env)
	}
	if r.Tty && r.ConsoleSize != nil {
		asked.ConsoleSize = consoleSize(*r.ConsoleSize)
	}
	if r.WorkingDir != "" {
		asked.Cwd = workingDir(r.WorkingDir)
	}
	if r.Privileged {
		asked.Capabilities = capabilitySet(knownCapabilities())
	}
	if r.User != "" {
		asked.User = userOf(r.User)
	}
	return asked, nil
}

// userOf names root when nobody is named: the agent then looks root up in the image's /etc/passwd and /etc/group, so
// that it gets its home and supplementary groups as with docker.
func userOf(user string) string {
	if user == "" {
		return "0"
	}
	return user
}

// consoleSize turns docker's [height, width] into a box; nil when it says nothing.
func consoleSize(s [2]uint) *specs.Box {
	if s[0] == 0 && s[1] == 0 {
		return nil
	}
	return &specs.Box{Height: s[0], Width: s[1]}
}

// linuxOf is the Linux part of the spec.
func linuxOf(c Container, s Settings) (*specs.Linux, error) {
	resources, err := resourcesOf(c.Host, s)
	if err != nil {
		return nil, err
	}
	devices, rules, err := devicesOf(c.Host)
	if err != nil {
		return nil, err
	}
	resources.Devices = rules
	sysctl, err := sysctls(c.Host.Sysctls)
	if err != nil {
		return nil, err
	}
	return &specs.Linux{
		Sysctl:    sysctl,
		Resources: resources,
		// The network is the machine's own, which is the container's alone.
		Namespaces: []specs.LinuxNamespace{
			{Type: specs.MountNamespace},
			{Type: specs.PIDNamespace},
			{Type: specs.IPCNamespace},
			{Type: specs.UTSNamespace},
			{Type: specs.CgroupNamespace},
		},
		Devices:       devices,
		MaskedPaths:   maskedPaths(c.Host),
		ReadonlyPaths: readonlyPaths(c.Host),
	}, nil
}

// invalid is an ErrInvalidArgument in exactly these words.
func invalid(format string, args ...any) error {
	return cerrdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf(format, args...))
}

// unsupported is an ErrNotImplemented: "<what> is not supported", what naming the option.
func unsupported(format string, args ...any) error {
	return cerrdefs.ErrNotImplemented.WithMessage(fmt.Sprintf(format, args...) + " is not supported")
}
