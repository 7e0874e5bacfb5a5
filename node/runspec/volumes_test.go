package runspec

import (
	"fmt"
	"testing"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
)

func TestNamedVolumes(t *testing.T) {
	volume := func(source, target string) mount.Mount {
		return mount.Mount{Type: mount.TypeVolume, Source: source, Target: target}
	}
	for _, test := range []struct {
		binds  []string
		mounts []mount.Mount
		want   string // what there is, or the error
	}{
		{nil, nil, "[]"},
		{[]string{"data:/var/lib/", "more:/a:ro,nocopy,z"}, nil, "[{more /a true true map[]} {data /var/lib false false map[]}]"},
		{nil, []mount.Mount{volume("data", "/d"), volume("", "/anonymous")}, "[{data /d false false map[]}]"},
		{[]string{"data:/d"}, []mount.Mount{volume("more", "/d/")}, "Duplicate mount point: /d"},
		{[]string{"data"}, nil, "invalid volume specification: 'data'"},
		{[]string{":/d"}, nil, "invalid volume specification: ':/d'"},
		{[]string{"data:d"}, nil, "invalid mount path: 'd' mount path must be absolute"},
		{[]string{"data:/"}, nil, "invalid specification: destination can't be '/'"},
		{[]string{"data:/d:odd"}, nil, "invalid mode: odd"},
		{[]string{"data:/d:rshared"}, nil, `the propagation "rshared" of data:/d:rshared is not supported`},
		{nil, []mount.Mount{volume("../x", "/d")}, `create ../x: "../x" includes invalid characters for a local volume name, only "[a-zA-Z0-9][a-zA-Z0-9_.-]" are allowed. If you intended to pass a host directory, use absolute path`},
	} {
		list, err := NamedVolumes(&container.HostConfig{Binds: test.binds, Mounts: test.mounts})
		got := fmt.Sprint(list)
		if err != nil {
			got = err.Error()
		}
		if got != test.want {
			t.Errorf("%v %v: %s, want %s", test.binds, test.mounts, got, test.want)
		}
	}
}

// A named volume, or a file, hides the anonymous one at its path, and nothing of a tmpfs. Older clients name each mount's path as a volume's, too.
func TestNamedVolumesAndOthers(t *testing.T) {
	c := prepared(t, &container.Config{Volumes: map[string]struct{}{"/data": {}, "/more": {}, "/file": {}}},
		&container.HostConfig{Binds: []string{"data:/data", "/a:/file:ro"}})
	if got, err := volumesOf(c); err != nil || fmt.Sprint(got) != "[/more]" {
		t.Errorf("%v, %v", got, err)
	}
	c.Host.Tmpfs = map[string]string{"/data": ""}
	if _, err := volumesOf(c); err == nil {
		t.Error("a tmpfs over a volume")
	}
}
