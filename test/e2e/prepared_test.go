package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cradlevm/cradle/pool"
)

// awaitPrepared waits until so many virtual machines are prepared for an image.
func (c client) awaitPrepared(t *testing.T, image string, count int) {
	t.Helper()
	for began := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		var status pool.Status
		c.ask(t, "/cradle/v1/pool", &status)
		for _, s := range status.Classes {
			for _, p := range s.Prepared {
				if p.Name == image && p.Ready == count {
					return
				}
			}
		}
		if time.Since(began) > poolPatience {
			t.Fatalf("not %d are prepared for %s: %+v", count, image, status)
		}
	}
}

// What is prepared for an image is given to containers of that image only, each with an identity of its own.
func TestPrepared(t *testing.T) { bothWays(t, testPrepared) }

func testPrepared(t *testing.T, c client) {
	c.ok(t, "load", "-q", "-i", os.Getenv("CRADLE_TEST_IMAGES")+"/debian.tar")
	const script = `if test -e /etc/debian_version; then echo debian; else echo busybox; fi; hostname; cat /etc/hostname; cat /left 2>/dev/null
		head -c 16 /dev/urandom | md5sum; echo left >/left`
	seen := map[string]bool{}
	run := func(image string) {
		t.Helper()
		lines := strings.Fields(strings.ReplaceAll(c.ok(t, "run", "--rm", "--hostname", "of-"+image, image, "sh", "-c", script), " -", ""))
		if len(lines) != 4 || lines[0] != image || lines[1] != "of-"+image || lines[2] != lines[1] || seen[lines[3]] {
			t.Fatalf("a container of %s says %q", image, lines)
		}
		seen[lines[3]] = true
	}
	run("busybox")
	for i := range 3 {
		if i == 1 { // which is not given what is ready
			c.awaitPrepared(t, "busybox", 1)
			run("debian")
			run("busybox") // wanted last, whatever has become of the one that was ready
		}
		c.awaitPrepared(t, "busybox", 1)
		run("busybox")
	}
	var starts []struct{ Way string }
	c.ask(t, "/cradle/v1/starts", &starts)
	prepared := 0
	for _, s := range starts {
		if s.Way == "prepared" {
			prepared++
		}
	}
	if prepared < 3 {
		t.Errorf("%d were prepared, not 3, of %v", prepared, starts)
	}
}

// A container has the networks that it asked for, and sees no others, whichever its virtual machine was prepared for.
func TestPreparedNetworks(t *testing.T) {
	c := inOwn(t, "CRADLE_POOL=2")
	const none, bridge = "lo", "eth0 lo address route"
	run := func(want string, flags ...string) (way string) {
		t.Helper()
		const script = `echo $(ls /sys/class/net) $(ip -4 address show dev eth0 2>/dev/null | grep -q inet && echo address) $(ip route 2>/dev/null | grep -q ^default && echo route)`
		args := append(append([]string{"run", "--rm"}, flags...), "busybox", "sh", "-c", script)
		if out := strings.TrimSpace(c.ok(t, args...)); out != want {
			t.Errorf("%q: %q, want %q", flags, out, want)
		}
		var starts []struct{ Way string }
		c.ask(t, "/cradle/v1/starts", &starts)
		return starts[len(starts)-1].Way
	}
	run(bridge)
	c.awaitPrepared(t, "busybox", 1)
	if way := run(none, "--network", "none"); way != "prepared" {
		t.Errorf("what is prepared for a network is not taken for a container without: %s", way)
	}
	c.awaitPrepared(t, "busybox", 1)
	if way := run(bridge); way != "prepared" {
		t.Errorf("what is prepared for the container is not taken: %s", way)
	}
	c.ok(t, "network", "create", "six", "--ipv6")
	c.awaitPrepared(t, "busybox", 1)
	if way := run(bridge, "--network", "six"); way != "prepared" {
		t.Errorf("what is prepared for another network is not taken: %s", way)
	}
}

// What is prepared for an image does not hold it, and a daemon that is killed leaves none of it.
func TestPreparedIsNotHeld(t *testing.T) {
	c := inOwn(t, "CRADLE_POOL=2")
	disks := func() int {
		t.Helper()
		entries, err := os.ReadDir(filepath.Join(c.house.Root(), "ready"))
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	c.ok(t, "run", "--rm", "busybox", "true")
	c.awaitPrepared(t, "busybox", 1)
	c.killDaemon(t)
	c.ok(t, "ps", "-aq") // starts another daemon
	if n := disks(); n != 0 {
		t.Errorf("%d writable disks are left of the killed daemon", n)
	}
	c.ok(t, "run", "--rm", "busybox", "true")
	c.awaitPrepared(t, "busybox", 1)
	c.ok(t, "image", "rm", "busybox")
	for began := time.Now(); disks() != 0; time.Sleep(20 * time.Millisecond) {
		if time.Since(began) > poolPatience {
			t.Fatal("the removed image's virtual machine is still ready")
		}
	}
}
