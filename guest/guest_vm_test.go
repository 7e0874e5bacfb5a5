package guest

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"slices"
	"strings"
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
	if e.err = v.try(api.MethodCreate, r, nil); e.err != nil {
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

// inBox runs a command in a container over one layer and a tmpfs, changed as the test likes.
func (v *testVM) inBox(layers []api.Disk, change func(*api.CreateRequest), args ...string) ended {
	v.t.Helper()
	r := &api.CreateRequest{ID: "box", Rootfs: api.Rootfs{Layers: layers}, Spec: dockerSpec(args...)}
	if change != nil {
		change(r)
	}
	return v.runContainer(r)
}

func TestVM(t *testing.T) {
	v := startVM(t, "256M")
	var ping api.PingResult
	v.call(api.MethodPing, nil, &ping)
	t.Logf("kernel %s: ready after %.0f ms of boot", ping.Kernel, float64(ping.ReadyNanos)/1e6)
	box := []api.Disk{v.erofsLayer(busybox)}
	for _, test := range []struct {
		name string
		run  func(*testing.T, *testVM, []api.Disk)
	}{
		{"exit codes", testExitCodes}, {"errors", testStartErrors}, {"environment", testEnvironment},
		{"users", testUsers}, {"exec", testExec}, {"terminal", testTerminal}, {"stdin", testStdin},
		{"limits", testLimits}, {"mounts", testMounts}, {"hostile", testHostile}, {"init", testInit},
		{"output", testOutputSurvives}, {"upper", testUpper}, {"layers", testManyLayers}, {"refused", testRefused},
		{"devices", testDevices}, {"inspect", testInspect}, {"unplug", testUnplug}, {"speed", testSpeed}, {"identity", testIdentity}, {"configure", testConfigure},
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

func testExitCodes(t *testing.T, v *testVM, box []api.Disk) {
	for script, want := range map[string]int{
		"exit 0": 0, "exit 7": 7, "exit 126": 126, "exit 255": 255,
		// PID 1 of a namespace is deaf to signals it does not handle; a child of it is not.
		"sh -c 'kill -KILL $$'; exit $?": 137, "sh -c 'kill -TERM $$'; exit $?": 143,
	} {
		if e := v.inBox(box, nil, "sh", "-c", script); e.err != nil || e.status.Code != want || e.status.OOMKilled {
			t.Errorf("%s: %+v", script, e)
		}
	}
	ref := api.ProcessRef{ID: "sleeper"}
	for _, sig := range []int{9, 15} {
		v.call(api.MethodCreate, &api.CreateRequest{ID: "sleeper", Rootfs: api.Rootfs{Layers: box},
			Spec: dockerSpec("sh", "-c", "trap 'exit 143' TERM; sleep 100 & wait")}, nil)
		v.call(api.MethodStart, ref, nil)
		time.Sleep(200 * time.Millisecond)
		v.call(api.MethodSignal, api.SignalRequest{ProcessRef: ref, Signal: sig}, nil)
		var s api.ExitStatus
		v.call(api.MethodWait, ref, &s)
		if s.Code != 128+sig {
			t.Errorf("signal %d: %+v", sig, s)
		}
		v.call(api.MethodDelete, ref, nil)
	}
}

func testStartErrors(t *testing.T, v *testVM, box []api.Disk) {
	layers := append([]api.Disk{v.erofsLayer("mkdir x; echo text >x/script; chmod 755 x/script; printf '#!/nowhere\n' >x/lost; chmod 755 x/lost; touch x/plain; head -c 100 /bin/busybox >x/cut; chmod 755 x/cut")}, box...)
	for _, c := range []struct {
		args    []string
		change  func(*api.CreateRequest)
		code    api.ErrorCode
		message string
	}{
		{[]string{"foo"}, nil, api.CodeCommandNotFound, `exec: "foo": executable file not found in $PATH`},
		{[]string{"./x1"}, nil, api.CodeCommandNotFound, `exec: "./x1": stat ./x1: no such file or directory`},
		{[]string{"/x"}, nil, api.CodeCommandNotRunnable, `exec: "/x": permission denied`},
		{[]string{"/etc/passwd"}, nil, api.CodeCommandNotRunnable, `exec: "/etc/passwd": permission denied`},
		{[]string{"/x/script"}, nil, api.CodeCommandNotRunnable, `exec: "/x/script": exec format error`},
		{[]string{"/x/lost"}, nil, api.CodeCommandNotFound, `exec: "/x/lost": no such file or directory`},
		{[]string{"true"}, func(r *api.CreateRequest) { r.User = "foo" }, api.CodeInvalid, "unable to find user foo: no matching entries in passwd file"},
		{[]string{"true"}, func(r *api.CreateRequest) { r.User = "app:none" }, api.CodeInvalid, "unable to find group none: no matching entries in group file"},
		{[]string{"true"}, func(r *api.CreateRequest) { r.Rootfs.Layers = []api.Disk{{Serial: "x", FSType: "ntfs"}} }, api.CodeUnsupported, `filesystem type "ntfs"`},
	} {
		e := v.inBox(layers, c.change, c.args...)
		if code(e.err) != c.code || !strings.Contains(e.err.Error(), c.message) {
			t.Errorf("%v: %s: %v", c.args, code(e.err), e.err)
		}
	}
	if err := v.try(api.MethodStart, api.ProcessRef{ID: "none"}, nil); code(err) != api.CodeNotFound {
		t.Error(err)
	}
}

// says runs a script and compares its output.
func (v *testVM) says(layers []api.Disk, change func(*api.CreateRequest), script, want string) {
	v.t.Helper()
	e := v.inBox(layers, change, "sh", "-c", script)
	if e.err != nil || strings.TrimSpace(e.stdout) != want {
		v.t.Errorf("%s: got %q (%q, %+v, %v), want %q", script, e.stdout, e.stderr, e.status, e.err, want)
	}
}

func testEnvironment(t *testing.T, v *testVM, box []api.Disk) {
	v.says(box, nil, "echo $$; hostname; pwd; echo $HOME", "1\nbox\n/\n/root")
	v.says(box, nil, "grep -E 'Cap(Eff|Bnd|Prm)|NoNewPrivs|Seccomp:' /proc/self/status", "CapPrm:\t00000000a80425fb\nCapEff:\t00000000a80425fb\nCapBnd:\t00000000a80425fb\nNoNewPrivs:\t0\nSeccomp:\t0")
	v.says(box, nil, "cat /proc/self/cgroup; cat /proc/self/oom_score_adj; ls /proc/self/fd | wc -l", "0::/\n0\n4")
	v.says(box, nil, "ps -o pid,comm | wc -l", "4") // heading, sh, ps, wc
	v.says(box, nil, "echo $(ls /dev)", "core fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero")
	v.says(box, nil, "echo err >&2; cat; readlink /proc/self/fd/0", "/dev/null")
	v.says(box, nil, "echo 1 > /proc/sys/kernel/panic; cat /proc/keys /proc/timer_list; ls /sys/firmware", "")
	v.says(box, func(r *api.CreateRequest) { r.Spec.Process.Cwd = "/made/for/me" }, "pwd", "/made/for/me")
	v.says(box, func(r *api.CreateRequest) { r.Spec.Process.NoNewPrivileges = true; r.Seccomp = noUname },
		"uname 2>&1; grep -E 'NoNewPrivs|Seccomp:' /proc/self/status", "NoNewPrivs:\t1\nSeccomp:\t2")
	v.says(box, func(r *api.CreateRequest) {
		r.Spec.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 100, Hard: 200}}
		r.Spec.Linux.Sysctl = map[string]string{"net.ipv4.ip_unprivileged_port_start": "99", "kernel.shm_rmid_forced": "1"}
		umask := uint32(0o077)
		r.Spec.Process.User.Umask = &umask
	}, "ulimit -n; umask; cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shm_rmid_forced", "100\n0077\n99\n1")
}

// noUname refuses uname(2).
var noUname = []byte{
	0x20, 0, 0, 0, 0, 0, 0, 0, 0x15, 0, 0, 1, 63, 0, 0, 0, 0x06, 0, 0, 0, 1, 0, 5, 0, 0x06, 0, 0, 0, 0, 0, 0xff, 0x7f,
}

func testUsers(t *testing.T, v *testVM, box []api.Disk) {
	for user, want := range map[string]string{
		"app": "1000 1001 50,1001 /home/app", "app:staff": "1000 50 50 /home/app", "1000": "1000 1001 50,1001 /home/app",
		"4242": "4242 0 0 /", "4242:4343": "4242 4343 4343 /", "root": "0 0 0 /root",
	} {
		v.says(box, func(r *api.CreateRequest) { r.User = user },
			`echo $(id -u) $(id -g) $(id -G | tr ' ' '\n' | sort -n | tr '\n' ',' | sed 's/,$//') $HOME; grep CapEff /proc/self/status | grep -v 0000000000000000`, want+map[bool]string{true: "\nCapEff:\t00000000a80425fb"}[user == "root"])
	}
	v.says(box, func(r *api.CreateRequest) { r.GroupAdd = []string{"staff", "77"} }, "id -G", "0 50 77")
}

func (v *testVM) startBox(r *api.CreateRequest) api.ProcessRef {
	v.t.Helper()
	ref := api.ProcessRef{ID: r.ID}
	v.call(api.MethodCreate, r, nil)
	v.t.Cleanup(func() { v.try(api.MethodDelete, ref, nil) })
	v.call(api.MethodStart, ref, nil)
	return ref
}

func (v *testVM) execIn(id, exec string, change func(*api.ExecRequest), args ...string) ended {
	v.t.Helper()
	r := &api.ExecRequest{ID: id, Exec: exec, Process: dockerSpec(args...).Process}
	if change != nil {
		change(r)
	}
	var e ended
	if e.err = v.try(api.MethodExec, r, nil); e.err != nil {
		return e
	}
	ref := api.ProcessRef{ID: id, Exec: exec}
	out, errs := v.output(ref)
	v.call(api.MethodWait, ref, &e.status)
	v.call(api.MethodDelete, ref, nil)
	e.stdout, e.stderr = string(out), string(errs)
	return e
}

func testExec(t *testing.T, v *testVM, box []api.Disk) {
	v.startBox(&api.CreateRequest{ID: "host", Rootfs: api.Rootfs{Layers: box}, Spec: dockerSpec("sleep", "1000")})
	e := v.execIn("host", "a", nil, "sh", "-c", "echo $(ps -o pid,comm | grep sleep); hostname; cat /proc/self/cgroup; exit 3")
	if e.stdout != "1 sleep\nbox\n0::/\n" || e.status.Code != 3 {
		t.Errorf("%+v: %v", e, e.err)
	}
	if e := v.execIn("host", "a", func(r *api.ExecRequest) { r.User = "app" }, "id", "-u"); e.stdout != "1000\n" {
		t.Errorf("%+v: %v", e, e.err)
	}
	if e := v.execIn("host", "a", nil, "nothing"); code(e.err) != api.CodeCommandNotFound {
		t.Errorf("%+v: %v", e, e.err)
	}
	if e := v.execIn("host", "a", func(r *api.ExecRequest) { r.Process.Cwd = "/none" }, "true"); e.err == nil {
		t.Errorf("%+v: %v", e, e.err)
	}
	// A background process that holds the pipe does not hold the end of the output.
	begin := time.Now()
	if e := v.execIn("host", "a", nil, "sh", "-c", "sleep 30 & echo early"); e.stdout != "early\n" || time.Since(begin) > 10*time.Second {
		t.Errorf("%+v after %v", e, time.Since(begin))
	}
	v.call(api.MethodExec, &api.ExecRequest{ID: "host", Exec: "k", Process: dockerSpec("sleep", "100").Process}, nil)
	ref := api.ProcessRef{ID: "host", Exec: "k"}
	v.call(api.MethodSignal, api.SignalRequest{ProcessRef: ref, Signal: 9}, nil)
	var s api.ExitStatus
	if v.call(api.MethodWait, ref, &s); s.Code != 137 || s.OOMKilled {
		t.Errorf("%+v", s)
	}
	// The first process's end ends them all.
	v.call(api.MethodExec, &api.ExecRequest{ID: "host", Exec: "l", Process: dockerSpec("sleep", "100").Process}, nil)
	v.call(api.MethodSignal, api.SignalRequest{ProcessRef: api.ProcessRef{ID: "host"}, Signal: 9}, nil)
	if v.call(api.MethodWait, api.ProcessRef{ID: "host", Exec: "l"}, &s); s.Code != 137 {
		t.Errorf("%+v", s)
	}
	if e := v.execIn("host", "m", nil, "true"); code(e.err) != api.CodeFailedPrecondition {
		t.Errorf("%+v: %v", e, e.err)
	}
}

func testTerminal(t *testing.T, v *testVM, box []api.Disk) {
	r := &api.CreateRequest{ID: "tty", Rootfs: api.Rootfs{Layers: box}, StdinOpen: true,
		Spec: dockerSpec("sh", "-c", "stty size; tty; ls -l /dev/console | cut -c1; read x; stty size; echo got $x; cat; echo end")}
	r.Spec.Process.Terminal = true
	r.Spec.Process.ConsoleSize = &specs.Box{Height: 33, Width: 111}
	ref := v.startBox(r)
	v.call(api.MethodResize, api.ResizeRequest{ProcessRef: ref, Width: 99, Height: 44}, nil)
	s, err := v.client.Stream(context.Background(), api.MethodStdin, ref, nil)
	if err != nil {
		t.Fatal(err)
	}
	s.Write([]byte("line\n"))
	s.CloseWrite()
	out, _ := v.output(ref)
	got := strings.ReplaceAll(string(out), "\r", "")
	if !strings.Contains(got, "/dev/pts/0\n") || !strings.HasSuffix(got, "44 99\ngot line\nend\n") {
		t.Errorf("%q", got)
	}
}

func testStdin(t *testing.T, v *testVM, box []api.Disk) {
	size := 64 << 20
	if testing.Short() {
		size = 8 << 20
	}
	ref := v.startBox(&api.CreateRequest{ID: "cat", Rootfs: api.Rootfs{Layers: box}, Spec: dockerSpec("cat"), StdinOpen: true})
	s, err := v.client.Stream(context.Background(), api.MethodStdin, ref, nil)
	if err != nil {
		t.Fatal(err)
	}
	data := make([]byte, size)
	for i := 0; i+8 <= len(data); i += 8 {
		binary.LittleEndian.PutUint64(data[i:], uint64(i)*0x9e3779b97f4a7c15)
	}
	begin := time.Now()
	go func() {
		s.Write(data)
		s.CloseWrite()
	}()
	out, _ := v.output(ref)
	if !bytes.Equal(out, data) {
		t.Errorf("%d of %d bytes came back, or others", len(out), len(data))
	}
	t.Logf("%d MiB through cat in %v", size>>20, time.Since(begin).Round(time.Millisecond))
}

func testLimits(t *testing.T, v *testVM, box []api.Disk) {
	limit, pids := int64(24<<20), int64(20)
	e := v.inBox(box, func(r *api.CreateRequest) {
		r.Spec.Linux.Resources = &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit, Swap: &limit}}
	}, "dd", "if=/dev/zero", "of=/dev/null", "bs=64M", "count=1")
	if e.status.Code != 137 || !e.status.OOMKilled {
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

func testMounts(t *testing.T, v *testVM, box []api.Disk) {
	layers := append([]api.Disk{v.erofsLayer("mkdir -p data/sub etc; echo v >data/sub/file; chown 5:6 data/sub; chmod 1750 data/sub; ln -s sub data/link; ln -s ../run/x/resolv etc/resolv.conf")}, box...)
	v.says(layers, func(r *api.CreateRequest) {
		r.Spec.Root.Readonly = true
		r.Spec.Mounts = append(r.Spec.Mounts, specs.Mount{Destination: "/scratch", Type: "tmpfs", Source: "tmpfs", Options: []string{"size=1m", "mode=1777", "noexec"}})
		r.Files = []api.File{{Path: "/etc/hosts", Data: []byte("127.0.0.1 localhost\n"), Mode: 0o644}, {Path: "/etc/resolv.conf", Data: []byte("nameserver 1.2.3.4\n"), Mode: 0o600}}
		r.Volumes = []string{"/data", "/new/volume"}
	}, "touch /x 2>/dev/null || echo ro; touch /scratch/x && echo rw; cat /etc/hosts /run/x/resolv; stat -Lc %a-%u-%g /data/sub /etc/resolv.conf; cat /data/link/file; touch /data/y /new/volume/z && echo volume; mount | grep -c scratch.*noexec",
		"ro\nrw\n127.0.0.1 localhost\nnameserver 1.2.3.4\n1750-5-6\n600-0-0\nv\nvolume\n1")
}

// testHostile: whatever links an image brings, nothing outside of the container is touched.
func testHostile(t *testing.T, v *testVM, box []api.Disk) {
	for _, script := range []string{
		"rm -rf dev; ln -s / dev", "rm -rf proc; ln -s /etc proc", "rm -rf sys; ln -s ../../../../sys sys",
		"rm -rf etc; ln -s /proc/1/root/etc etc", "ln -sf /proc/self/fd/3 etc/hosts", "ln -s /proc/sys/kernel/core_pattern etc/hosts",
		"ln -s hosts etc/hosts", "rm etc/passwd; mkfifo etc/passwd", "rm etc/passwd; ln -s /dev/zero etc/passwd",
		"rm -rf dev; mkdir dev; ln -s /etc/passwd dev/null; ln -s /x dev/pts; ln -s /y dev/shm", "mkdir -p dev/null/x",
	} {
		layer := v.erofsLayer(busybox + script)
		e := v.inBox([]api.Disk{layer}, func(r *api.CreateRequest) {
			r.Files = []api.File{{Path: "/etc/hosts", Data: []byte("x\n"), Mode: 0o644}}
			r.Spec.Process.Cwd = "/dev/fd/../../work"
		}, "true")
		t.Logf("%s: %v %v", script, e.status.Code, e.err)
		v.says(box, nil, "cat /proc/sys/kernel/core_pattern; echo fine", "core\nfine")
	}
}

func testInit(t *testing.T, v *testVM, box []api.Disk) {
	with := func(r *api.CreateRequest) { r.Init = true; r.User = "app" }
	v.says(box, with, "test $$ != 1; echo $?; id -u; cat /proc/1/cmdline | tr '\\0' ' ' | cut -c1-26", "0\n1000\ncradle-init container-init")
	if e := v.inBox(box, with, "sh", "-c", "kill -TERM $$"); e.status.Code != 143 {
		t.Errorf("%+v: %v", e, e.err)
	}
	ref := v.startBox(&api.CreateRequest{ID: "init", Rootfs: api.Rootfs{Layers: box}, Init: true, Spec: dockerSpec("sleep", "100")})
	time.Sleep(300 * time.Millisecond)
	v.call(api.MethodSignal, api.SignalRequest{ProcessRef: ref, Signal: 15}, nil)
	var s api.ExitStatus
	if v.call(api.MethodWait, ref, &s); s.Code != 143 {
		t.Errorf("%+v", s)
	}
}

// testOutputSurvives: what was written while no host listened, or before a session broke, is not lost.
func testOutputSurvives(t *testing.T, v *testVM, box []api.Disk) {
	ref := v.startBox(&api.CreateRequest{ID: "log", Rootfs: api.Rootfs{Layers: box}, Spec: dockerSpec("seq", "1", "400000")})
	s, err := v.client.Stream(context.Background(), api.MethodOutput, api.OutputRequest{ProcessRef: ref}, nil)
	if err != nil {
		t.Fatal(err)
	}
	first := make([]byte, 100003)
	if _, err := io.ReadFull(s, first); err != nil {
		t.Fatal(err)
	}
	v.client.Close()
	v.dial()
	// Nothing was acknowledged: it can all be had again, from any offset on.
	s, err = v.client.Stream(context.Background(), api.MethodOutput, api.OutputRequest{ProcessRef: ref, Offset: 50000}, nil)
	if err != nil {
		t.Fatal(err)
	}
	out, errs, err := readRecords(struct {
		io.Reader
		io.Writer
	}{io.MultiReader(bytes.NewReader(first[:50000]), s), s}, 0)
	if err != nil || len(errs) > 0 {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	if len(lines) != 400000 || lines[399999] != "400000" || lines[200000] != "200001" {
		t.Errorf("%d lines, last %q", len(lines), lines[len(lines)-1])
	}
	if err := v.try(api.MethodPing, nil, nil); err != nil {
		t.Error(err)
	}
	_, err = v.client.Stream(context.Background(), api.MethodOutput, api.OutputRequest{ProcessRef: ref}, nil)
	if code(err) != api.CodeFailedPrecondition {
		t.Errorf("old offset: %v", err)
	}
}

// testUpper: what is written to the disk is there in the container's next life.
func testUpper(t *testing.T, v *testVM, box []api.Disk) {
	upper := v.scratch()
	with := func(r *api.CreateRequest) { r.Rootfs.Upper = upper; r.Volumes = []string{"/vol"} }
	v.says(box, with, "echo one >/kept; echo two >/vol/kept; rm /bin/yes; echo ok", "ok")
	v.says(box, with, "cat /kept /vol/kept; ls /bin/yes 2>/dev/null", "one\ntwo")
}

func testManyLayers(t *testing.T, v *testVM, box []api.Disk) {
	layers := slices.Clone(box)
	for i := range 45 {
		layers = append(layers, v.erofsLayer(fmt.Sprintf("echo %d >n; touch f%d", i, i)))
	}
	begin := time.Now()
	v.says(layers, nil, "cat /n; ls / | grep -c ^f", "44\n45")
	t.Logf("46 layers: %v", time.Since(begin).Round(time.Millisecond))
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

func testDevices(t *testing.T, v *testVM, box []api.Disk) {
	docker := func(r *api.CreateRequest) {
		r.Spec.Linux.Resources = &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{
			{Access: "rwm"}, device("c", 1, 11, "w"),
		}}
	}
	v.says(box, docker, "mknod /d b 8 0 && head -c 1 /d 2>/dev/null || echo no; echo x >/dev/null; head -c 2 /dev/zero | wc -c; mknod /k c 1 11; head -c1 /k 2>/dev/null || echo no read; echo write >/k && echo written", "no\n2\nno read\nwritten")
	v.says(box, func(r *api.CreateRequest) {
		r.Spec.Linux.Resources = &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Access: "rwm"}, {Allow: true, Type: "a", Access: "rwm"}}}
		r.Spec.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/disk", Type: "b", Major: 8, Minor: 0}}
	}, "head -c 1 /dev/disk | wc -c", "1")
}

