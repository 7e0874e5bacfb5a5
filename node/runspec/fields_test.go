package runspec

import (
	"errors"
	"net/netip"
	"reflect"
	"testing"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/blkiodev"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/network"
)

type outcome int

const (
	honoured outcome = iota // the request, the machine, the disk or the log differs
	refused                 // ErrNotImplemented
	wrong                   // ErrInvalidArgument
	warned                  // discarded with a warning
	carried                 // the node itself carries it out, from the HostConfig that Prepare returned
)

func ptr[T any](v T) *T { return &v }

// hostFields says for every field of HostConfig what a value of it does.
func hostFields() map[string]struct {
	value any
	want  outcome
} {
	type row = struct {
		value any
		want  outcome
	}
	throttle := []*blkiodev.ThrottleDevice{{Path: "/dev/sda", Rate: 1}}
	return map[string]row{
		"Binds":                {[]string{"/a:/b"}, refused},
		"ContainerIDFile":      {"/tmp/cid", carried},
		"LogConfig":            {container.LogConfig{Type: "local", Config: map[string]string{"max-size": "1m"}}, honoured},
		"NetworkMode":          {container.NetworkMode("host"), refused},
		"PortBindings":         {network.PortMap{network.MustParsePort("80/tcp"): nil}, carried},
		"RestartPolicy":        {container.RestartPolicy{Name: "always"}, carried},
		"AutoRemove":           {true, carried},
		"VolumeDriver":         {"nfs", refused},
		"VolumesFrom":          {[]string{"x"}, refused},
		"ConsoleSize":          {[2]uint{24, 80}, honoured},
		"Annotations":          {map[string]string{"a": "b"}, honoured},
		"CapAdd":               {[]string{"NET_ADMIN"}, honoured},
		"CapDrop":              {[]string{"CAP_CHOWN"}, honoured},
		"CgroupnsMode":         {container.CgroupnsModeHost, refused},
		"DNS":                  {[]netip.Addr{netip.MustParseAddr("1.1.1.1")}, honoured},
		"DNSOptions":           {[]string{"ndots:1"}, honoured},
		"DNSSearch":            {[]string{"example.org"}, honoured},
		"ExtraHosts":           {[]string{"db:10.0.0.1"}, honoured},
		"GroupAdd":             {[]string{"audio"}, honoured},
		"IpcMode":              {container.IPCModeHost, refused},
		"Cgroup":               {container.CgroupSpec("container:x"), refused},
		"Links":                {[]string{"a:b"}, refused},
		"OomScoreAdj":          {500, honoured},
		"PidMode":              {container.PidMode("host"), refused},
		"Privileged":           {true, honoured},
		"PublishAllPorts":      {true, carried},
		"ReadonlyRootfs":       {true, honoured},
		"SecurityOpt":          {[]string{"no-new-privileges"}, honoured},
		"StorageOpt":           {map[string]string{"size": "1g"}, honoured},
		"Tmpfs":                {map[string]string{"/run": "size=1m"}, honoured},
		"UTSMode":              {container.UTSMode("host"), refused},
		"UsernsMode":           {container.UsernsMode("host"), refused},
		"ShmSize":              {int64(1 << 20), honoured},
		"Sysctls":              {map[string]string{"vm.max_map_count": "262144"}, honoured},
		"Runtime":              {"runc", wrong},
		"Umask":                {ptr(uint32(0o77)), honoured},
		"Isolation":            {container.IsolationHyperV, wrong},
		"CPUShares":            {int64(512), honoured},
		"Memory":               {int64(64 << 20), honoured},
		"NanoCPUs":             {int64(15e8), honoured},
		"CgroupParent":         {"/x", refused},
		"BlkioWeight":          {uint16(100), honoured},
		"BlkioWeightDevice":    {[]*blkiodev.WeightDevice{{Path: "/dev/sda", Weight: 10}}, refused},
		"BlkioDeviceReadBps":   {throttle, refused},
		"BlkioDeviceWriteBps":  {throttle, refused},
		"BlkioDeviceReadIOps":  {throttle, refused},
		"BlkioDeviceWriteIOps": {throttle, refused},
		"CPUPeriod":            {int64(50000), honoured},
		"CPUQuota":             {int64(200000), honoured},
		"CPURealtimePeriod":    {int64(1000), refused},
		"CPURealtimeRuntime":   {int64(1000), refused},
		"CpusetCpus":           {"0,2-3", honoured},
		"CpusetMems":           {"0", honoured},
		"Devices":              {[]container.DeviceMapping{{PathOnHost: "/dev/fuse", PathInContainer: "/dev/fuse", CgroupPermissions: "rwm"}}, honoured},
		"DeviceCgroupRules":    {[]string{"c 10:* rwm"}, honoured},
		"DeviceRequests":       {[]container.DeviceRequest{{Count: -1}}, refused},
		"MemoryReservation":    {int64(32 << 20), honoured},
		"MemorySwap":           {int64(64 << 20), wrong}, // without a memory limit
		"MemorySwappiness":     {ptr(int64(60)), warned},
		"OomKillDisable":       {ptr(true), warned},
		"PidsLimit":            {ptr(int64(100)), honoured},
		"Ulimits":              {[]*container.Ulimit{{Name: "nofile", Soft: 10, Hard: 20}}, honoured},
		"CPUCount":             {int64(1), refused},
		"CPUPercent":           {int64(1), refused},
		"IOMaximumIOps":        {uint64(1), refused},
		"IOMaximumBandwidth":   {uint64(1), refused},
		"Mounts":               {[]mount.Mount{{Type: mount.TypeTmpfs, Target: "/t"}}, honoured},
		"MaskedPaths":          {[]string{"/proc/x"}, honoured},
		"ReadonlyPaths":        {[]string{"/proc/y"}, honoured},
		"Init":                 {ptr(true), honoured},
	}
}

