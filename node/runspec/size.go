package runspec

import (
	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/container"
)

const mib = 1 << 20

// Numbers of VMSize, bytes.
const (
	// machineOverhead is what the guest's kernel and agent take of a machine's memory: 44 to 64 MiB were measured for
	// the small kernel, to which page tables and the page array (1/64 of all memory) are added.
	machineOverhead = 64 * mib
	// minMachine is the smallest machine made: the distribution's kernel does not come up in less.
	minMachine = 128 * mib
	// Sizes double up to largestDoubled; beyond, where a size too large costs its page array, they are largeStep apart.
	largestDoubled = 8 << 30
	largeStep      = 4 << 30
)

// VMSize is the machine that a container needs.
//
// memory, bytes: without --memory it is the node's default (Settings.Memory), and the container may use all of it
// (more, when --memory-reservation asks for more).
// With --memory m the container's cgroup is limited to m inside, and the machine gets what m + m/64 + 64 MiB is rounded
// up to, so that few sizes exist (a pool keeps machines per size, and each size has a template): 128, 256, 512 MiB, 1, 2,
// 4, 8 GiB, and beyond them the next multiple of 4 GiB. So 64m and 128m → 256 MiB; 256m → 512 MiB, the size of
// containers without a limit; 512m → 1 GiB, 1g → 2 GiB, 16g → 20 GiB. What a guest does not touch costs the host nothing.
//
// cpus: --cpus n (or quota/period) rounded up; at least what --cpuset-cpus names; without either Settings.CPUs. The exact
// quota is the container's cgroup's, inside.
func VMSize(hc *container.HostConfig, s Settings) (cpus int, memory int64) {
	s = s.withDefaults()
	cpus = min(s.CPUs, s.MaxCPUs)
	nano := hc.NanoCPUs
	if nano == 0 && hc.CPUQuota > 0 {
		period := hc.CPUPeriod
		if period == 0 {
			period = cpuPeriod
		}
		nano = int64(float64(hc.CPUQuota) / float64(period) * 1e9)
	}
	highest, err := cpuset(hc.CpusetCpus, s.MaxCPUs)
	pinned := err == nil && highest >= 0
	switch {
	case pinned:
		cpus = highest + 1
	case nano > 0:
		cpus = min(int((nano+1e9-1)/1e9), s.MaxCPUs)
	}
	if hc.Memory <= 0 {
		return cpus, max(s.Memory, machineMemory(hc.MemoryReservation))
	}
	return cpus, machineMemory(hc.Memory)
}

// machineMemory is the size class of a machine whose container may use limit bytes.
func machineMemory(limit int64) int64 {
	limit = min(limit, 1<<50) // no machine is larger, and the sum must not overflow
	need := limit + limit/64 + machineOverhead
	class := int64(minMachine)
	for class < need && class < largestDoubled {
		class *= 2
	}
	if need > class {
		class = (need + largeStep - 1) / largeStep * largeStep
	}
	return class
}

// ScratchSize is the size of the container's writable disk in bytes: --storage-opt size, else the node's default.
// Errors: ErrInvalidArgument for a size out of 16 MiB to 16 TiB, or another storage option.
func ScratchSize(hc *container.HostConfig, s Settings) (int64, error) {
	size := s.withDefaults().Scratch
	for key, value := range hc.StorageOpt {
		if key != "size" {
			return 0, invalid("Unknown option %s", key)
		}
		n, err := units.RAMInBytes(value)
		if err != nil || n < 16*mib || n > 16<<40 {
			return 0, invalid("invalid storage option size=%s: a size between 16m and 16t is needed", value)
		}
		size = n
	}
	return (size + mib - 1) / mib * mib, nil
}
