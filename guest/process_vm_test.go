package guest

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cradlevm/cradle/api"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

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
			Spec: dockerSpec("sh", "-c", "trap 'exit 143' TERM; sleep 100 & echo; wait")}, nil)
		v.call(api.MethodStart, ref, nil)
		v.firstOutput(ref) // before its trap is set, it is deaf
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
	v.says(box, nil, "echo $(ps -o pid,comm)", "PID COMMAND 1 sh 2 ps")
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

// testFilters has the guest's kernel, which learns what filters allow, judge system calls as the host's does.
func testFilters(t *testing.T, v *testVM, box []api.Disk) {
	program := filepath.Join(t.TempDir(), "filtercheck")
	build := exec.Command("go", "build", "-trimpath", "-o", program, "github.com/cradlevm/cradle/seccomp/filtercheck")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if out, err := exec.Command(program).CombinedOutput(); err != nil {
		t.Errorf("on this host: %v\n%s", err, out)
	}
	layers := append([]api.Disk{v.erofsLayer("cp " + program + " .; mkdir proc dev sys")}, box...)
	if e := v.inBox(layers, nil, "/filtercheck"); e.err != nil || e.stdout != "as the filters say\n" {
		t.Errorf("%s%s (%+v, %v)", e.stdout, e.stderr, e.status, e.err)
	}
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

func testInit(t *testing.T, v *testVM, box []api.Disk) {
	with := func(r *api.CreateRequest) { r.Init = true; r.User = "app" }
	v.says(box, with, "test $$ != 1; echo $?; id -u; cat /proc/1/cmdline | tr '\\0' ' ' | cut -c1-26", "0\n1000\ncradle-init container-init")
	if e := v.inBox(box, with, "sh", "-c", "kill -TERM $$"); e.status.Code != 143 {
		t.Errorf("%+v: %v", e, e.err)
	}
	ref := v.startBox(&api.CreateRequest{ID: "init", Rootfs: api.Rootfs{Layers: box}, Init: true, Spec: dockerSpec("sh", "-c", "echo; sleep 100")})
	v.firstOutput(ref) // before it has a child, init hands nothing on
	v.call(api.MethodSignal, api.SignalRequest{ProcessRef: ref, Signal: 15}, nil)
	var s api.ExitStatus
	if v.call(api.MethodWait, ref, &s); s.Code != 143 {
		t.Errorf("%+v", s)
	}
}
