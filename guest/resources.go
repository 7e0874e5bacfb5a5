package guest

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/cradlevm/cradle/api"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// limit writes the resources of a spec into the cgroup, all but the devices (devicePrograms). What cgroup v2 or this kernel cannot do is refused by name.
func (c *cgroup) limit(r *specs.LinuxResources) error {
	if r == nil {
		return nil
	}
	err := firstRefused([]refuse{
		{r.Network != nil && (r.Network.ClassID != nil || len(r.Network.Priorities) > 0), "linux.resources.network"},
		{len(r.Rdma) > 0, "linux.resources.rdma"},
	})
	if err != nil {
		return err
	}
	for _, set := range []func(*specs.LinuxResources) error{c.limitMemory, c.limitCPU, c.limitIO, c.limitRest} {
		if err := set(r); err != nil {
			return err
		}
	}
	return nil
}

// set writes one file on behalf of a field of the spec.
func (c *cgroup) set(field, file, value string) error {
	err := c.write(file, value)
	switch err {
	case nil:
		return nil
	case unix.ENOENT:
		return api.Errorf(api.CodeUnsupported, "linux.resources.%s: the guest's kernel has no %s", field, file)
	}
	return api.Errorf(api.CodeInvalid, "linux.resources.%s: %s to %s: %w", field, value, file, err)
}

// amount writes a limit; a negative one is none.
func amount(n int64) string {
	if n < 0 {
		return "max"
	}
	return strconv.FormatInt(n, 10)
}

func (c *cgroup) limitMemory(r *specs.LinuxResources) error {
	m := r.Memory
	if m == nil {
		return nil
	}
	err := firstRefused([]refuse{
		{m.KernelTCP != nil && *m.KernelTCP > 0, "linux.resources.memory.kernelTCP"},
		{m.Swappiness != nil && *m.Swappiness != 60, "linux.resources.memory.swappiness"},
		{m.DisableOOMKiller != nil && *m.DisableOOMKiller, "linux.resources.memory.disableOOMKiller"},
	})
	if err != nil {
		return err
	}
	if m.Limit != nil && *m.Limit != 0 {
		if err := c.set("memory.limit", "memory.max", amount(*m.Limit)); err != nil {
			return err
		}
	}
	if m.Reservation != nil && *m.Reservation != 0 {
		if err := c.set("memory.reservation", "memory.low", amount(*m.Reservation)); err != nil {
			return err
		}
	}
	if m.Swap == nil || *m.Swap == 0 {
		return nil
	}
	// The spec's number is memory and swap together, the kernel's is swap alone.
	swap := *m.Swap
	if swap > 0 {
		if m.Limit == nil || *m.Limit <= 0 || swap < *m.Limit {
			return api.Errorf(api.CodeInvalid, "linux.resources.memory.swap is less than memory.limit")
		}
		swap -= *m.Limit
	}
	err = c.write("memory.swap.max", amount(swap))
	if err == unix.ENOENT {
		return nil // a kernel without swap keeps any limit on it
	}
	return err
}

