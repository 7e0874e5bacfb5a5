package node

import (
	"context"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	mobynet "github.com/moby/moby/api/types/network"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// different has, for each field of a container's configuration that what runs in it may depend on, another value.
func different() map[string]func(*container.CreateRequest) {
	num := func(v int64) *int64 { return &v }
	yes, mask := true, uint32(0o77)
	return map[string]func(*container.CreateRequest){
		"Domainname": func(r *container.CreateRequest) { r.Domainname = "x.org" },
		"User":       func(r *container.CreateRequest) { r.User = "1" },
		"Tty":        func(r *container.CreateRequest) { r.Tty = true },
		"OpenStdin":  func(r *container.CreateRequest) { r.OpenStdin = true },
		"StdinOnce":  func(r *container.CreateRequest) { r.StdinOnce = true },
		"Env":        func(r *container.CreateRequest) { r.Env = []string{"A=1"} },
		"Cmd":        func(r *container.CreateRequest) { r.Cmd = []string{"sleep", "1"} },
		"Entrypoint": func(r *container.CreateRequest) { r.Entrypoint = []string{"sleep"} },
		"Healthcheck": func(r *container.CreateRequest) {
			r.Healthcheck = &container.HealthConfig{Test: []string{"CMD", "true"}}
		},
		"Volumes":     func(r *container.CreateRequest) { r.Volumes = map[string]struct{}{"/v": {}} },
		"WorkingDir":  func(r *container.CreateRequest) { r.WorkingDir = "/x" },
		"OnBuild":     func(r *container.CreateRequest) { r.OnBuild = []string{"x"} },
		"StopSignal":  func(r *container.CreateRequest) { r.StopSignal = "INT" },
		"StopTimeout": func(r *container.CreateRequest) { n := 3; r.StopTimeout = &n },
		"Shell":       func(r *container.CreateRequest) { r.Shell = []string{"/bin/x"} },

		"NetworkMode":    func(r *container.CreateRequest) { r.HostConfig.NetworkMode = "none" },
		"Annotations":    func(r *container.CreateRequest) { r.HostConfig.Annotations = map[string]string{"a": "b"} },
		"CapAdd":         func(r *container.CreateRequest) { r.HostConfig.CapAdd = []string{"NET_ADMIN"} },
		"CapDrop":        func(r *container.CreateRequest) { r.HostConfig.CapDrop = []string{"CAP_CHOWN"} },
		"DNS":            func(r *container.CreateRequest) { r.HostConfig.DNS = []netip.Addr{netip.MustParseAddr("1.1.1.1")} },
		"DNSOptions":     func(r *container.CreateRequest) { r.HostConfig.DNSOptions = []string{"ndots:1"} },
		"DNSSearch":      func(r *container.CreateRequest) { r.HostConfig.DNSSearch = []string{"x.org"} },
		"ExtraHosts":     func(r *container.CreateRequest) { r.HostConfig.ExtraHosts = []string{"db:10.0.0.1"} },
		"GroupAdd":       func(r *container.CreateRequest) { r.HostConfig.GroupAdd = []string{"7"} },
		"IpcMode":        func(r *container.CreateRequest) { r.HostConfig.IpcMode = container.IPCModeNone },
		"OomScoreAdj":    func(r *container.CreateRequest) { r.HostConfig.OomScoreAdj = 500 },
		"Privileged":     func(r *container.CreateRequest) { r.HostConfig.Privileged = true },
		"ReadonlyRootfs": func(r *container.CreateRequest) { r.HostConfig.ReadonlyRootfs = true },
		"SecurityOpt":    func(r *container.CreateRequest) { r.HostConfig.SecurityOpt = []string{"no-new-privileges"} },
		"StorageOpt":     func(r *container.CreateRequest) { r.HostConfig.StorageOpt = map[string]string{"size": "1g"} },
		"Tmpfs":          func(r *container.CreateRequest) { r.HostConfig.Tmpfs = map[string]string{"/run": "size=1m"} },
		"ShmSize":        func(r *container.CreateRequest) { r.HostConfig.ShmSize = 1 << 20 },
		"Sysctls": func(r *container.CreateRequest) {
			r.HostConfig.Sysctls = map[string]string{"vm.max_map_count": "262144"}
		},
		"Umask":             func(r *container.CreateRequest) { r.HostConfig.Umask = &mask },
		"CPUShares":         func(r *container.CreateRequest) { r.HostConfig.CPUShares = 512 },
		"Memory":            func(r *container.CreateRequest) { r.HostConfig.Memory = 64 << 20 },
		"NanoCPUs":          func(r *container.CreateRequest) { r.HostConfig.NanoCPUs = 5e8 },
		"BlkioWeight":       func(r *container.CreateRequest) { r.HostConfig.BlkioWeight = 100 },
		"CPUPeriod":         func(r *container.CreateRequest) { r.HostConfig.CPUPeriod = 50000 },
		"CPUQuota":          func(r *container.CreateRequest) { r.HostConfig.CPUQuota = 20000 },
		"CpusetCpus":        func(r *container.CreateRequest) { r.HostConfig.CpusetCpus = "0" },
		"CpusetMems":        func(r *container.CreateRequest) { r.HostConfig.CpusetMems = "0" },
		"DeviceCgroupRules": func(r *container.CreateRequest) { r.HostConfig.DeviceCgroupRules = []string{"c 10:* rwm"} },
		"Devices": func(r *container.CreateRequest) {
			r.HostConfig.Devices = []container.DeviceMapping{{PathOnHost: "/dev/fuse", PathInContainer: "/dev/fuse", CgroupPermissions: "rwm"}}
		},
		"MemoryReservation": func(r *container.CreateRequest) { r.HostConfig.MemoryReservation = 32 << 20 },
		"MemorySwap":        func(r *container.CreateRequest) { r.HostConfig.Memory, r.HostConfig.MemorySwap = 64<<20, 80<<20 },
		"PidsLimit":         func(r *container.CreateRequest) { r.HostConfig.PidsLimit = num(100) },
		"Ulimits": func(r *container.CreateRequest) {
			r.HostConfig.Ulimits = []*container.Ulimit{{Name: "nofile", Soft: 10, Hard: 20}}
		},
		"Mounts": func(r *container.CreateRequest) {
			r.HostConfig.Mounts = []mount.Mount{{Type: mount.TypeTmpfs, Target: "/t"}}
		},
		"MaskedPaths":   func(r *container.CreateRequest) { r.HostConfig.MaskedPaths = []string{"/proc/x"} },
		"ReadonlyPaths": func(r *container.CreateRequest) { r.HostConfig.ReadonlyPaths = []string{"/proc/y"} },
		"Init":          func(r *container.CreateRequest) { r.HostConfig.Init = &yes },
	}
}

// same has what nothing depends on that runs.
func same() map[string]func(*container.CreateRequest) {
	return map[string]func(*container.CreateRequest){
		"Hostname":     func(r *container.CreateRequest) { r.Hostname = "x" },
		"Image":        func(*container.CreateRequest) {}, // a name: its id is in the key
		"AttachStdin":  func(r *container.CreateRequest) { r.AttachStdin = true },
		"AttachStdout": func(r *container.CreateRequest) { r.AttachStdout = true },
		"AttachStderr": func(r *container.CreateRequest) { r.AttachStderr = true },
		"ExposedPorts": func(r *container.CreateRequest) {
			r.ExposedPorts = mobynet.PortSet{mobynet.MustParsePort("80/tcp"): {}}
		},
		"Labels":          func(r *container.CreateRequest) { r.Labels["x"] = "y" },
		"ContainerIDFile": func(r *container.CreateRequest) { r.HostConfig.ContainerIDFile = "/tmp/x" },
		"LogConfig":       func(r *container.CreateRequest) { r.HostConfig.LogConfig = container.LogConfig{Type: "local"} },
		"PortBindings": func(r *container.CreateRequest) {
			r.HostConfig.PortBindings = mobynet.PortMap{mobynet.MustParsePort("80/tcp"): nil}
		},
		"RestartPolicy":   func(r *container.CreateRequest) { r.HostConfig.RestartPolicy.Name = "always" },
		"AutoRemove":      func(r *container.CreateRequest) { r.HostConfig.AutoRemove = true },
		"PublishAllPorts": func(r *container.CreateRequest) { r.HostConfig.PublishAllPorts = true },
		"ConsoleSize":     func(r *container.CreateRequest) { r.HostConfig.ConsoleSize = [2]uint{24, 80} },
		// Discarded, with a warning.
		"MemorySwappiness": func(*container.CreateRequest) {}, "OomKillDisable": func(*container.CreateRequest) {},
	}
}

// refused are the fields with which nothing is made (runspec's tests see to that), or nothing starts warm.
var refused = strings.Fields(`Binds VolumeDriver VolumesFrom CgroupnsMode Cgroup Links PidMode UTSMode UsernsMode Runtime Isolation CgroupParent
	BlkioWeightDevice BlkioDeviceReadBps BlkioDeviceWriteBps BlkioDeviceReadIOps BlkioDeviceWriteIOps CPURealtimePeriod CPURealtimeRuntime
	DeviceRequests CPUCount CPUPercent IOMaximumIOps IOMaximumBandwidth ArgsEscaped NetworkDisabled`)

// Whatever is configured in another way has another warm image, whichever of the settings it is; who it is makes none.
func TestWarmKeyCoversAll(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		key := func(change func(*container.CreateRequest)) string {
			t.Helper()
			r := container.CreateRequest{Config: &container.Config{Image: "img", Cmd: []string{"sleep"}}, HostConfig: &container.HostConfig{}}
			warm()(&r)
			change(&r)
			made, err := h.ContainerCreate(context.Background(), "", nil, r)
			if err != nil {
				t.Fatal(err)
			}
			c := h.find1(made.ID)
			return c.warmKey(context.Background(), c.snapshot())
		}
		base := key(func(*container.CreateRequest) {})
		seen := map[string]string{"": "none", base: "the base"}
		for name, change := range different() {
			k := key(change)
			if other := seen[k]; other != "" && name != "NetworkMode" { // without networks all have that one
				t.Errorf("%s: the key is that of %s", name, other)
			}
			seen[k] = name
			if again := key(change); again != k {
				t.Errorf("%s: two keys of the same", name)
			}
		}
		for name, change := range same() {
			if k := key(change); k != base {
				t.Errorf("%s makes another key", name)
			}
		}
		var known []string
		for name := range different() {
			known = append(known, name)
		}
		for name := range same() {
			known = append(known, name)
		}
		known = append(known, refused...)
		for _, of := range []any{container.Config{}, container.HostConfig{}, container.Resources{}} {
			for f := range reflect.TypeOf(of).Fields() {
				if !f.Anonymous && !slices.Contains(known, f.Name) {
					t.Errorf("nobody has thought of %s", f.Name)
				}
			}
		}
		// What cradle itself adds counts, too.
		h.settings.Scratch = 1 << 30
		if key(func(*container.CreateRequest) {}) == base {
			t.Error("another size of the disk makes the same key")
		}
	})
}

