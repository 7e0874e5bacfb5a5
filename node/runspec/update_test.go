package runspec

import (
	"strings"
	"testing"

	"github.com/moby/moby/api/types/container"
)

func TestUpdate(t *testing.T) {
	limit := func(n int64) *int64 { return &n }
	for name, c := range map[string]struct {
		was, now container.HostConfig
		fails    string
	}{
		"memory":             {now: container.HostConfig{Resources: container.Resources{Memory: 64 << 20, MemorySwap: -1}}},
		"too little":         {now: container.HostConfig{Resources: container.Resources{Memory: 1}}, fails: "Minimum memory limit allowed is 6MB"},
		"above the swap":     {was: container.HostConfig{Resources: container.Resources{Memory: 64 << 20}}, now: container.HostConfig{Resources: container.Resources{Memory: 256 << 20}}, fails: "update the memoryswap at the same time"},
		"cpus and quota":     {now: container.HostConfig{Resources: container.Resources{NanoCPUs: 1e9, CPUQuota: 5000}}, fails: "Conflicting options"},
		"quota after cpus":   {was: container.HostConfig{Resources: container.Resources{NanoCPUs: 1e9}}, now: container.HostConfig{Resources: container.Resources{CPUQuota: 5000}}, fails: "NanoCPUs has already been set"},
		"cpuset":             {now: container.HostConfig{Resources: container.Resources{CpusetCpus: "7-9"}}, fails: "Requested CPUs are not available"},
		"restart with --rm":  {was: container.HostConfig{AutoRemove: true}, now: container.HostConfig{RestartPolicy: container.RestartPolicy{Name: "always"}}, fails: "AutoRemove is enabled"},
		"restart":            {now: container.HostConfig{RestartPolicy: container.RestartPolicy{Name: "on-failure", MaximumRetryCount: 2}}},
		"no limit on pids":   {was: container.HostConfig{Resources: container.Resources{PidsLimit: limit(5)}}, now: container.HostConfig{Resources: container.Resources{PidsLimit: limit(-1)}}},
		"realtime":           {now: container.HostConfig{Resources: container.Resources{CPURealtimePeriod: 5}}, fails: "not supported"},
		"nothing whatsoever": {},
	} {
		t.Run(name, func(t *testing.T) {
			s := Settings{MaxCPUs: 4}
			before, _, err := Prepare("0123456789abcdef", &container.Config{Cmd: []string{"a"}}, &c.was, s)
			if err != nil {
				t.Fatal(err)
			}
			memory := before.Host.Memory
			after, r, err := Update(before, container.UpdateConfig{Resources: c.now.Resources, RestartPolicy: c.now.RestartPolicy}, s)
			if (err == nil) != (c.fails == "") || err != nil && !strings.Contains(err.Error(), c.fails) {
				t.Fatalf("%v, want %q", err, c.fails)
			}
			if before.Host.Memory != memory {
				t.Error("the container given was changed")
			}
			if err != nil {
				return
			}
			if m := c.now.Memory; m != 0 && (after.Host.Memory != m || *r.Memory.Limit != m) {
				t.Errorf("memory %d", after.Host.Memory)
			}
			if p := c.now.PidsLimit; p != nil && (after.Host.PidsLimit != nil || *r.Pids.Limit != -1) {
				t.Errorf("pids %v", r.Pids)
			}
			if n := c.now.RestartPolicy.Name; n != "" && after.Host.RestartPolicy.Name != n {
				t.Errorf("restart policy %v", after.Host.RestartPolicy)
			}
		})
	}
}
