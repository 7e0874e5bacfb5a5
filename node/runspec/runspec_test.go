package runspec

import (
	"errors"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/cradlevm/cradle/api"
	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/network"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func image(c ocispec.ImageConfig) dockerspec.DockerOCIImage {
	return dockerspec.DockerOCIImage{Config: dockerspec.DockerOCIImageConfig{ImageConfig: c}}
}

func TestMergeCommand(t *testing.T) {
	img := image(ocispec.ImageConfig{Entrypoint: []string{"/entry"}, Cmd: []string{"serve", "-v"}})
	for _, tc := range []struct {
		name            string
		entrypoint, cmd []string
		want            string
	}{
		{"nothing given", nil, nil, "/entry serve -v"},
		{"command given", nil, []string{"sh"}, "/entry sh"},
		{"entrypoint given drops the image's command", []string{"sh"}, nil, "sh"},
		{"both given", []string{"sh", "-c"}, []string{"x"}, "sh -c x"},
		{"entrypoint reset", []string{""}, []string{"x"}, "x"},
		{"empty entrypoint keeps the image's command", []string{}, nil, "serve -v"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := Merge(&container.Config{Entrypoint: tc.entrypoint, Cmd: tc.cmd}, img)
			if err != nil {
				t.Fatal(err)
			}
			if s := strings.Join(slices.Concat(got.Entrypoint, got.Cmd), " "); s != tc.want {
				t.Errorf("%q, want %q", s, tc.want)
			}
		})
	}
	for _, c := range []*container.Config{{}, {Entrypoint: []string{""}}} {
		if _, err := Merge(c, image(ocispec.ImageConfig{})); !errors.Is(err, cerrdefs.ErrInvalidArgument) || err.Error() != "no command specified" {
			t.Errorf("error %v", err)
		}
	}
}

func TestMergeTheRest(t *testing.T) {
	img := image(ocispec.ImageConfig{
		User: "app", Env: []string{"A=1", "B=2", "C=3"}, WorkingDir: "/srv", StopSignal: "SIGINT", Cmd: []string{"x"},
		Labels: map[string]string{"a": "image", "b": "image"}, Volumes: map[string]struct{}{"/data": {}},
		ExposedPorts: map[string]struct{}{"80": {}, "9000-9001/udp": {}},
	})
	img.Config.Healthcheck = &dockerspec.HealthcheckConfig{Test: []string{"CMD", "true"}, Interval: 5, Retries: 2}
	img.Config.Shell = []string{"/bin/ash", "-c"}
	in := &container.Config{
		Env: []string{"B=9", "C"}, Labels: map[string]string{"b": "mine"}, Volumes: map[string]struct{}{"/v": {}},
		ExposedPorts: network.PortSet{network.MustParsePort("443/tcp"): {}}, Healthcheck: &container.HealthConfig{Interval: 7},
	}
	got, err := Merge(in, img)
	if err != nil {
		t.Fatal(err)
	}
	if got.User != "app" || got.WorkingDir != "/srv" || got.StopSignal != "SIGINT" || len(got.Shell) != 2 {
		t.Errorf("%+v", got)
	}
	if !slices.Equal(got.Env, []string{"B=9", "C", "A=1"}) {
		t.Errorf("env %q", got.Env)
	}
	if got.Labels["a"] != "image" || got.Labels["b"] != "mine" || len(got.Volumes) != 2 || len(got.ExposedPorts) != 4 {
		t.Errorf("%+v", got)
	}
	if h := got.Healthcheck; h.Interval != 7 || h.Retries != 2 || len(h.Test) != 2 {
		t.Errorf("health %+v", h)
	}
	if len(in.Env) != 2 || len(in.Labels) != 1 || in.User != "" || in.Healthcheck.Retries != 0 {
		t.Error("the client's config was changed")
	}
}

