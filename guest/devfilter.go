package guest

import specs "github.com/opencontainers/runtime-spec/specs-go"

func (c *cgroup) limitDevices(r *specs.LinuxResources) error { return nil }
