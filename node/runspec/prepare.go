package runspec

import (
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/sys/signal"
)

// minMemory is the smallest --memory that docker accepts, bytes.
const minMemory = 6 * mib

// Prepare checks config (after Merge) and hc, refuses what cradle does not do, and completes copies of both with
// docker's defaults. The warnings are docker's, for what any docker on cgroup v2 would discard. hc may be nil.
// Errors: ErrInvalidArgument, ErrNotImplemented. What it returns, Create and Exec accept.
func Prepare(id string, config *container.Config, hc *container.HostConfig, s Settings) (Container, []string, error) {
	s = s.withDefaults()
	if config == nil {
		return Container{}, nil, invalid("config cannot be empty in order to create a container")
	}
	if hc == nil {
		hc = &container.HostConfig{}
	}
	c := Container{ID: id, Config: adaptConfig(id, config), Host: adaptHost(hc)}
	for _, check := range []func() error{
		func() error { return checkConfig(c.Config) },
		func() error { return refuse(c.Host) },
		func() error { return checkModes(c.Host) },
		func() error { return checkLimits(&c.Host.Resources, s) },
		func() error { return checkPolicies(c.Host) },
	} {
		if err := check(); err != nil {
			return Container{}, nil, err
		}
	}
	if _, err := Publications(c.Config, c.Host); err != nil {
		return Container{}, nil, err
	}
	if _, err := Log(c.Host); err != nil {
		return Container{}, nil, err
	}
	if _, err := LogDetails(c.Config, c.Host, LogNames{}); err != nil {
		return Container{}, nil, err
	}
	if _, err := ScratchSize(c.Host, s); err != nil {
		return Container{}, nil, err
	}
	if _, memory := VMSize(c.Host, s); memory > s.MaxMemory {
		return Container{}, nil, invalid("a memory limit of %d MiB needs a machine of %d MiB; the most here is %d MiB",
			c.Host.Memory>>20, memory>>20, s.MaxMemory>>20)
	}
	// The rest of the checks are those of making the request.
	if _, err := Create(c, s); err != nil {
		return Container{}, nil, err
	}
	warnings := discard(&c.Host.Resources)
	return c, warnings, nil
}

func adaptConfig(id string, config *container.Config) *container.Config {
	out := *config
	if out.Hostname == "" {
		out.Hostname = id[:min(12, len(id))]
	}
	if out.WorkingDir != "" && strings.HasPrefix(out.WorkingDir, "/") {
		out.WorkingDir = path.Clean(out.WorkingDir)
	}
	out.Labels = maps.Clone(out.Labels)
	return &out
}

// adaptHost fills in what docker fills in, so that inspect shows the settings in force.
func adaptHost(hc *container.HostConfig) *container.HostConfig {
	out := *hc
	if out.NetworkMode == "" {
		out.NetworkMode = "default"
	}
	if out.IpcMode == "" {
		out.IpcMode = container.IPCModePrivate
	}
	if out.CgroupnsMode == "" {
		out.CgroupnsMode = container.CgroupnsModePrivate
	}
	if out.RestartPolicy.Name == "" {
		out.RestartPolicy.Name = container.RestartPolicyDisabled
	}
	if out.LogConfig.Type == "" {
		out.LogConfig.Type = "json-file"
	}
	if out.LogConfig.Config == nil {
		out.LogConfig.Config = map[string]string{}
	}
	if out.Runtime == "" {
		out.Runtime = RuntimeName
	}
	if out.ShmSize == 0 {
		out.ShmSize = DefaultShmSize
	}
	if out.Memory > 0 && out.MemorySwap == 0 && out.Memory <= 1<<61 {
		out.MemorySwap = 2 * out.Memory
	}
	// The client's -1 and 0 of these two say nothing.
	if m := out.MemorySwappiness; m != nil && *m == -1 {
		out.MemorySwappiness = nil
	}
	if p := out.PidsLimit; p != nil && *p <= 0 {
		out.PidsLimit = nil
	}
	// Paths of a privileged container: empty lists, not null, is what docker shows.
	out.MaskedPaths = slices.Clone(maskedPaths(&out))
	out.ReadonlyPaths = slices.Clone(readonlyPaths(&out))
	if out.MaskedPaths == nil {
		out.MaskedPaths = []string{}
	}
	if out.ReadonlyPaths == nil {
		out.ReadonlyPaths = []string{}
	}
	return &out
}

func checkConfig(config *container.Config) error {
	if h := config.Hostname; len(h) > 64 || !printable(h) || strings.Contains(h, "/") {
		return invalid("invalid hostname format: %q", h)
	}
	if d := config.Domainname; d != "" && (len(d) > 64 || !printable(d)) {
		return invalid("invalid domainname format: %q", d)
	}
	if wd := config.WorkingDir; wd != "" && (wd[0] != '/' || strings.ContainsRune(wd, 0)) {
		return invalid("the working directory '%s' is invalid, it needs to be an absolute path", wd)
	}
	if config.StopSignal != "" {
		if _, err := signal.ParseSignal(config.StopSignal); err != nil {
			return invalid("%v", err)
		}
	}
	if err := checkEnv(config.Env); err != nil {
		return err
	}
	return checkHealth(config.Healthcheck)
}