// What may be a secret is found wherever a user can put one, except in what the image has for everybody.
func TestSecretIn(t *testing.T) {
	own := dockerspec.DockerOCIImageConfig{ImageConfig: ocispec.ImageConfig{
		Env: []string{"PATH=/bin", "DB_PASSWORD=default"}, Entrypoint: []string{"docker-entrypoint.sh"}, Cmd: []string{"serve", "--password=default"},
	}}
	for _, pair := range []string{
		"DB_PASSWORD=mine", "DB_PASS=x", "PGPASSWORD=x", "SSH_PASSPHRASE=x", "MYSQL_PWD=x", "github_token=x", "API_KEY=x", "KEY=x", "AUTH=x", "SENTRY_DSN=x",
		"DATABASE_URL=postgres://u:p@db/x", "REDIS_URL=redis://:p@cache:6379", "CONN=Server=db;Password=p", "CERT=-----BEGIN RSA PRIVATE KEY-----\nx",
		"A=AKIAIOSFODNN7EXAMPLE", "B=ghp_abcdefghijklmnopqrstuvwx", "C=eyJhbGciOiJI.eyJzdWIiOiIx.c2ln",
	} {
		got := secretIn(container.Config{Env: []string{"PATH=/bin", pair}}, own)
		if name, value, _ := strings.Cut(pair, "="); !strings.Contains(got, name) || len(value) > 1 && strings.Contains(got, value) {
			t.Errorf("%s: %q", pair, got)
		}
	}
	for _, word := range []string{
		"--password=x", "--requirepass", "--db-password", "-password", "--admin-token=x", "--api-key=x", "PASSWORD=x", "http://u:p@proxy:80",
		"redis-server --requirepass x", "exec serve --secret x", "export TOKEN=x; serve",
	} {
		if got := secretIn(container.Config{Cmd: []string{"serve", word}}, own); !strings.Contains(got, "command") || strings.Contains(got, word) {
			t.Errorf("%s: %q", word, got)
		}
		for _, c := range []container.Config{
			{Healthcheck: &container.HealthConfig{Test: []string{"CMD-SHELL", word}}}, {Labels: map[string]string{warmReadyLabel: word}}, {Entrypoint: []string{word}},
		} {
			if secretIn(c, own) == "" {
				t.Errorf("%s is not found in %+v", word, c)
			}
		}
	}
	for _, c := range []container.Config{
		{Env: own.Env, Cmd: own.Cmd, Entrypoint: own.Entrypoint},
		{Env: []string{"MODE=fast", "URL=http://host:80/a@b", "TIME=12:30", "BYPASS=1", "LANG=C"}},
		{Cmd: []string{"sh", "-c", "echo the password is not here; exec redis-server --save '' --port 6379"}},
		{Cmd: []string{"nginx", "-g", "daemon off;"}, Healthcheck: &container.HealthConfig{Test: []string{"CMD", "curl", "http://localhost:80/"}}},
	} {
		c.Labels = map[string]string{warmReadyLabel: "redis-cli ping"}
		if got := secretIn(c, own); got != "" && !slices.Contains(c.Env, "BYPASS=1") {
			t.Errorf("%+v: %s", c, got)
		}
	}
}

