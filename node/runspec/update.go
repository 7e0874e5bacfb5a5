package runspec

import (
	"github.com/moby/moby/api/types/container"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Update applies docker update's changes to c, which came from Prepare, and returns what changes in the container's
// cgroup. c is not changed. What update leaves zero stays as it is. Errors: ErrInvalidArgument, ErrNotImplemented.
func Update(c Container, u container.UpdateConfig, s Settings) (Container, *specs.LinuxResources, error) {
	s = s.withDefaults()
	if err := checkUpdate(c.Host, u); err != nil {
		return Container{}, nil, err
	}
	host := *c.Host
	change(&host.Resources, &u.Resources)
	if u.RestartPolicy.Name != "" {
		host.RestartPolicy = u.RestartPolicy
	}
	out := Container{ID: c.ID, Config: c.Config, Host: &host}
	if err := checkLimits(&host.Resources, s); err != nil {
		return Container{}, nil, err
	}
	if err := checkPolicies(&host); err != nil {
		return Container{}, nil, err
	}
	resources, err := resourcesOf(&host, s)
	if err != nil {
		return Container{}, nil, err
	}
	if u.PidsLimit != nil && *u.PidsLimit <= 0 {
		none := int64(-1)
		resources.Pids = &specs.LinuxPids{Limit: &none}
		host.PidsLimit = nil
	}
	return out, resources, nil
}

// checkUpdate is dockerd's word on updates that contradict themselves or what is set.
func checkUpdate(hc *container.HostConfig, u container.UpdateConfig) error {
	r, was := &u.Resources, &hc.Resources
	switch {
	case r.NanoCPUs > 0 && r.CPUPeriod > 0:
		return invalid("Conflicting options: Nano CPUs and CPU Period cannot both be set")
	case r.NanoCPUs > 0 && r.CPUQuota > 0:
		return invalid("Conflicting options: Nano CPUs and CPU Quota cannot both be set")
	case r.CPUPeriod > 0 && was.NanoCPUs > 0:
		return invalid("Conflicting options: CPU Period cannot be updated as NanoCPUs has already been set")
	case r.CPUQuota > 0 && was.NanoCPUs > 0:
		return invalid("Conflicting options: CPU Quota cannot be updated as NanoCPUs has already been set")
	case r.NanoCPUs > 0 && was.CPUPeriod > 0:
		return invalid("Conflicting options: Nano CPUs cannot be updated as CPU Period has already been set")
	case r.NanoCPUs > 0 && was.CPUQuota > 0:
		return invalid("Conflicting options: Nano CPUs cannot be updated as CPU Quota has already been set")
	case r.Memory > 0 && r.MemorySwap == 0 && was.MemorySwap > 0 && r.Memory > was.MemorySwap:
		return invalid("Memory limit should be smaller than already set memoryswap limit, update the memoryswap at the same time")
	case u.RestartPolicy.Name != "" && hc.AutoRemove && !u.RestartPolicy.IsNone():
		return invalid("Restart policy cannot be updated because AutoRemove is enabled for the container")
	case r.CPURealtimePeriod != 0 || r.CPURealtimeRuntime != 0:
		return unsupported("updating --cpu-rt-period and --cpu-rt-runtime")
	}
	return nil
}

// change copies what an update says.
func change(to, from *container.Resources) {
	for _, f := range []struct{ to, from *int64 }{
		{&to.CPUShares, &from.CPUShares}, {&to.NanoCPUs, &from.NanoCPUs}, {&to.CPUPeriod, &from.CPUPeriod},
		{&to.CPUQuota, &from.CPUQuota}, {&to.Memory, &from.Memory}, {&to.MemorySwap, &from.MemorySwap},
		{&to.MemoryReservation, &from.MemoryReservation},
	} {
		if *f.from != 0 {
			*f.to = *f.from
		}
	}
	for _, f := range []struct{ to, from *string }{{&to.CpusetCpus, &from.CpusetCpus}, {&to.CpusetMems, &from.CpusetMems}} {
		if *f.from != "" {
			*f.to = *f.from
		}
	}
	if from.BlkioWeight != 0 {
		to.BlkioWeight = from.BlkioWeight
	}
	if from.PidsLimit != nil {
		limit := *from.PidsLimit
		to.PidsLimit = &limit
	}
}

// CPUsNeeded is how many processors a container with these limits can make use of; 0 when they do not say.
func CPUsNeeded(hc *container.HostConfig, s Settings) int {
	if hc.CpusetCpus == "" && hc.NanoCPUs == 0 && hc.CPUQuota <= 0 {
		return 0
	}
	cpus, _ := VMSize(hc, s)
	return cpus
}