func checkHealth(h *container.HealthConfig) error {
	if h == nil {
		return nil
	}
	for _, d := range []struct {
		name  string
		value int64
	}{
		{"Interval", int64(h.Interval)}, {"Timeout", int64(h.Timeout)}, {"StartPeriod", int64(h.StartPeriod)},
		{"StartInterval", int64(h.StartInterval)},
	} {
		if d.value != 0 && d.value < int64(container.MinimumDuration) {
			return invalid("%s in Healthcheck cannot be less than %s", d.name, container.MinimumDuration)
		}
	}
	if h.Retries < 0 {
		return invalid("Retries in Healthcheck cannot be negative")
	}
	return nil
}

// checkPolicies looks at what the node itself carries out: restarting and removing.
func checkPolicies(hc *container.HostConfig) error {
	if err := container.ValidateRestartPolicy(hc.RestartPolicy); err != nil {
		return invalid("%v", err)
	}
	if hc.AutoRemove && !hc.RestartPolicy.IsNone() {
		return invalid("can't create 'AutoRemove' container with restart policy")
	}
	for key := range hc.Annotations {
		if key == "" {
			return invalid("invalid Annotations: the empty string is not permitted as an annotation key")
		}
	}
	return nil
}

// checkLimits are dockerd's checks of resources, with the machine's limits for the host's.
func checkLimits(r *container.Resources, s Settings) error {
	switch {
	case r.Memory != 0 && r.Memory < minMemory:
		return invalid("Minimum memory limit allowed is 6MB")
	case r.Memory > s.MaxMemory:
		return invalid("the memory limit of %d MiB is more than a machine may have here, %d MiB", r.Memory>>20, s.MaxMemory>>20)
	case r.Memory > 0 && r.MemorySwap > 0 && r.MemorySwap < r.Memory:
		return invalid("Minimum memoryswap limit should be larger than memory limit, see usage")
	case r.Memory == 0 && r.MemorySwap > 0:
		return invalid("You should always set the Memory limit when using Memoryswap limit, see usage")
	case r.MemorySwap < -1:
		return invalid("invalid memory swap limit: %d", r.MemorySwap)
	case r.MemorySwappiness != nil && (*r.MemorySwappiness < 0 || *r.MemorySwappiness > 100):
		return invalid("Invalid value: %d, valid memory swappiness range is 0-100", *r.MemorySwappiness)
	case r.MemoryReservation != 0 && r.MemoryReservation < minMemory:
		return invalid("Minimum memory reservation allowed is 6MB")
	case r.MemoryReservation > s.MaxMemory:
		return invalid("the memory reservation of %d MiB is more than a machine may have here, %d MiB", r.MemoryReservation>>20, s.MaxMemory>>20)
	case r.Memory > 0 && r.Memory < r.MemoryReservation:
		return invalid("Minimum memory limit can not be less than memory reservation limit, see usage")
	case r.NanoCPUs > 0 && r.CPUPeriod > 0:
		return invalid("Conflicting options: Nano CPUs and CPU Period cannot both be set")
	case r.NanoCPUs > 0 && r.CPUQuota > 0:
		return invalid("Conflicting options: Nano CPUs and CPU Quota cannot both be set")
	case r.NanoCPUs < 0 || r.NanoCPUs > int64(s.MaxCPUs)*1e9:
		return invalid("range of CPUs is from 0.01 to %[1]d.00, as there are only %[1]d CPUs available", s.MaxCPUs)
	// Below one millisecond in a period of a hundred the kernel refuses the quota.
	case r.NanoCPUs > 0 && r.NanoCPUs < 1e7:
		return invalid("range of CPUs is from 0.01 to %[1]d.00, as there are only %[1]d CPUs available", s.MaxCPUs)
	case r.CPUPeriod != 0 && (r.CPUPeriod < 1000 || r.CPUPeriod > 1_000_000):
		return invalid("CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)")
	case r.CPUQuota > 0 && r.CPUQuota < 1000:
		return invalid("CPU cfs quota can not be less than 1ms (i.e. 1000)")
	case r.CPUShares < 0:
		return invalid("invalid CPU shares (%d): value must be a positive integer", r.CPUShares)
	case r.BlkioWeight > 0 && (r.BlkioWeight < 10 || r.BlkioWeight > 1000):
		return invalid("Range of blkio weight is from 10 to 1000")
	}
	return nil
}

// discard drops what cgroup v2 does not know and says so in docker's words.
func discard(r *container.Resources) []string {
	var warnings []string
	if r.MemorySwappiness != nil {
		r.MemorySwappiness = nil
		warnings = append(warnings, "Your kernel does not support memory swappiness capabilities or the cgroup is not mounted. Memory swappiness discarded.")
	}
	if r.OomKillDisable != nil {
		if *r.OomKillDisable {
			warnings = append(warnings, "Your kernel does not support OomKillDisable. OomKillDisable discarded.")
		}
		r.OomKillDisable = nil
	}
	return warnings
}