// Who asks for a warm start of what has failed is told why there is none.
func TestWarmFailureIsTold(t *testing.T) {
	inBubble(t, func(t *testing.T, h *house) {
		id := h.create("one", "true", warm(), autoRemove) // it is gone when its shadow fails
		told := h.actions(id)
		h.start(id)
		h.settled()
		if all := strings.Join(told(), " "); !strings.Contains(all, "warm_failed") {
			t.Errorf("events: %s", all)
		}
		create := func() []string {
			r := container.CreateRequest{Config: &container.Config{Image: "img", Cmd: []string{"true"}}, HostConfig: &container.HostConfig{}}
			warm()(&r)
			made, err := h.ContainerCreate(context.Background(), "", nil, r)
			if err != nil {
				t.Fatal(err)
			}
			return made.Warnings
		}
		if got := create(); len(got) != 1 || !strings.Contains(got[0], "does not start warm: its warm image could not be made at") ||
			!strings.Contains(got[0], "its process has ended with 0") {
			t.Errorf("%q", got)
		}
		h.restart()
		if got := create(); len(got) != 1 {
			t.Errorf("after a restart: %q", got)
		}
		h.ago(warmRetry)
		if got := create(); len(got) != 0 {
			t.Errorf("a day later: %q", got)
		}
	})
}

// ago makes all that is said of failed shadows older.
func (h *house) ago(d time.Duration) {
	h.t.Helper()
	for _, name := range h.warmImages() {
		if strings.HasSuffix(name, failureSuffix) {
			at := time.Now().Add(-d)
			if err := os.Chtimes(h.path("root", "warm", name), at, at); err != nil {
				h.t.Fatal(err)
			}
		}
	}
}