func prepared(t *testing.T, config *container.Config, hc *container.HostConfig) Container {
	t.Helper()
	if config.Cmd == nil {
		config.Cmd = []string{"true"}
	}
	c, _, err := Prepare("0123456789abcdef", config, hc, Settings{})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestEnvironment(t *testing.T) {
	c := prepared(t, &container.Config{Hostname: "h", Tty: true, Env: []string{"TERM=vt100", "X=1", "HOSTNAME", "X=2"}}, nil)
	req, err := Create(c, Settings{})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"PATH=" + defaultPath, "TERM=vt100", "X=2"}
	if !slices.Equal(req.Spec.Process.Env, want) {
		t.Errorf("%q, want %q", req.Spec.Process.Env, want)
	}
	for _, env := range []string{"", "=x", "a\x00=b"} {
		if _, _, err := Prepare("x", &container.Config{Cmd: []string{"x"}, Env: []string{env}}, nil, Settings{}); !errors.Is(err, cerrdefs.ErrInvalidArgument) {
			t.Errorf("%q: %v", env, err)
		}
	}
}

func TestCapabilities(t *testing.T) {
	for _, tc := range []struct {
		add, drop  []string
		privileged bool
		has, hasnt string
		n          int
	}{
		{nil, nil, false, "CAP_CHOWN", "CAP_SYS_ADMIN", 14},
		{[]string{"sys_admin", "CAP_CHOWN"}, nil, false, "CAP_SYS_ADMIN", "CAP_BPF", 15},
		{nil, []string{"cap_chown"}, false, "CAP_KILL", "CAP_CHOWN", 13},
		{[]string{"ALL"}, []string{"SYS_ADMIN"}, false, "CAP_BPF", "CAP_SYS_ADMIN", 40},
		{[]string{"CHOWN"}, []string{"all"}, false, "CAP_CHOWN", "CAP_KILL", 1},
		{nil, []string{"ALL"}, false, "", "CAP_CHOWN", 0},
		{nil, []string{"ALL"}, true, "CAP_SYS_ADMIN", "", 41},
	} {
		set, err := capabilities(&container.HostConfig{CapAdd: tc.add, CapDrop: tc.drop, Privileged: tc.privileged})
		if err != nil {
			t.Fatal(err)
		}
		b := set.Bounding
		if len(b) != tc.n || tc.has != "" && !slices.Contains(b, tc.has) || slices.Contains(b, tc.hasnt) {
			t.Errorf("+%v -%v: %v", tc.add, tc.drop, b)
		}
	}
	if _, err := capabilities(&container.HostConfig{CapAdd: []string{"MAGIC"}}); err == nil || !strings.Contains(err.Error(), `unknown capability: "CAP_MAGIC"`) {
		t.Error(err)
	}
}

func findMount(req []specs.Mount, dest string) *specs.Mount {
	for i := range req {
		if req[i].Destination == dest {
			return &req[i]
		}
	}
	return nil
}

func TestPrivileged(t *testing.T) {
	c := prepared(t, &container.Config{}, &container.HostConfig{Privileged: true})
	req, err := Create(c, Settings{})
	if err != nil {
		t.Fatal(err)
	}
	l := req.Spec.Linux
	if len(req.Seccomp) != 0 || len(l.MaskedPaths)+len(l.ReadonlyPaths) != 0 || len(l.Devices) == 0 || !l.Resources.Devices[0].Allow {
		t.Errorf("%+v", l)
	}
	for _, dest := range []string{"/sys", "/sys/fs/cgroup"} {
		if m := findMount(req.Spec.Mounts, dest); m == nil || slices.Contains(m.Options, "ro") {
			t.Errorf("%s: %+v", dest, m)
		}
	}
	plain, err := Create(prepared(t, &container.Config{}, nil), Settings{})
	if err != nil {
		t.Fatal(err)
	}
	if len(plain.Seccomp) == 0 || len(plain.Spec.Linux.MaskedPaths) == 0 || plain.Spec.Linux.Resources.Devices[0].Allow {
		t.Error("a plain container is not confined")
	}
	if m := findMount(plain.Spec.Mounts, "/sys"); !slices.Contains(m.Options, "ro") {
		t.Error("/sys is writable")
	}
}

