package guestos

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

func names(modules []Module) []string {
	var out []string
	for _, m := range modules {
		out = append(out, m.Name)
	}
	return out
}

func TestResolveModules(t *testing.T) {
	tree := t.TempDir()
	writeFile(t, tree, "modules.dep", `kernel/drivers/net/virtio_net.ko.xz: kernel/net/net_failover.ko.xz kernel/net/core/failover.ko.xz
kernel/net/net_failover.ko.xz: kernel/net/core/failover.ko.xz
kernel/net/core/failover.ko.xz:
kernel/fs/ext4/ext4.ko.xz: kernel/lib/crc16.ko.xz kernel/fs/mbcache.ko.xz kernel/fs/jbd2/jbd2.ko.xz

kernel/lib/crc16.ko.xz:
kernel/fs/mbcache.ko.xz:
kernel/fs/jbd2/jbd2.ko.xz:
kernel/drivers/scsi/sd-mod.ko:
kernel/sound/none-of-ours.ko: kernel/lib/crc16.ko.xz
`)
	writeFile(t, tree, "modules.builtin", "kernel/drivers/virtio/virtio_pci.ko\nkernel/fs/fuse/fuse.ko\n")
	tests := []struct {
		about          string
		ask            []string
		found, missing []string
	}{
		{"dependencies come first", []string{"virtio_net"}, []string{"failover", "net_failover", "virtio_net"}, nil},
		{"nothing twice", []string{"failover", "virtio_net", "virtio_net"}, []string{"failover", "net_failover", "virtio_net"}, nil},
		{"depmod's order is the reverse of loading", []string{"ext4"}, []string{"jbd2", "mbcache", "crc16", "ext4"}, nil},
		{"built in", []string{"virtio_pci", "fuse"}, nil, nil},
		{"unknown ones are told", []string{"virtiofs", "crc16", "xyz"}, []string{"crc16"}, []string{"virtiofs", "xyz"}},
		{"- and _ are the same", []string{"sd_mod", "sd-mod"}, []string{"sd_mod"}, nil},
	}
	for _, tt := range tests {
		t.Run(tt.about, func(t *testing.T) {
			found, missing, err := ResolveModules(tree, tt.ask)
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(names(found), tt.found) || !slices.Equal(missing, tt.missing) {
				t.Errorf("found %v, missing %v; want %v, %v", names(found), missing, tt.found, tt.missing)
			}
		})
	}
}

func TestResolveModulesInBadTrees(t *testing.T) {
	for about, dep := range map[string]string{
		"a dependency without a line": "kernel/a.ko: kernel/b.ko\n",
		"a path that leads out":       "../../a.ko:\n",
		"no colon":                    "kernel/a.ko\n",
	} {
		tree := t.TempDir()
		writeFile(t, tree, "modules.dep", dep)
		writeFile(t, tree, "modules.builtin", "")
		if _, _, err := ResolveModules(tree, []string{"a"}); err == nil {
			t.Errorf("%s: no error", about)
		}
	}
	// A cycle must end. (The kernel would refuse such modules.)
	tree := t.TempDir()
	writeFile(t, tree, "modules.dep", "a.ko: b.ko\nb.ko: a.ko\n")
	writeFile(t, tree, "modules.builtin", "")
	if found, _, err := ResolveModules(tree, []string{"a"}); err != nil || len(found) != 2 {
		t.Errorf("cycle: %v, %v", names(found), err)
	}
	if _, _, err := ResolveModules(t.TempDir(), nil); err == nil {
		t.Error("no modules.dep: no error")
	}
}

func TestModuleUnpacksXZ(t *testing.T) {
	if _, err := exec.LookPath("xz"); err != nil {
		t.Skip("no xz")
	}
	path := writeFile(t, t.TempDir(), "x.ko", strings.Repeat("module ", 1000))
	if out, err := exec.Command("xz", "--check=crc32", path).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	data, err := Module{Name: "x", Path: path + ".xz"}.read()
	if err != nil || string(data) != strings.Repeat("module ", 1000) {
		t.Errorf("%d bytes, %v", len(data), err)
	}
	bad := writeFile(t, t.TempDir(), "bad.ko.xz", "not xz")
	if _, err := (Module{Name: "bad", Path: bad}).read(); err == nil {
		t.Error("garbage: no error")
	}
}
