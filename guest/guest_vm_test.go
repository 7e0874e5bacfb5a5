package guest

import (
	"testing"
	"time"

	"github.com/cradlevm/cradle/api"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

const busybox = `mkdir bin etc proc sys dev tmp root usr

cp /bin/busybox bin/
for a in tr sort sed cut date uname sh true false cat echo ls ps id sleep mount env stty hostname pwd kill dd touch chmod grep head tail stat mkdir readlink umount mknod wc sha256sum tty seq yes rm ulimit; do ln -s busybox bin/$a; done
echo root:x:0:0:root:/root:/bin/sh >etc/passwd
echo app:x:1000:1001:app:/home/app:/bin/sh >>etc/passwd
printf 'root:x:0:\napp:x:1001:\nstaff:x:50:app\n' >etc/group
chmod 1777 tmp
`

var dockerCaps = []string{"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW",

	"CAP_SETGID", "CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL",
	"CAP_AUDIT_WRITE"}

// dockerSpec is what docker asks for.
func dockerSpec(args ...string) *specs.Spec {
	return &specs.Spec{
		Version: "1.3.0",
		Process: &specs.Process{
			Args: args, Cwd: "/", Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
			Capabilities: &specs.LinuxCapabilities{Bounding: dockerCaps, Effective: dockerCaps, Permitted: dockerCaps},
		},
		Root:     &specs.Root{Path: "rootfs"},
		Hostname: "box",
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
			{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
			{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"ro", "nosuid", "noexec", "nodev"}},
			{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=67108864"}},
		},
		Linux: &specs.Linux{
			MaskedPaths:   []string{"/proc/asound", "/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/scsi", "/sys/firmware"},
			ReadonlyPaths: []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
		},
	}
}

// ended is a container's whole life.
type ended struct {
	stdout, stderr string
	status         api.ExitStatus
	err            error // of create or start
}

// runContainer creates, starts, waits for and deletes a container.
func (v *testVM) runContainer(r *api.CreateRequest) (e ended) {
	v.t.Helper()
	ref := api.ProcessRef{ID: r.ID}
	if e.err = v.create(r); e.err != nil {
		return e
	}
	defer v.call(api.MethodDelete, ref, nil)
	if e.err = v.try(api.MethodStart, ref, nil); e.err != nil {
		return e
	}
	out, errs := v.output(ref)
	v.call(api.MethodWait, ref, &e.status)
	e.stdout, e.stderr = string(out), string(errs)
	return e
}

// create makes a container, in two steps while v.split is set.
func (v *testVM) create(r *api.CreateRequest) error {
	if !v.split {
		return v.try(api.MethodCreate, r, nil)
	}
	first, rest := r.Split()
	first.ID, rest.Prepared = "prepared", "prepared"
	if first.Park = !r.Init && !r.Spec.Process.Terminal && !r.Spec.Process.NoNewPrivileges; first.Park {
		first.Seccomp = r.Seccomp
	}
	if err := v.try(api.MethodPrepare, first, nil); err != nil {
		return err
	}
	if err := v.try(api.MethodStart, api.ProcessRef{ID: first.ID}, nil); err == nil {
		v.t.Error("a prepared container was started")
	}
	err := v.try(api.MethodCreate, rest, nil)
	if again := v.try(api.MethodDelete, api.ProcessRef{ID: first.ID}, nil); again == nil {
		v.t.Error("the prepared container is still there")
	}
	return err
}

// inBox runs a command in a container over one layer and a tmpfs, changed as the test likes.
func (v *testVM) inBox(layers []api.Disk, change func(*api.CreateRequest), args ...string) ended {
	v.t.Helper()
	r := &api.CreateRequest{ID: "box", Rootfs: api.Rootfs{Layers: layers}, Spec: dockerSpec(args...)}
	if change != nil {
		change(r)
	}
	return v.runContainer(r)
}

// testUnused: what is prepared is deleted, its first process being there yet or not.
func testUnused(t *testing.T, v *testVM, box []api.Disk) {
	for range 20 {
		first, _ := (&api.CreateRequest{Rootfs: api.Rootfs{Layers: box}, Spec: dockerSpec()}).Split()
		first.ID, first.Park = "unused", true
		v.call(api.MethodPrepare, first, nil)
		v.call(api.MethodDelete, api.ProcessRef{ID: first.ID}, nil)
	}
}

func TestVM(t *testing.T) {
	v := startVM(t, "256M")
	var ping api.PingResult
	v.call(api.MethodPing, nil, &ping)
	t.Logf("kernel %s: ready after %.0f ms of boot", ping.Kernel, float64(ping.ReadyNanos)/1e6)
	box := []api.Disk{v.erofsLayer(busybox)}
	prepared := func(test func(*testing.T, *testVM, []api.Disk)) func(*testing.T, *testVM, []api.Disk) {
		return func(t *testing.T, v *testVM, box []api.Disk) {
			v.split = true
			defer func() { v.split = false }()
			test(t, v, box)
		}
	}
	for _, test := range []struct {
		name string
		run  func(*testing.T, *testVM, []api.Disk)
	}{
		{"prepared environment", prepared(testEnvironment)}, {"prepared users", prepared(testUsers)},
		{"prepared mounts", prepared(testMounts)}, {"prepared hostile", prepared(testHostile)},
		{"prepared upper", prepared(testUpper)}, {"prepared volume disk", prepared(testVolumeDisk)}, {"prepared devices", prepared(testDevices)}, {"prepared refused", prepared(testRefused)},
		{"prepared unused", testUnused},
		{"exit codes", testExitCodes}, {"errors", testStartErrors}, {"environment", testEnvironment},
		{"users", testUsers}, {"exec", testExec}, {"seccomp", testSeccomp}, {"terminal", testTerminal}, {"stdin", testStdin},
		{"limits", testLimits}, {"mounts", testMounts}, {"hostile", testHostile}, {"init", testInit},
		{"output", testOutputSurvives}, {"upper", testUpper}, {"volume disk", testVolumeDisk}, {"layers", testManyLayers}, {"refused", testRefused},
		{"devices", testDevices}, {"inspect", testInspect}, {"unplug", testUnplug}, {"speed", testSpeed}, {"identity", testIdentity}, {"filters", testFilters}, {"configure", testConfigure},
	} {
		ok := t.Run(test.name, func(t *testing.T) {
			outer := v.t
			v.t = t
			defer func() { v.t = outer }()
			test.run(t, v, box)
		})
		if !ok {
			if err := v.try(api.MethodPing, nil, &ping); err != nil {
				t.Fatalf("the agent is gone: %v", err)
			}
		}
	}
	v.call(api.MethodShutdown, nil, nil)
	done := make(chan error, 1)
	go func() { done <- v.cmd.Wait() }()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		t.Error("the machine is still on")
	}
}
