package guest

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cradlevm/cradle/api"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func testMounts(t *testing.T, v *testVM, box []api.Disk) {
	layers := append([]api.Disk{v.erofsLayer("mkdir -p data/sub etc; echo v >data/sub/file; chown 5:6 data/sub; chmod 1750 data/sub; ln -s sub data/link; ln -s ../run/x/resolv etc/resolv.conf")}, box...)
	v.says(layers, func(r *api.CreateRequest) {
		r.Spec.Root.Readonly = true
		r.Spec.Mounts = append(r.Spec.Mounts, specs.Mount{Destination: "/scratch", Type: "tmpfs", Source: "tmpfs", Options: []string{"size=1m", "mode=1777", "noexec"}})
		r.Files = []api.File{{Path: "/etc/hosts", Data: []byte("127.0.0.1 localhost\n"), Mode: 0o644}, {Path: "/etc/resolv.conf", Data: []byte("nameserver 1.2.3.4\n"), Mode: 0o600},
			{Path: "/run/secrets/s", Data: []byte("secret\n"), Mode: 0o440, UID: 7, GID: 8, ReadOnly: true}}
		r.Volumes = []string{"/data", "/new/volume"}
	}, "touch /x 2>/dev/null || echo ro; touch /scratch/x && echo rw; cat /etc/hosts /run/x/resolv; stat -Lc %a-%u-%g /data/sub /etc/resolv.conf; cat /data/link/file; touch /data/y /new/volume/z && echo volume; mount | grep -c scratch.*noexec; cat /run/secrets/s; stat -c %a-%u-%g /run/secrets/s; echo x 2>/dev/null >/run/secrets/s || echo given",
		"ro\nrw\n127.0.0.1 localhost\nnameserver 1.2.3.4\n1750-5-6\n600-0-0\nv\nvolume\n1\nsecret\n440-7-8\ngiven")
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

// testUpper: what is written to the disk is there in the container's next life.
func testUpper(t *testing.T, v *testVM, box []api.Disk) {
	upper := v.scratch()
	with := func(r *api.CreateRequest) { r.Rootfs.Upper = upper; r.Volumes = []string{"/vol"} }
	v.says(box, with, "echo one >/kept; echo two >/vol/kept; rm /bin/yes; echo ok", "ok")
	v.says(box, with, "cat /kept /vol/kept; ls /bin/yes 2>/dev/null", "one\ntwo")
}

// testVolumeDisk: a volume is filled once, from the image, and what is written to it is there for the next container.
func testVolumeDisk(t *testing.T, v *testVM, box []api.Disk) {
	layers := append([]api.Disk{v.erofsLayer("mkdir -p data; echo image >data/file; chown 5:6 data; chmod 750 data")}, box...)
	disk := v.scratch()
	with := func(path string, change func(*api.VolumeDisk)) func(r *api.CreateRequest) {
		return func(r *api.CreateRequest) {
			d := api.VolumeDisk{Disk: *disk, Path: path}
			if change != nil {
				change(&d)
			}
			r.Volumes, r.VolumeDisks = []string{path + "/inner"}, []api.VolumeDisk{d}
		}
	}
	v.says(layers, with("/data", func(d *api.VolumeDisk) { d.NoCopy = true }), "ls -A /data", "inner")
	v.says(layers, with("/data", nil), "rmdir /data/inner 2>/dev/null; ls -A /data", "inner")
	v.says(layers, with("/other", nil), "echo mine >/other/kept; touch /other/inner/not; ls -A /other", "inner\nkept")
	v.says(layers, with("/data", func(d *api.VolumeDisk) { d.ReadOnly = true }),
		"cat /data/kept; ls -A /data /data/inner; touch /data/x 2>/dev/null || echo ro; touch /data/inner/x && echo rw", "mine\n/data:\ninner\nkept\n\n/data/inner:\nro\nrw")
	fresh := v.scratch()
	v.says(layers, func(r *api.CreateRequest) { r.VolumeDisks = []api.VolumeDisk{{Disk: *fresh, Path: "/data"}} },
		"cat /data/file; stat -c %a-%u-%g /data; rm /data/file; echo 2 >/data/two", "image\n750-5-6")
	v.says(layers, func(r *api.CreateRequest) { r.VolumeDisks = []api.VolumeDisk{{Disk: *fresh, Path: "/data"}} }, "ls -A /data", "two")
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

func testDevices(t *testing.T, v *testVM, box []api.Disk) {
	docker := func(r *api.CreateRequest) {
		r.Spec.Linux.Resources = &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{
			{Access: "rwm"}, device("c", 1, 11, "w"),
		}}
	}
	for range 2 { // the second container shares the first one's program
		v.says(box, docker, "mknod /d b 8 0 && head -c 1 /d 2>/dev/null || echo no; echo x >/dev/null; head -c 2 /dev/zero | wc -c; mknod /k c 1 11; head -c1 /k 2>/dev/null || echo no read; echo write >/k && echo written", "no\n2\nno read\nwritten")
	}
	v.says(box, func(r *api.CreateRequest) {
		r.Spec.Linux.Resources = &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Access: "rwm"}, {Allow: true, Type: "a", Access: "rwm"}}}
		r.Spec.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/disk", Type: "b", Major: 8, Minor: 0}}
	}, "head -c 1 /dev/disk | wc -c", "1")
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
	if e := v.execIn(other.ID, "a", func(r *api.ExecRequest) { r.Terminal = true }, "tty"); strings.TrimSpace(e.stdout) != "/dev/pts/0" {
		t.Errorf("%+v: %v", e, e.err)
	}
}
