package guest

import (
	"strings"
	"testing"
	"time"

	"github.com/cradlevm/cradle/api"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func testLimits(t *testing.T, v *testVM, box []api.Disk) {
	limit, pids := int64(24<<20), int64(20)
	e := v.inBox(box, func(r *api.CreateRequest) {
		r.Spec.Linux.Resources = &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit, Swap: &limit}}
	}, "dd", "if=/dev/zero", "of=/dev/null", "bs=64M", "count=1")
	if e.status.Code != 137 || !e.status.OOMKilled {
		t.Errorf("%+v: %v", e, e.err)
	}
	// Which of its processes it was, and how the first one ends, makes no difference.
	e = v.inBox(box, func(r *api.CreateRequest) {
		r.Spec.Linux.Resources = &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit, Swap: &limit}}
	}, "sh", "-c", "dd if=/dev/zero of=/dev/null bs=64M count=1; echo $?")
	if e.status.Code != 0 || e.stdout != "137\n" || !e.status.OOMKilled {
		t.Errorf("%+v: %v", e, e.err)
	}
	quota, period, shares := int64(50000), uint64(100000), uint64(1024)
	v.says(box, func(r *api.CreateRequest) {
		r.Spec.Linux.Resources = &specs.LinuxResources{
			CPU:  &specs.LinuxCPU{Quota: &quota, Period: &period, Shares: &shares, Cpus: "0"},
			Pids: &specs.LinuxPids{Limit: &pids}, Memory: &specs.LinuxMemory{Limit: &limit},
		}
	}, "cd /sys/fs/cgroup; cat cpu.max cpu.weight cpuset.cpus pids.max memory.max", "50000 100000\n39\n0\n20\n25165824")
}

func testRefused(t *testing.T, v *testVM, box []api.Disk) {
	for name, change := range map[string]func(*api.CreateRequest){
		"hooks":                 func(r *api.CreateRequest) { r.Spec.Hooks = &specs.Hooks{} },
		"apparmorProfile":       func(r *api.CreateRequest) { r.Spec.Process.ApparmorProfile = "docker-default" },
		"selinuxLabel":          func(r *api.CreateRequest) { r.Spec.Process.SelinuxLabel = "x" },
		"user is not supported": func(r *api.CreateRequest) { r.Spec.Linux.Namespaces = []specs.LinuxNamespace{{Type: "user"}} },
		"seccomp":               func(r *api.CreateRequest) { r.Spec.Linux.Seccomp = &specs.LinuxSeccomp{} },
		"nfs":                   func(r *api.CreateRequest) { r.Spec.Mounts = []specs.Mount{{Destination: "/x", Type: "nfs"}} },
		"bind mount": func(r *api.CreateRequest) {
			r.Spec.Mounts = []specs.Mount{{Destination: "/x", Type: "bind", Source: "/y", Options: []string{"bind"}}}
		},
	} {
		if e := v.inBox(box, change, "true"); code(e.err) != api.CodeUnsupported || !strings.Contains(e.err.Error(), name) {
			t.Errorf("%s: %v", name, e.err)
		}
	}
}

func testInspect(t *testing.T, v *testVM, box []api.Disk) {
	ref := v.startBox(&api.CreateRequest{ID: "seen", Rootfs: api.Rootfs{Layers: box}, Spec: dockerSpec("sh", "-c",
		"sleep 77 & until grep -q ^sleep /proc/$!/cmdline; do :; done; echo; wait")})
	v.firstOutput(ref) // before that, its child is a shell, too
	var ps api.ProcessesResult
	v.call(api.MethodProcesses, ref, &ps)
	if len(ps.Processes) != 2 || ps.Processes[1].Command != "sleep 77" || ps.Processes[1].PPID != ps.Processes[0].PID || ps.Processes[0].Start <= 0 {
		t.Errorf("%+v", ps)
	}
	var st api.StatsResult
	v.call(api.MethodStats, ref, &st)
	if st.Pids != 2 || st.MemoryBytes == 0 || st.CPUNanos == 0 || st.OnlineCPUs != 1 || st.MemoryLimit != 0 {
		t.Errorf("%+v", st)
	}
	v.call(api.MethodSignal, api.SignalRequest{ProcessRef: ref, Signal: 9, All: true}, nil)
	var s api.ExitStatus
	if v.call(api.MethodWait, ref, &s); s.Code != 137 || s.OOMKilled {
		t.Errorf("%+v", s)
	}
}

func testConfigure(t *testing.T, v *testVM, box []api.Disk) {
	want := time.Date(2031, 5, 6, 7, 8, 9, 0, time.UTC)
	v.call(api.MethodConfigure, api.ConfigureRequest{Hostname: "guest-7", UnixNanos: want.UnixNano(), Seed: make([]byte, 64), MachineID: strings.Repeat("ab", 16)}, nil)
	v.says(box, func(r *api.CreateRequest) { r.Spec.Hostname = "" }, "hostname; date -u +%Y-%m", "guest-7\n2031-05")
	if err := v.try(api.MethodConfigure, api.ConfigureRequest{Seed: []byte("short")}, nil); code(err) != api.CodeInvalid {
		t.Error(err)
	}
}

func testSpeed(t *testing.T, v *testVM, box []api.Disk) {
	upper := v.scratch()
	for _, u := range []*api.Disk{nil, upper} {
		for i := range 4 {
			r := &api.CreateRequest{ID: "fast", Rootfs: api.Rootfs{Layers: box, Upper: u}, Spec: dockerSpec("true")}
			ref := api.ProcessRef{ID: r.ID}
			marks := []time.Time{time.Now()}
			mark := func() { marks = append(marks, time.Now()) }
			var s api.ExitStatus
			v.call(api.MethodCreate, r, nil)
			mark()
			v.call(api.MethodStart, ref, nil)
			mark()
			v.call(api.MethodWait, ref, &s)
			mark()
			v.call(api.MethodDelete, ref, nil)
			mark()
			ms := func(i int) float64 { return float64(marks[i+1].Sub(marks[i]).Microseconds()) / 1000 }
			t.Logf("ext4 %v, run %d: create %.1f start %.1f wait %.1f, together %.1f; delete %.1f ms", u != nil, i, ms(0), ms(1), ms(2), ms(0)+ms(1)+ms(2), ms(3))
		}
	}
	v.startBox(&api.CreateRequest{ID: "host", Rootfs: api.Rootfs{Layers: box}, Spec: dockerSpec("sleep", "1000")})
	for i := range 5 {
		begin := time.Now()
		v.call(api.MethodExec, &api.ExecRequest{ID: "host", Exec: "x", Args: []string{"true"}}, nil)
		started := time.Since(begin)
		var s api.ExitStatus
		v.call(api.MethodWait, api.ProcessRef{ID: "host", Exec: "x"}, &s)
		t.Logf("exec %d: started %v exited %v", i, started.Round(100*time.Microsecond), time.Since(begin).Round(100*time.Microsecond))
		v.call(api.MethodDelete, api.ProcessRef{ID: "host", Exec: "x"}, nil)
	}
	begin := time.Now()
	for range 20 {
		v.call(api.MethodPing, nil, nil)
	}
	t.Logf("ping %v", (time.Since(begin) / 20).Round(10*time.Microsecond))
}
