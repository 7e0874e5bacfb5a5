package runspec

import (
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/container"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// cpuPeriod is the CFS period that --cpus is expressed in, microseconds.
const cpuPeriod = 100_000

// resourcesOf are the container's cgroup limits inside its machine.
func resourcesOf(hc *container.HostConfig, s Settings) (*specs.LinuxResources, error) {
	cpu, err := cpuLimits(hc, s)
	if err != nil {
		return nil, err
	}
	out := &specs.LinuxResources{Memory: memoryLimits(hc), CPU: cpu}
	if p := hc.PidsLimit; p != nil && *p > 0 {
		limit := *p
		out.Pids = &specs.LinuxPids{Limit: &limit}
	}
	if w := hc.BlkioWeight; w != 0 {
		out.BlockIO = &specs.LinuxBlockIO{Weight: &w}
	}
	return out, nil
}

func memoryLimits(hc *container.HostConfig) *specs.LinuxMemory {
	var m specs.LinuxMemory
	set := false
	for _, l := range []struct {
		to    **int64
		value int64
	}{{&m.Limit, hc.Memory}, {&m.Reservation, hc.MemoryReservation}, {&m.Swap, hc.MemorySwap}} {
		// 0 says nothing; -1, of the swap, is the kernel's default: no limit.
		if l.value > 0 {
			v := l.value
			*l.to, set = &v, true
		}
	}
	if !set {
		return nil
	}
	return &m
}

func cpuLimits(hc *container.HostConfig, s Settings) (*specs.LinuxCPU, error) {
	if _, err := cpuset(hc.CpusetCpus, s.MaxCPUs); err != nil {
		return nil, err
	}
	if hc.CpusetMems != "" && hc.CpusetMems != "0" {
		return nil, invalid("Requested memory nodes are not available - requested %s, available: 0", hc.CpusetMems)
	}
	cpu := specs.LinuxCPU{Cpus: hc.CpusetCpus, Mems: hc.CpusetMems}
	if hc.CPUShares != 0 {
		shares := uint64(hc.CPUShares)
		cpu.Shares = &shares
	}
	period, quota := uint64(hc.CPUPeriod), hc.CPUQuota
	if hc.NanoCPUs > 0 {
		period, quota = cpuPeriod, hc.NanoCPUs/(1e9/cpuPeriod)
	}
	if period != 0 {
		cpu.Period = &period
	}
	if quota != 0 {
		cpu.Quota = &quota
	}
	if cpu == (specs.LinuxCPU{}) {
		return nil, nil
	}
	return &cpu, nil
}

// cpuset parses a list like "0-2,5" and returns its highest number, or -1 for the empty list. Numbers are those of the
// machine's virtual CPUs, max in all at most.
func cpuset(list string, max int) (int, error) {
	highest := -1
	if list == "" {
		return highest, nil
	}
	for _, part := range strings.Split(list, ",") {
		from, to, ranged := strings.Cut(part, "-")
		a, err := strconv.ParseUint(from, 10, 16)
		b := a
		if ranged && err == nil {
			b, err = strconv.ParseUint(to, 10, 16)
		}
		if err != nil || b < a {
			return 0, invalid("Invalid value %s for cpuset cpus", list)
		}
		if int(b) >= max {
			return 0, invalid("Requested CPUs are not available - requested %s, available: 0-%d", list, max-1)
		}
		if int(b) > highest {
			highest = int(b)
		}
	}
	return highest, nil
}

// rlimits are --ulimit.
func rlimits(limits []*container.Ulimit) ([]specs.POSIXRlimit, error) {
	var out []specs.POSIXRlimit
	for _, l := range limits {
		if l == nil {
			continue
		}
		// go-units knows docker's names and its rule that soft is at most hard.
		u := units.Ulimit{Name: l.Name, Soft: l.Soft, Hard: l.Hard}
		if _, err := units.ParseUlimit(u.String()); err != nil || l.Soft < -1 || l.Hard < -1 {
			if err == nil {
				err = invalid("invalid ulimit argument: %s", u.String())
			}
			return nil, invalid("%v", err)
		}
		out = append(out, specs.POSIXRlimit{
			Type: "RLIMIT_" + strings.ToUpper(l.Name),
			Soft: rlimitValue(l.Soft),
			Hard: rlimitValue(l.Hard),
		})
	}
	slices.SortStableFunc(out, func(a, b specs.POSIXRlimit) int { return strings.Compare(a.Type, b.Type) })
	return out, nil
}

// rlimitValue: -1 is no limit.
func rlimitValue(v int64) uint64 {
	if v < 0 {
		return math.MaxUint64
	}
	return uint64(v)
}

// sysctls are docker's two defaults (ping and low ports without privilege) and the client's. Docker lets a container
// set only those of its namespaces; here the whole kernel is the container's own, so any name that is one will do.
func sysctls(wanted map[string]string) (map[string]string, error) {
	out := map[string]string{
		"net.ipv4.ping_group_range":           "0 2147483647",
		"net.ipv4.ip_unprivileged_port_start": "0",
	}
	name := regexp.MustCompile(`^[a-z0-9_]+([./][A-Za-z0-9_:-]+)+$`)
	for key, value := range wanted {
		if !name.MatchString(key) || len(key) > 255 {
			return nil, invalid("sysctl %q is not valid", key)
		}
		if len(value) > 4096 || strings.ContainsAny(value, "\x00\n") {
			return nil, invalid("the value of sysctl %s is not valid", key)
		}
		out[key] = value
	}
	return out, nil
}