// everything that leaves this package for one HostConfig.
func product(t *testing.T, c Container) []any {
	t.Helper()
	req, err := Create(c, Settings{})
	if err != nil {
		t.Fatal(err)
	}
	cpus, memory := VMSize(c.Host, Settings{})
	scratch, err := ScratchSize(c.Host, Settings{})
	if err != nil {
		t.Fatal(err)
	}
	log, err := Log(c.Host)
	if err != nil {
		t.Fatal(err)
	}
	return []any{req, cpus, memory, scratch, log}
}

func TestEveryHostConfigFieldIsAnsweredFor(t *testing.T) {
	rows := hostFields()
	config := &container.Config{Cmd: []string{"true"}, Tty: true}
	base, _, err := Prepare("0123456789abcdef", config, nil, Settings{})
	if err != nil {
		t.Fatal(err)
	}
	var walk func(typ reflect.Type, index []int)
	walk = func(typ reflect.Type, index []int) {
		for i := range typ.NumField() {
			f := typ.Field(i)
			at := append(append([]int{}, index...), i)
			if f.Anonymous {
				walk(f.Type, at)
				continue
			}
			row, ok := rows[f.Name]
			if !ok {
				t.Errorf("HostConfig.%s is neither honoured nor refused: give it a row", f.Name)
				continue
			}
			delete(rows, f.Name)
			t.Run(f.Name, func(t *testing.T) {
				var hc container.HostConfig
				reflect.ValueOf(&hc).Elem().FieldByIndex(at).Set(reflect.ValueOf(row.value))
				c, warnings, err := Prepare("0123456789abcdef", config, &hc, Settings{})
				switch row.want {
				case refused:
					if !errors.Is(err, cerrdefs.ErrNotImplemented) {
						t.Errorf("error %v, want not implemented", err)
					}
					return
				case wrong:
					if !errors.Is(err, cerrdefs.ErrInvalidArgument) {
						t.Errorf("error %v, want invalid argument", err)
					}
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				if (len(warnings) > 0) != (row.want == warned) {
					t.Errorf("warnings %q", warnings)
				}
				if row.want == carried && !reflect.DeepEqual(reflect.ValueOf(c.Host).Elem().FieldByIndex(at).Interface(), row.value) {
					t.Error("not carried in the HostConfig")
				}
				if row.want == honoured && reflect.DeepEqual(product(t, c), product(t, base)) {
					t.Error("changes nothing")
				}
			})
		}
	}
	walk(reflect.TypeFor[container.HostConfig](), nil)
	for name := range rows {
		t.Errorf("HostConfig has no field %s any more", name)
	}
}

// TestWhatTheCLISends is the HostConfig of a plain `docker run`: nothing of it may be refused.
func TestWhatTheCLISends(t *testing.T) {
	hc := &container.HostConfig{
		NetworkMode: "default", RestartPolicy: container.RestartPolicy{Name: "no"}, ConsoleSize: [2]uint{40, 120},
		DNS: []netip.Addr{}, DNSOptions: []string{}, DNSSearch: []string{}, PortBindings: network.PortMap{},
		Resources: container.Resources{
			BlkioWeightDevice: []*blkiodev.WeightDevice{}, Devices: []container.DeviceMapping{},
			MemorySwappiness: ptr(int64(-1)), OomKillDisable: ptr(false), PidsLimit: ptr(int64(0)), Ulimits: []*container.Ulimit{},
		},
	}
	c, warnings, err := Prepare("0123456789abcdef", &container.Config{Cmd: []string{"sh"}, AttachStdout: true}, hc, Settings{})
	if err != nil || len(warnings) > 0 {
		t.Fatal(err, warnings)
	}
	if c.Host.IpcMode != "private" || c.Host.ShmSize != 64<<20 || c.Host.Runtime != "cradle" || c.Config.Hostname != "0123456789ab" {
		t.Errorf("defaults not filled in: %+v", c.Host)
	}
	if hc.IpcMode != "" {
		t.Error("the client's HostConfig was changed")
	}
}
