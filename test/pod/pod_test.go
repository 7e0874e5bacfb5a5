// Package pod has a test only: a container in a virtual machine behind an interface that a CNI plugin might have made.
package pod

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/cradlevm/cradle/api"
	"github.com/cradlevm/cradle/guestos"
	"github.com/cradlevm/cradle/image"
	"github.com/cradlevm/cradle/network/nettest"
	netpod "github.com/cradlevm/cradle/network/pod"
	"github.com/cradlevm/cradle/node/runspec"
	"github.com/cradlevm/cradle/sandbox"
	"github.com/cradlevm/cradle/test/house"
	"github.com/cradlevm/cradle/vm"
	"github.com/cradlevm/cradle/vm/qemu"
	"github.com/cradlevm/cradle/volume"
)

func TestMain(m *testing.M) { nettest.Main(m) }

// limit is for the whole test on a slow machine that emulates its virtual machines.
const limit = 5 * time.Minute

// TestBehindVeth: a web server in a guest behind a veth is reached from the veth's other end, over IPv4 and IPv6, with an MTU of
// its own; and the namespace is its own again when the machine has gone.
func TestBehindVeth(t *testing.T) {
	nettest.NeedRoot(t)
	build, err := house.Find([]string{"busybox"}, "qemu-system-x86_64")
	if err != nil && house.Promised() {
		t.Fatal(err)
	} else if err != nil {
		t.Skip(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	path := filepath.Join(t.TempDir(), "netns")
	nettest.NewNamespace(t, path)
	veth(t, path, "10.9.0.1/24", "10.9.0.5/24", "fd09::1/64", "fd09::5/64")
	joined, err := netpod.Attach(ctx, path)
	if err != nil {
		t.Fatal(err)
	}
	// What other plugins make.
	guest := joined[0].Guest
	guest.Neighbours = []api.Neighbour{{Address: "10.9.0.9", MAC: "02:42:0a:09:00:09"}, {Address: "fd09::9", MAC: "02:42:0a:09:00:09"}}
	guest.Routes = append(guest.Routes, api.Route{Destination: "10.7.0.0/24", Gateway: "10.9.0.1", MTU: 1300})
	machine := serve(ctx, t, build, []vm.NIC{{TAP: joined[0].TAP, NetNS: path}}, []api.Interface{guest})
	for _, address := range []string{"10.9.0.5", "[fd09::5]"} {
		if body, err := get(ctx, "http://"+address+"/big"); err != nil || body != strings.Repeat("0123456789abcde\n", 1<<16) {
			t.Errorf("%s answers %d bytes: %v; console: %s", address, len(body), err, machine.Console(2000))
		}
	}
	table, err := get(ctx, "http://10.9.0.5/table")
	for _, want := range []string{"10.7.0.0/24 via 10.9.0.1 dev eth0", "10.9.0.9 dev eth0 lladdr 02:42:0a:09:00:09 used 0/0/0 probes 0 PERMANENT", "fd09::9 dev eth0 lladdr 02:42:0a:09:00:09 used 0/0/0 probes 0 PERMANENT"} {
		if err != nil || !strings.Contains(table, want) {
			t.Errorf("%v: no %q in\n%s", err, want, table)
		}
	}
	if err := machine.Stop(ctx); err != nil {
		t.Error(err)
	}
	for range 2 {
		if err := netpod.Detach(ctx, path); err != nil {
			t.Error(err)
		}
	}
}

// veth makes a pair whose inner end, eth0, is in the namespace, with these addresses outside and inside by turns.
func veth(t *testing.T, path string, addresses ...string) {
	t.Helper()
	ns, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	inside, err := netlink.NewHandleAt(netns.NsHandle(ns.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	defer inside.Close()
	here := &netlink.Handle{}
	pair := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "node0", MTU: 1400}, PeerName: "eth0", PeerMTU: 1400, PeerNamespace: netlink.NsFd(int(ns.Fd()))}
	if err := netlink.LinkAdd(pair); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { netlink.LinkDel(pair) }) // else it goes some time after its namespace
	for i, s := range addresses {
		h, name := here, "node0"
		if i%2 == 1 {
			h, name = inside, "eth0"
		}
		l, err := h.LinkByName(name)
		if err != nil {
			t.Fatal(err)
		}
		a, err := netlink.ParseAddr(s)
		if err != nil {
			t.Fatal(err)
		}
		if a.IP.To4() == nil {
			a.Flags = unix.IFA_F_NODAD
		}
		if err := errors.Join(h.AddrAdd(l, a), h.LinkSetUp(l)); err != nil {
			t.Fatal(err)
		}
	}
}

// serve boots a machine with these interfaces and runs a web server in it.
func serve(ctx context.Context, t *testing.T, build house.Build, nics []vm.NIC, interfaces []api.Interface) *sandbox.Sandbox {
	t.Helper()
	guest, err := guestos.Open(build.Guest)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	disks, root := disks(ctx, t, build, dir)
	c, _, err := runspec.Prepare(strings.Repeat("cafe", 16), &container.Config{Cmd: []string{"sh", "-c",
		"mkdir /w; yes 0123456789abcde | head -n 65536 >/w/big; (ip route; ip neigh) >/w/table; exec httpd -f -h /w -p 80"}}, &container.HostConfig{}, runspec.Settings{})
	if err != nil {
		t.Fatal(err)
	}
	request, err := runspec.Create(c, runspec.Settings{})
	if err != nil {
		t.Fatal(err)
	}
	request.Rootfs = root
	run := filepath.Join(dir, "run")
	if err := os.Mkdir(run, 0o700); err != nil {
		t.Fatal(err)
	}
	machine, err := sandbox.Start(ctx, qemu.New(qemu.Options{}), sandbox.Config{Token: sandbox.NewToken(), Hostname: "pod",
		VM: vm.Config{ID: "pod", Dir: run, CPUs: 1, Memory: 256 << 20, Kernel: guest.Kernel, Initrd: guest.Initrd, Disks: disks, NICs: nics}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { machine.Kill() })
	for _, step := range []func() error{
		func() error { return machine.Network(ctx, api.NetworkRequest{Interfaces: interfaces}) },
		func() error { _, _, err := machine.Run(ctx, request); return err },
	} {
		if err := step(); err != nil {
			t.Fatalf("%v; console: %s", err, machine.Console(2000))
		}
	}
	return machine
}

// disks are those of the busybox image, and an empty one on top.
func disks(ctx context.Context, t *testing.T, build house.Build, dir string) (disks []vm.Disk, root api.Rootfs) {
	t.Helper()
	store, err := image.Open(filepath.Join(dir, "images"), image.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	archive, err := os.Open(build.Image("busybox"))
	if err != nil {
		t.Fatal(err)
	}
	defer archive.Close()
	images, err := store.Load(ctx, archive, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i, l := range images[0].Layers {
		d := vm.Disk{Serial: fmt.Sprintf("layer%d", i), Path: l.Path, ReadOnly: true}
		disks = append(disks, d)
		root.Layers = append(root.Layers, api.Disk{Serial: d.Serial, FSType: "erofs"})
	}
	scratch := vm.Disk{Serial: "scratch", Path: filepath.Join(dir, "scratch.ext4")}
	if err := (&volume.Scratch{Dir: dir}).New(ctx, scratch.Path, 1<<30); err != nil {
		t.Fatal(err)
	}
	root.Upper = &api.Disk{Serial: scratch.Serial, FSType: "ext4"}
	return append(disks, scratch), root
}

// get fetches a page, once there is a server.
func get(ctx context.Context, url string) (string, error) {
	for {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return "", err
		}
		answer, err := http.DefaultClient.Do(request)
		if err == nil && answer.StatusCode == http.StatusOK {
			defer answer.Body.Close()
			body, err := io.ReadAll(answer.Body)
			return string(body), err
		}
		select {
		case <-ctx.Done():
			return "", errors.Join(ctx.Err(), err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}