func TestSecurityOptions(t *testing.T) {
	for opt, want := range map[string]error{
		"seccomp=unconfined": nil, "seccomp:unconfined": nil, "seccomp=builtin": nil, "apparmor=unconfined": nil, "label=disable": nil,
		"disable": nil, "no-new-privileges": nil, "no-new-privileges=false": nil, "writable-cgroups=true": nil,
		`seccomp={"defaultAction":"SCMP_ACT_ALLOW"}`: nil,
		"seccomp={":                 cerrdefs.ErrInvalidArgument,
		"apparmor=docker-default":   cerrdefs.ErrNotImplemented,
		"label=type:svirt":          cerrdefs.ErrNotImplemented,
		"no-new-privileges=perhaps": cerrdefs.ErrInvalidArgument,
		"nonsense":                  cerrdefs.ErrInvalidArgument,
		"nonsense=1":                cerrdefs.ErrInvalidArgument,
	} {
		_, _, err := Prepare("x", &container.Config{Cmd: []string{"x"}}, &container.HostConfig{SecurityOpt: []string{opt}}, Settings{})
		if want == nil && err != nil || want != nil && !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", opt, err, want)
		}
	}
	c := prepared(t, &container.Config{}, &container.HostConfig{SecurityOpt: []string{"seccomp=unconfined", "no-new-privileges"}})
	req, err := Create(c, Settings{})
	if err != nil || len(req.Seccomp) != 0 || !req.Spec.Process.NoNewPrivileges {
		t.Error(err, len(req.Seccomp))
	}
}

func TestTmpfsAndVolumes(t *testing.T) {
	c := prepared(t, &container.Config{Volumes: map[string]struct{}{"/data/": {}, "/run": {}}}, &container.HostConfig{
		Tmpfs:  map[string]string{"/run": "exec,size=1m,size=2m", "/tmp": ""},
		Mounts: []mount.Mount{{Type: mount.TypeVolume, Target: "/more"}, {Type: mount.TypeTmpfs, Target: "/t", ReadOnly: true, TmpfsOptions: &mount.TmpfsOptions{SizeBytes: 4096, Mode: 0o700}}},
	})
	req, err := Create(c, Settings{})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(req.Volumes, []string{"/data", "/more"}) {
		t.Errorf("volumes %q", req.Volumes)
	}
	if m := findMount(req.Spec.Mounts, "/run"); m == nil || !slices.Equal(m.Options, []string{"nosuid", "nodev", "exec", "size=2m"}) {
		t.Errorf("%+v", m)
	}
	if m := findMount(req.Spec.Mounts, "/t"); m == nil || !slices.Equal(m.Options, []string{"noexec", "nosuid", "nodev", "ro", "size=4096", "mode=700"}) {
		t.Errorf("%+v", m)
	}
	dev := prepared(t, &container.Config{}, &container.HostConfig{Tmpfs: map[string]string{"/dev": ""}})
	req, err = Create(dev, Settings{})
	if err != nil || findMount(req.Spec.Mounts, "/dev/pts") != nil {
		t.Error("a client's /dev keeps docker's mounts below it", err)
	}
	for _, bad := range []map[string]string{{"/": ""}, {"rel": ""}, {"/x": "size"}, {"/x": "loop=1"}, {"/x/..": ""}} {
		if _, _, err := Prepare("x", &container.Config{Cmd: []string{"x"}}, &container.HostConfig{Tmpfs: bad}, Settings{}); !errors.Is(err, cerrdefs.ErrInvalidArgument) {
			t.Errorf("%v: %v", bad, err)
		}
	}
}