func (c *cgroup) limitCPU(r *specs.LinuxResources) error {
	u := r.CPU
	if u == nil {
		return nil
	}
	err := firstRefused([]refuse{
		{u.RealtimeRuntime != nil && *u.RealtimeRuntime != 0, "linux.resources.cpu.realtimeRuntime"},
		{u.RealtimePeriod != nil && *u.RealtimePeriod != 0, "linux.resources.cpu.realtimePeriod"},
	})
	if err != nil {
		return err
	}
	if u.Shares != nil && *u.Shares != 0 {
		// The two scales, 2..262144 and 1..10000, laid over one another.
		shares := min(max(*u.Shares, 2), 262144)
		if err := c.set("cpu.shares", "cpu.weight", strconv.FormatUint(1+(shares-2)*9999/262142, 10)); err != nil {
			return err
		}
	}
	if u.Quota != nil && *u.Quota != 0 || u.Period != nil && *u.Period != 0 {
		quota, period := "max", uint64(100000)
		if u.Quota != nil && *u.Quota > 0 {
			quota = strconv.FormatInt(*u.Quota, 10)
		}
		if u.Period != nil && *u.Period != 0 {
			period = *u.Period
		}
		if err := c.set("cpu.quota", "cpu.max", fmt.Sprintf("%s %d", quota, period)); err != nil {
			return err
		}
	}
	for _, f := range []struct {
		field, file, value string
		asked              bool
	}{
		{"cpu.burst", "cpu.max.burst", deref(u.Burst), u.Burst != nil},
		{"cpu.idle", "cpu.idle", deref(u.Idle), u.Idle != nil},
		{"cpu.cpus", "cpuset.cpus", u.Cpus, u.Cpus != ""},
		{"cpu.mems", "cpuset.mems", u.Mems, u.Mems != ""},
	} {
		if f.asked {
			if err := c.set(f.field, f.file, f.value); err != nil {
				return err
			}
		}
	}
	return nil
}

func deref[T any](p *T) string {
	if p == nil {
		return ""
	}
	return fmt.Sprint(*p)
}

func (c *cgroup) limitIO(r *specs.LinuxResources) error {
	b := r.BlockIO
	if b == nil {
		return nil
	}
	err := firstRefused([]refuse{
		{b.LeafWeight != nil && *b.LeafWeight != 0, "linux.resources.blockIO.leafWeight"},
		{len(b.WeightDevice) > 0, "linux.resources.blockIO.weightDevice"},
	})
	if err != nil {
		return err
	}
	if b.Weight != nil && *b.Weight != 0 {
		// 10..1000 onto 1..10000.
		weight := 1 + (uint64(min(max(*b.Weight, 10), 1000))-10)*9999/990
		if err := c.set("blockIO.weight", "io.weight", strconv.FormatUint(weight, 10)); err != nil {
			return err
		}
	}
	for _, t := range []struct {
		key  string
		list []specs.LinuxThrottleDevice
	}{
		{"rbps", b.ThrottleReadBpsDevice}, {"wbps", b.ThrottleWriteBpsDevice},
		{"riops", b.ThrottleReadIOPSDevice}, {"wiops", b.ThrottleWriteIOPSDevice},
	} {
		for _, d := range t.list {
			if err := c.set("blockIO", "io.max", fmt.Sprintf("%d:%d %s=%d", d.Major, d.Minor, t.key, d.Rate)); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c *cgroup) limitRest(r *specs.LinuxResources) error {
	if r.Pids != nil && r.Pids.Limit != nil && *r.Pids.Limit != 0 {
		if err := c.set("pids.limit", "pids.max", amount(*r.Pids.Limit)); err != nil {
			return err
		}
	}
	for _, h := range r.HugepageLimits {
		if strings.ContainsAny(h.Pagesize, "/.") {
			return api.Errorf(api.CodeInvalid, "linux.resources.hugepageLimits: %.20q", h.Pagesize)
		}
		if err := c.set("hugepageLimits", "hugetlb."+h.Pagesize+".max", strconv.FormatUint(h.Limit, 10)); err != nil {
			return err
		}
	}
	for file, value := range r.Unified {
		if strings.Contains(file, "/") || !strings.Contains(file, ".") || strings.HasPrefix(file, "cgroup.") {
			return api.Errorf(api.CodeInvalid, "linux.resources.unified: %.40q", file)
		}
		if err := c.set("unified", file, value); err != nil {
			return err
		}
	}
	return nil
}

// relimit writes the limits of a running container that a spec names; those it leaves out stay.
func (c *cgroup) relimit(r *specs.LinuxResources) error {
	for _, set := range []func(*specs.LinuxResources) error{c.limitMemory, c.limitCPU, c.limitIO, c.limitRest} {
		if err := set(r); err != nil {
			return err
		}
	}
	return nil
}