func testInspect(t *testing.T, v *testVM, box []api.Disk) {
	ref := v.startBox(&api.CreateRequest{ID: "seen", Rootfs: api.Rootfs{Layers: box}, Spec: dockerSpec("sh", "-c", "sleep 77 & wait")})
	time.Sleep(300 * time.Millisecond)
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

// testUnplug: once delete has answered, the host may take the disks away, and another container that shares a layer
// lives on.
func testUnplug(t *testing.T, v *testVM, box []api.Disk) {
	upper := v.scratch()
	other := v.startBox(&api.CreateRequest{ID: "other", Rootfs: api.Rootfs{Layers: box}, Spec: dockerSpec("sleep", "100")})
	e := v.inBox(box, func(r *api.CreateRequest) { r.Rootfs.Upper = upper }, "sh", "-c", "echo x >/file; sleep 5 & exit 3")
	if e.status.Code != 3 {
		t.Errorf("%+v: %v", e, e.err)
	}
	v.command("device_del", map[string]any{"id": "d" + upper.Serial})
	// The monitor lets the node go once the guest has; that takes a moment, and never comes while it is in use.
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		err := v.ask("blockdev-del", map[string]any{"node-name": upper.Serial})
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	if e := v.execIn(other.ID, "a", func(r *api.ExecRequest) { r.Process.Terminal = true }, "tty"); strings.TrimSpace(e.stdout) != "/dev/pts/0" {
		t.Errorf("%+v: %v", e, e.err)
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
		v.call(api.MethodExec, &api.ExecRequest{ID: "host", Exec: "x", Process: dockerSpec("true").Process}, nil)
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