func TestVMSize(t *testing.T) {
	const m = 1 << 20
	for _, tc := range []struct {
		r      container.Resources
		cpus   int
		memory int64
	}{
		{container.Resources{}, 1, 512 * m},
		{container.Resources{Memory: 6 * m}, 1, 128 * m},
		{container.Resources{Memory: 64 * m}, 1, 256 * m},
		{container.Resources{Memory: 189 * m}, 1, 256 * m},
		{container.Resources{Memory: 190 * m}, 1, 512 * m},
		{container.Resources{Memory: 256 * m}, 1, 512 * m},
		{container.Resources{Memory: 512 * m}, 1, 1024 * m},
		{container.Resources{Memory: 1024 * m}, 1, 2048 * m},
		{container.Resources{Memory: 4096 * m}, 1, 8192 * m},
		{container.Resources{Memory: 8064 * m}, 1, 8192*m + 4096*m},
		{container.Resources{Memory: 16384 * m}, 1, 20480 * m},
		{container.Resources{MemoryReservation: 1024 * m}, 1, 2048 * m},
		{container.Resources{NanoCPUs: 1}, 1, 512 * m},
		{container.Resources{NanoCPUs: 15e8}, 2, 512 * m},
		{container.Resources{CPUQuota: 250_000}, 3, 512 * m},
		{container.Resources{CPUQuota: 50_000, CPUPeriod: 10_000}, 5, 512 * m},
		{container.Resources{CpusetCpus: "1,3"}, 4, 512 * m},
	} {
		cpus, memory := VMSize(&container.HostConfig{Resources: tc.r}, Settings{})
		if cpus != tc.cpus || memory != tc.memory {
			t.Errorf("%+v: %d CPUs, %d MiB", tc.r, cpus, memory>>20)
		}
	}
	for _, r := range []container.Resources{
		{Memory: 1 << 20}, {NanoCPUs: 65e9}, {NanoCPUs: -1}, {CpusetCpus: "64"}, {CpusetCpus: "2-1"}, {CpusetCpus: "x"}, {Memory: 1 << 62},
		{CpusetMems: "1"}, {NanoCPUs: 1e9, CPUQuota: 1000}, {CPUPeriod: 1}, {CPUQuota: 1}, {Memory: 64 * m, MemorySwap: 32 * m},
		{Ulimits: []*container.Ulimit{{Name: "nofile", Soft: 2, Hard: 1}}}, {Ulimits: []*container.Ulimit{{Name: "magic"}}},
	} {
		if _, _, err := Prepare("x", &container.Config{Cmd: []string{"x"}}, &container.HostConfig{Resources: r}, Settings{}); !errors.Is(err, cerrdefs.ErrInvalidArgument) {
			t.Errorf("%+v: %v", r, err)
		}
	}
}

