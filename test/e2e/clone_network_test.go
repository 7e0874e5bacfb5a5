package e2e

import (
	"strings"
	"testing"
)

// place is the address and the MAC of a container on its one network.
func (c client) place(t *testing.T, name string) (ip, mac string) {
	t.Helper()
	got := strings.Fields(c.ok(t, "inspect", "-f", "{{range .NetworkSettings.Networks}}{{.IPAddress}} {{.MacAddress}}{{end}}", name))
	if len(got) != 2 {
		t.Fatalf("%s is at %q", name, got)
	}
	// The host says so, and so does the guest.
	if inside := c.ok(t, "exec", name, "ip", "addr", "show", "eth0"); !strings.Contains(inside, got[0]+"/") || !strings.Contains(inside, got[1]) {
		t.Errorf("%s is at %s, and has\n%s", name, got, inside)
	}
	return got[0], got[1]
}

// Clones of a container that is on a network are on it too, each with an address, a name and a port of its own.
func TestCloneOnNetwork(t *testing.T) { cloneOnNetwork(t, inShared(t, "cradle")) }

func cloneOnNetwork(t *testing.T, c client) {
	name := c.name(t)
	net, friend := name+"-net", name+"-friend"
	clones := []string{name + "-clone-1", name + "-clone-2"}
	t.Cleanup(func() {
		c.do(t, nil, append([]string{"rm", "-f", name, friend}, clones...)...)
		c.do(t, nil, "network", "rm", net)
	})
	subnet := ownSubnet(212)
	c.ok(t, "network", "create", "--subnet", subnet+".0/24", net)
	c.ok(t, append([]string{"run", "-d", "--name", name, "--network", net, "--ip", subnet + ".77", "--network-alias", "store",
		"-p", "127.0.0.1::80"}, serve("served")...)...)
	c.ok(t, "run", "-d", "--name", friend, "--network", net, "busybox", "sleep", "1000")
	if got := fetch(t, c.ok(t, "port", name, "80")); got != "served" {
		t.Fatalf("the source says %q", got)
	}
	c.ok(t, "clone", "-n", "2", "--name", name+"-clone", name)
	seen := map[string]string{}
	for _, box := range append(clones, name) {
		ip, mac := c.place(t, box)
		port := c.ok(t, "port", box, "80")
		for _, is := range []string{ip, mac, port} {
			if other := seen[is]; other != "" {
				t.Errorf("%s and %s share %s", box, other, is)
			}
			seen[is] = box
		}
		c.ok(t, "exec", box, "sh", "-c", "echo "+box+" >/w/x")
		for _, at := range []string{box, ip} {
			if got := c.fetchFrom(t, friend, at); got != box {
				t.Errorf("at %s: %q", at, got)
			}
		}
		if got := fetch(t, port); got != box {
			t.Errorf("the published port of %s: %q", box, got)
		}
		if hosts := c.ok(t, "exec", box, "cat", "/etc/hosts"); !strings.Contains(hosts, ip+"\t") || box != name && strings.Contains(hosts, subnet+".77") {
			t.Errorf("%s, at %s, has in /etc/hosts\n%s", box, ip, hosts)
		}
	}
	if got := c.fetchFrom(t, clones[0], name); got != name {
		t.Errorf("a clone finds at its source's name %q", got)
	}
}

// A hibernated container comes back with its network.
func TestHibernatedOnNetwork(t *testing.T) { hibernatedOnNetwork(t, inShared(t, "cradle")) }

func hibernatedOnNetwork(t *testing.T, c client) {
	name := c.name(t)
	net, friend := name+"-net", name+"-friend"
	t.Cleanup(func() {
		c.do(t, nil, "rm", "-f", name, friend)
		c.do(t, nil, "network", "rm", net)
	})
	c.ok(t, "network", "create", net)
	c.ok(t, append([]string{"run", "-d", "--name", name, "--network", net, "-p", "127.0.0.1::80"}, serve("served")...)...)
	c.ok(t, "run", "-d", "--name", friend, "--network", net, "busybox", "sleep", "1000")
	at := c.ok(t, "port", name, "80")
	fetch(t, at)
	c.ok(t, "save-state", name)
	if r := c.do(t, nil, "exec", friend, "timeout", "2", "wget", "-qO-", "http://"+name+"/x"); r.code == 0 {
		t.Errorf("a hibernated container answers %q", r.stdout)
	}
	c.ok(t, "start", name)
	c.place(t, name)
	if got := c.fetchFrom(t, friend, name); got != "served" {
		t.Errorf("it says %q", got)
	}
	if got := fetch(t, c.ok(t, "port", name, "80")); got != "served" {
		t.Errorf("its port says %q", got)
	}
}

// A container that starts warm serves its port, from an address of its own.
func TestWarmOnNetwork(t *testing.T) { warmOnNetwork(t, inOwn(t)) }

func warmOnNetwork(t *testing.T, c client) {
	run := func(name string) string {
		c.ok(t, append([]string{"run", "-d", "--name", name, "--warm", "--warm-ready", "wget -qO- http://127.0.0.1/x", "-p", "127.0.0.1::80"}, serve("served")...)...)
		at := c.ok(t, "port", name, "80")
		if got := fetch(t, at); got != "served" {
			t.Errorf("%s says %q", name, got)
		}
		return at
	}
	cold := run("cold")
	c.waitForWarm(t)
	if warm := run("warm"); warm == cold {
		t.Errorf("both are at %s", warm)
	}
	first, _ := c.place(t, "cold")
	second, _ := c.place(t, "warm")
	if first == second {
		t.Errorf("both have %s", first)
	}
	c.ok(t, "rm", "-f", "cold", "warm")
}
