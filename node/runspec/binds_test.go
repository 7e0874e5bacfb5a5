package runspec

import (
	"fmt"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
)

func TestFileBinds(t *testing.T) {
	bind := func(source, target string, ro bool) mount.Mount {
		return mount.Mount{Type: mount.TypeBind, Source: source, Target: target, ReadOnly: ro}
	}
	shared := bind("/a", "/b", true)
	shared.BindOptions = &mount.BindOptions{Propagation: mount.PropagationShared}
	for _, test := range []struct {
		binds  []string
		mounts []mount.Mount
		want   string // what there is, or a part of the error
	}{
		{[]string{"data:/d"}, nil, "[]"},
		{[]string{"/x/../a:/b/:ro", "/c:/a:z,ro"}, []mount.Mount{bind("/e", "/f", true)}, "[{/c /a} {/a /b} {/e /f}]"},
		{[]string{"/a:/b"}, nil, `the writable bind mount "/a:/b" (a single file can be mounted read-only, with :ro) is not supported`},
		{[]string{"/a:/b:rw"}, nil, "with :ro) is not supported"},
		{nil, []mount.Mount{bind("/a", "/b", false)}, `the writable bind mount of "/a" at /b (a single file can be mounted read-only) is not supported`},
		{nil, []mount.Mount{bind("a", "/b", true)}, "'a' mount path must be absolute"},
		{nil, []mount.Mount{bind("/a", "b", true)}, "'b' mount path must be absolute"},
		{nil, []mount.Mount{shared}, `the propagation "shared" of /a is not supported`},
		{[]string{"/a:/b:ro"}, []mount.Mount{bind("/c", "/b", true)}, "Duplicate mount point: /b"},
		{[]string{"/a:/b:ro", "data:/b"}, nil, "Duplicate mount point: /b"},
	} {
		hc := &container.HostConfig{Binds: test.binds, Mounts: test.mounts}
		list, err := FileBinds(hc)
		if err == nil {
			err = refuse(adaptHost(hc))
		}
		got := fmt.Sprint(list)
		if err != nil {
			got = err.Error()
		}
		if !strings.Contains(got, test.want) {
			t.Errorf("%v %v: %s, want %s", test.binds, test.mounts, got, test.want)
		}
	}
}