func TestDevices(t *testing.T) {
	for path, want := range map[string]error{"/dev/fuse": nil, "/dev/net/tun": nil, "/dev/null": nil, "/dev/kvm": cerrdefs.ErrNotImplemented} {
		_, _, err := Prepare("x", &container.Config{Cmd: []string{"x"}}, &container.HostConfig{Resources: container.Resources{
			Devices: []container.DeviceMapping{{PathOnHost: path, PathInContainer: path}},
		}}, Settings{})
		if want == nil && err != nil || want != nil && (!errors.Is(err, want) || !strings.Contains(err.Error(), path)) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

func TestExec(t *testing.T) {
	c := prepared(t, &container.Config{User: "app", WorkingDir: "/srv", Env: []string{"A=1"}}, &container.HostConfig{
		GroupAdd: []string{"audio"}, CapDrop: []string{"ALL"}, OomScoreAdj: 5,
	})
	req, err := Exec(c, "e0", container.ExecCreateRequest{Cmd: []string{"sh"}})
	if err != nil || !reflect.DeepEqual(req, api.ExecRequest{ID: c.ID, Exec: "e0", Args: []string{"sh"}}) {
		t.Errorf("%v: what is the container's is said: %+v", err, req)
	}
	req, err = Exec(c, "e1", container.ExecCreateRequest{Cmd: []string{"sh"}, Tty: true, Env: []string{"A=2", "B=3"}, AttachStdin: true, ConsoleSize: &[2]uint{10, 20}})
	if err != nil {
		t.Fatal(err)
	}
	if !req.Terminal || !req.StdinOpen || req.ConsoleSize.Width != 20 || req.Capabilities != nil {
		t.Errorf("%+v", req)
	}
	if !slices.Equal(req.Env, []string{"PATH=" + defaultPath, "HOSTNAME=0123456789ab", "TERM=xterm", "A=2", "B=3"}) {
		t.Errorf("%q", req.Env)
	}
	req, err = Exec(c, "e2", container.ExecCreateRequest{Cmd: []string{"sh"}, Privileged: true, User: "1:2", WorkingDir: "/x", Env: []string{"PATH", "HOSTNAME", "A"}})
	if err != nil || len(req.Capabilities.Bounding) != 41 || req.User != "1:2" || req.Cwd != "/x" || req.Env == nil || len(req.Env) != 0 {
		t.Errorf("%v %+v", err, req)
	}
	if _, err = Exec(c, "e3", container.ExecCreateRequest{}); err == nil || err.Error() != "No exec command specified" {
		t.Error(err)
	}
}

func TestFiles(t *testing.T) {
	c := prepared(t, &container.Config{Hostname: "web"}, &container.HostConfig{ExtraHosts: []string{"db:10.0.0.1", "v6:[2001:db8::1]"}, DNSSearch: []string{"."}})
	req, err := Create(c, Settings{})
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, f := range req.Files {
		got[f.Path] = string(f.Data)
	}
	if got["/etc/hostname"] != "web\n" || !strings.HasSuffix(got["/etc/hosts"], "10.0.0.1\tdb\n2001:db8::1\tv6\n") || strings.Contains(got["/etc/resolv.conf"], "search") {
		t.Errorf("%q", got)
	}
	for host, want := range map[string]error{"x": cerrdefs.ErrInvalidArgument, "a\nb:1.2.3.4": cerrdefs.ErrInvalidArgument, "x:host-gateway": cerrdefs.ErrNotImplemented, "x:y": cerrdefs.ErrInvalidArgument} {
		if _, _, err := Prepare("x", &container.Config{Cmd: []string{"x"}}, &container.HostConfig{NetworkMode: "none", ExtraHosts: []string{host}}, Settings{}); !errors.Is(err, want) {
			t.Errorf("%q: %v", host, err)
		}
	}
}

func TestFilesOnNetwork(t *testing.T) {
	c := prepared(t, &container.Config{Hostname: "web", Domainname: "example.org"}, &container.HostConfig{
		ExtraHosts: []string{"up:host-gateway"}, DNSOptions: []string{"ndots:2"}})
	c.Net = Addressing{
		Addresses:   []netip.Addr{netip.MustParseAddr("172.18.0.2"), netip.MustParseAddr("fd00::2")},
		HostGateway: netip.MustParseAddr("172.18.0.1"), Nameservers: []netip.Addr{netip.MustParseAddr("172.18.0.1")},
		Search: []string{"corp"}, Options: []string{"ndots:0"},
	}
	files, err := Files(c)
	if err != nil {
		t.Fatal(err)
	}
	const hosts = "172.18.0.1\tup\n172.18.0.2\tweb.example.org web\nfd00::2\tweb.example.org web\n"
	if got := string(files[1].Data); !strings.HasSuffix(got, hosts) {
		t.Errorf("hosts %q", got)
	}
	const resolv = "\nnameserver 172.18.0.1\nsearch corp\noptions ndots:2\n"
	if got := string(files[2].Data); !strings.HasSuffix(got, resolv) {
		t.Errorf("resolv.conf %q", got)
	}
}

func TestLogAndScratch(t *testing.T) {
	hc := &container.HostConfig{LogConfig: container.LogConfig{Type: "local", Config: map[string]string{"max-size": "10m", "max-file": "3"}}, StorageOpt: map[string]string{"size": "1G"}}
	o, err := Log(hc)
	if err != nil || !reflect.DeepEqual(o, LogOptions{"local", 10 << 20, 3}) {
		t.Errorf("%+v %v", o, err)
	}
	if n, err := ScratchSize(hc, Settings{}); err != nil || n != 1<<30 {
		t.Error(n, err)
	}
	for _, bad := range []container.LogConfig{{Type: "syslog"}, {Config: map[string]string{"max-size": "x"}}, {Config: map[string]string{"max-file": "0"}}, {Config: map[string]string{"what": "x"}}, {Type: "local", Config: map[string]string{"tag": "x"}}} {
		if _, err := Log(&container.HostConfig{LogConfig: bad}); err == nil {
			t.Errorf("%+v accepted", bad)
		}
	}
}

func FuzzTmpfsOptions(f *testing.F) {
	f.Add("noexec,exec,size=1m")
	f.Fuzz(func(t *testing.T, s string) {
		out, err := mergeTmpfs(strings.Split(s, ","))
		if err == nil {
			again, err := mergeTmpfs(out)
			if err != nil || !slices.Equal(out, again) {
				t.Errorf("%q: %q then %q", s, out, again)
			}
		}
	})
}
