package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cradlevm/cradle/api"
	"github.com/cradlevm/cradle/api/wire"
	"github.com/cradlevm/cradle/vm"
	"github.com/cradlevm/cradle/vm/vmtest/guestapi"
)

// guestConfig is a small VM of the test guest's.
func guestConfig(t *testing.T) vm.Config {
	g := testGuest(t)
	return vm.Config{ID: "qemutest", Dir: t.TempDir(), CPUs: 1, Memory: 128 << 20, Kernel: g.Kernel, Initrd: g.Initrd}
}

// boot starts c and opens a session; the VM goes with the test.
func boot(ctx context.Context, t *testing.T, c vm.Config) (vm.VM, *wire.Client) {
	t.Helper()
	v, err := New(testOptions()).Start(ctx, c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := v.Kill(); err != nil {
			t.Error(err)
		}
	})
	conn, err := v.Dial(ctx, api.AgentPort)
	if err != nil {
		t.Fatal(err)
	}
	client, err := wire.Dial(ctx, conn, wire.Token{7})
	if err != nil {
		t.Fatalf("%v; the console:\n%s", err, v.Console(4096))
	}
	t.Cleanup(func() { client.Close() })
	return v, client
}

// TestUnprivileged runs QEMU as a user that may read nothing: not the kernel, not the disk, not the directory,
// whose name does not fit a socket's address either.
func TestUnprivileged(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root gives away its rights")
	}
	c := guestConfig(t)
	c.UID, c.GID = 54321, 54322
	c.Dir = filepath.Join(c.Dir, strings.Repeat("long", 30))
	kernel, err := os.ReadFile(c.Kernel)
	if err != nil {
		t.Fatal(err)
	}
	c.Kernel = filepath.Join(t.TempDir(), "kernel")
	disk := vm.Disk{Serial: "SECRET", Path: filepath.Join(t.TempDir(), "disk")}
	c.Disks = []vm.Disk{disk}
	err = errors.Join(os.Mkdir(c.Dir, 0o700), os.WriteFile(c.Kernel, kernel, 0o600), os.WriteFile(disk.Path, make([]byte, 4096), 0o600))
	if err != nil {
		t.Fatal(err)
	}
	group := filepath.Join("/sys/fs/cgroup/unified", fmt.Sprintf("cradle-test-%d", os.Getpid()))
	if os.Mkdir(group, 0o755) == nil {
		c.Cgroup = group
		t.Cleanup(func() {
			if err := os.Remove(group); err != nil {
				t.Error(err)
			}
		})
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	v, client := boot(ctx, t, c)
	text := []byte("written by nobody in particular")
	if err := client.Call(ctx, guestapi.MethodAwait, guestapi.Await{Serial: disk.Serial, Present: true}, nil); err != nil {
		t.Error(err)
	}
	if err := client.Call(ctx, guestapi.MethodWrite, guestapi.Extent{Serial: disk.Serial, Data: text}, nil); err != nil {
		t.Error(err)
	}
	if b, err := os.ReadFile(disk.Path); err != nil || !strings.HasPrefix(string(b), string(text)) {
		t.Errorf("%q, %v", b, err)
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", v.PID()))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"\nUid:\t54321\t54321\t54321\t54321\n", "\nGid:\t54322\t54322\t54322\t54322\n", "\nGroups:\t \n",
		"\nCapEff:\t0000000000000000\n", "\nCapPrm:\t0000000000000000\n", "\nSeccomp:\t2\n", "\nNoNewPrivs:\t1\n",
	} {
		if !strings.Contains(string(status), want) {
			t.Errorf("the process lacks %q:\n%s", want, status)
		}
	}
	if c.Cgroup != "" {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", v.PID()))
		if !strings.Contains(string(b), "0::/"+filepath.Base(group)+"\n") {
			t.Errorf("the process is in %s", b)
		}
	}
	if err := v.Kill(); err != nil {
		t.Error(err)
	}
}

// TestHalfStarted finds a QEMU whose daemon died before its guest ran, with and without its number recorded.
func TestHalfStarted(t *testing.T) {
	c := guestConfig(t)
	d := New(testOptions())
	q, err := d.qemu()
	if err != nil {
		t.Fatal(err)
	}
	for _, recorded := range []bool{true, false} {
		in, err := d.openInputs(c, vm.AccelTCG)
		if err != nil {
			t.Fatal(err)
		}
		proc, _, err := d.launch(c, q, vm.AccelTCG, in)
		in.close()
		if err != nil {
			t.Fatal(err)
		}
		defer proc.kill()
		if !recorded {
			os.Truncate(filepath.Join(c.Dir, recordName), 0)
		}
		if _, err := d.Attach(t.Context(), c); !errors.Is(err, vm.ErrExited) {
			t.Errorf("recorded %t: %v, want ErrExited", recorded, err)
		}
		if !proc.ended(0) {
			t.Errorf("recorded %t: the process still runs", recorded)
		}
		proc.wait()
		if _, err := os.Stat(filepath.Join(c.Dir, recordName)); !os.IsNotExist(err) {
			t.Errorf("recorded %t: the record is left (%v)", recorded, err)
		}
	}
}

// TestRefused checks that QEMU's own words reach the caller and nothing stays.
func TestRefused(t *testing.T) {
	c := guestConfig(t)
	script := filepath.Join(t.TempDir(), "qemu")
	body := "#!/bin/sh\nif [ \"$1\" = -version ]; then echo QEMU emulator version 7.2.0; exit; fi\necho this QEMU will not >&2\nexit 3\n"
	if err := os.WriteFile(script, []byte(body), 0o755); err != nil {
		t.Fatal(err)
	}
	_, err := New(Options{Binary: script}).Start(t.Context(), c)
	if err == nil || !strings.Contains(err.Error(), "this QEMU will not") {
		t.Errorf("%v; want QEMU's words", err)
	}
	if entries, _ := os.ReadDir(c.Dir); len(entries) != 0 {
		t.Errorf("left behind: %v", entries)
	}
}

// TestManyDisks has more disks than the bus has targets.
func TestManyDisks(t *testing.T) {
	const count = targets + 4
	c := guestConfig(t)
	dir := t.TempDir()
	for i := range count {
		d := vm.Disk{Serial: fmt.Sprintf("N%d", i), Path: filepath.Join(dir, fmt.Sprint(i)), ReadOnly: true}
		if err := os.WriteFile(d.Path, fmt.Appendf(nil, "%-4096d", i), 0o600); err != nil {
			t.Fatal(err)
		}
		c.Disks = append(c.Disks, d)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	began := time.Now()
	_, client := boot(ctx, t, c)
	t.Logf("ready after %v", time.Since(began).Round(time.Millisecond))
	for _, i := range []int{0, targets - 1, targets, count - 1} {
		serial := fmt.Sprintf("N%d", i)
		if err := client.Call(ctx, guestapi.MethodAwait, guestapi.Await{Serial: serial, Present: true}, nil); err != nil {
			t.Fatal(err)
		}
		var got guestapi.Extent
		err := client.Call(ctx, guestapi.MethodRead, guestapi.Extent{Serial: serial, Length: 16}, &got)
		if err != nil || strings.TrimSpace(string(got.Data)) != fmt.Sprint(i) {
			t.Errorf("disk %s: %q, %v", serial, got.Data, err)
		}
	}
	var found []guestapi.Disk
	if err := client.Call(ctx, guestapi.MethodDisks, nil, &found); err != nil || len(found) != count {
		t.Errorf("%d disks found, %v", len(found), err)
	}
	t.Logf("%d disks after %v", count, time.Since(began).Round(time.Millisecond))
}
