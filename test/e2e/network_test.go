package e2e

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

// serve is a container's command that serves /x, which says what, on port 80.
func serve(what string) []string {
	return []string{"busybox", "sh", "-c", "mkdir /w; echo " + what + " >/w/x; exec httpd -f -h /w -p 80"}
}

// fetch asks for /x at an address of the host's until it is served, or for long enough.
func fetch(t *testing.T, at string) string {
	t.Helper()
	client := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	var last error
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		answer, err := client.Get("http://" + at + "/x")
		if err == nil {
			b, err := io.ReadAll(answer.Body)
			answer.Body.Close()
			if err == nil && answer.StatusCode == http.StatusOK {
				return strings.TrimSpace(string(b))
			}
		}
		last = err
	}
	t.Fatalf("nobody serves at %s: %v", at, last)
	return ""
}

// fetchFrom asks for /x from inside of a container, until it is served.
func (c client) fetchFrom(t *testing.T, container, at string) string {
	t.Helper()
	return c.ok(t, "exec", container, "sh", "-c", "for i in $(seq 100); do wget -qO- http://"+at+"/x 2>/dev/null && exit; sleep 0.1; done; exit 1")
}

// ownSubnet is the first three bytes of a subnet of 256 addresses that tests running on this host at the same time do not have. Each
// test that needs one has another second byte.
func ownSubnet(second int) string { return fmt.Sprintf("10.%d.%d", second, os.Getpid()%256) }

// Containers of a network find each other by name and alias; those of another do not reach them; ports are published.
func TestNetworks(t *testing.T) { both(t, networks) }

func networks(t *testing.T, c client) {
	name := c.name(t)
	one, other := name+"-one", name+"-other"
	server, friend, stranger := name+"-server", name+"-friend", name+"-stranger"
	t.Cleanup(func() {
		c.do(t, nil, "rm", "-f", server, friend, stranger)
		c.do(t, nil, "network", "rm", one, other)
	})
	subnet := ownSubnet(211)
	c.ok(t, "network", "create", "--subnet", subnet+".0/24", "--label", "a=b", one)
	c.ok(t, "network", "create", other)
	c.ok(t, append([]string{"run", "-d", "--name", server, "--network", one, "--ip", subnet + ".77", "--network-alias", "store",
		"-p", "127.0.0.1::80"}, serve("of-"+c.program)...)...)
	c.ok(t, "run", "-d", "--name", friend, "--network", one, "busybox", "sleep", "1000")
	c.ok(t, "run", "-d", "--name", stranger, "--network", other, "busybox", "sleep", "1000")
	want := "of-" + c.program
	for _, at := range []string{server, "store", subnet + ".77"} {
		if got := c.fetchFrom(t, friend, at); got != want {
			t.Errorf("%s says %q", at, got)
		}
	}
	at := c.ok(t, "port", server, "80")
	if got := fetch(t, at); got != want {
		t.Errorf("the published port says %q", got)
	}
	if r := c.do(t, nil, "exec", stranger, "timeout", "2", "wget", "-qO-", "http://"+subnet+".77/x"); r.code == 0 {
		t.Errorf("another network's container reaches it: %q", r.stdout)
	}
	if r := c.do(t, nil, "exec", stranger, "nslookup", server); r.code == 0 {
		t.Errorf("another network's container knows its name: %q", r.stdout)
	}
	if r := c.do(t, nil, "run", "--rm", "-p", at+":80", "busybox", "true"); r.code != 125 || !strings.Contains(r.stderr, "port is already allocated") {
		t.Errorf("a port that is taken: exit code %d, %s", r.code, r.stderr)
	}
	if r := c.do(t, nil, "network", "rm", one); r.code == 0 || !strings.Contains(r.stderr, "has active endpoints") {
		t.Errorf("a network in use was removed: %s%s", r.stdout, r.stderr)
	}

	// Live: the stranger comes to the network, and leaves it.
	c.ok(t, "network", "connect", one, stranger)
	if got := c.fetchFrom(t, stranger, "store"); got != want {
		t.Errorf("a container that was connected later: %q", got)
	}
	c.ok(t, "network", "disconnect", one, stranger)
	if r := c.do(t, nil, "exec", stranger, "timeout", "2", "wget", "-qO-", "http://"+subnet+".77/x"); r.code == 0 {
		t.Error("a container that was disconnected still reaches the network")
	}
	c.ok(t, "rm", "-f", server)
	if conn, err := net.Dial("tcp", at); err == nil {
		conn.Close()
		t.Error("the port of a container that is gone is open")
	}
}

// The published port leads through the network that is the way out: also when that one is left, and when a better one comes.
func TestPublishedPortsMove(t *testing.T) { both(t, publishedPortsMove) }

func publishedPortsMove(t *testing.T, c client) {
	name := c.name(t)
	one, two, server := name+"-one", name+"-two", name+"-server"
	t.Cleanup(func() {
		c.do(t, nil, "rm", "-f", server)
		c.do(t, nil, "network", "rm", one, two)
	})
	c.ok(t, "network", "create", one)
	c.ok(t, "network", "create", two)
	c.ok(t, append([]string{"run", "-d", "--name", server, "--network", one, "-p", "127.0.0.1::80"}, serve("moved")...)...)
	at := c.ok(t, "port", server, "80")
	served := func(when string) {
		t.Helper()
		if got := c.ok(t, "port", server, "80"); got != at {
			t.Errorf("%s: the port is at %q, and was at %q", when, got, at)
		}
		if got := fetch(t, at); got != "moved" {
			t.Errorf("%s: the published port says %q", when, got)
		}
	}
	served("at the start")
	c.ok(t, "network", "connect", two, server)
	served("on two networks")
	c.ok(t, "network", "disconnect", one, server)
	served("without the first")
	c.ok(t, "network", "connect", one, server) // by its name, it is the way out again
	served("with the first again")
	c.ok(t, "network", "disconnect", two, server)
	served("without the second")
}

// What docker writes into a container about its networks.
func TestNetworkFiles(t *testing.T) { both(t, networkFiles) }

func networkFiles(t *testing.T, c client) {
	script := "cat /etc/hosts /etc/resolv.conf; ip -4 addr show eth0; ip route"
	got := c.ok(t, "run", "--rm", "--hostname", "box", "--add-host", "up:host-gateway", "--add-host", "db:10.0.0.9",
		"--dns", "192.0.2.53", "--dns-search", "example.org", "busybox", "sh", "-c", script)
	gateway := ""
	for _, line := range strings.Split(got, "\n") {
		if rest, ok := strings.CutPrefix(line, "default via "); ok {
			gateway, _, _ = strings.Cut(rest, " ")
		}
	}
	for _, want := range []string{"\tbox\n", gateway + "\tup\n", "10.0.0.9\tdb\n", "nameserver 192.0.2.53\n", "search example.org\n"} {
		if gateway == "" || !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
	if got := c.ok(t, "run", "--rm", "--network", "none", "busybox", "sh", "-c", "ip -4 addr | grep -c inet; ip route | wc -l"); got != "1\n0" {
		t.Errorf("without a network: %q", got)
	}
	for _, test := range []struct {
		args []string
		want string
	}{
		{[]string{"--network", "nope"}, "network nope not found"},
		{[]string{"--ip", "172.17.0.99"}, "user specified IP address is supported on user defined networks only"},
		{[]string{"--network", "host"}, "not supported"},
		{[]string{"-p", "80:80/sctp"}, "not supported"},
	} {
		r := c.do(t, nil, append(append([]string{"run", "--rm"}, test.args...), "busybox", "true")...)
		if r.code != 125 || !strings.Contains(r.stderr, test.want) {
			t.Errorf("%v: exit code %d, %s", test.args, r.code, r.stderr)
		}
	}
}

// After a kill of the daemon, and while there is none, networks go on; the next one has them all.
func TestNetworksOutliveTheDaemon(t *testing.T) { networksOutliveTheDaemon(t, inOwn(t)) }

func networksOutliveTheDaemon(t *testing.T, c client) {
	c.ok(t, "network", "create", "web")
	c.ok(t, append([]string{"run", "-d", "--name", "server", "--network", "web", "-p", "127.0.0.1::80"}, serve("still")...)...)
	c.ok(t, "run", "-d", "--name", "friend", "--network", "web", "busybox", "sleep", "1000")
	at := c.ok(t, "port", "server", "80")
	before := c.ok(t, "inspect", "-f", "{{json .NetworkSettings}}", "server")
	if got := c.fetchFrom(t, "friend", "server"); got != "still" {
		t.Errorf("before: %q", got)
	}
	for range 3 {
		c.killDaemon(t)
		if got := c.fetchFrom(t, "friend", "server"); got != "still" {
			t.Errorf("by name: %q", got)
		}
		if got := fetch(t, at); got != "still" {
			t.Errorf("at the published port: %q", got)
		}
		if got := c.ok(t, "inspect", "-f", "{{json .NetworkSettings}}", "server"); got != before {
			t.Errorf("the server's network was\n%s\nand is\n%s", before, got)
		}
	}
	// A new container gets an address that nobody has.
	mine := c.ok(t, "run", "--rm", "--network", "web", "busybox", "sh", "-c", "ip -4 -o addr show eth0 | awk '{print $4}'")
	for _, other := range []string{"server", "friend"} {
		a := c.ok(t, "inspect", "-f", "{{.NetworkSettings.Networks.web.IPAddress}}", other)
		if strings.HasPrefix(mine, a+"/") || a == "" {
			t.Errorf("%s and a new container both have %s", other, mine)
		}
	}
	c.ok(t, "rm", "-f", "server", "friend")
	c.ok(t, "network", "rm", "web")
	if got := c.ok(t, "network", "ls", "--format", "{{.Name}}"); got != "bridge\nnone" {
		t.Errorf("networks at the end: %q", got)
	}
}

// webRequests is how many requests TestWebServer makes from each place.
const webRequests = 200

// A web server on a published port answers every request: from loopback, at another address of the host's, from a container.
func TestWebServer(t *testing.T) {
	c := inShared(t, "cradle")
	web, asker := c.name(t)+"-web", c.name(t)+"-asker"
	t.Cleanup(func() { c.do(t, nil, "rm", "-f", web, asker) })
	c.ok(t, "run", "-d", "--name", web, "-p", "80", "nginx")
	c.ok(t, "run", "-d", "--name", asker, "busybox", "sleep", "1000")
	_, port, err := net.SplitHostPort(strings.Fields(c.ok(t, "port", web, "80"))[0])
	if err != nil {
		t.Fatal(err)
	}
	gateway := c.ok(t, "inspect", "-f", "{{.NetworkSettings.Networks.bridge.Gateway}}", web)
	for _, host := range []string{"127.0.0.1", gateway} {
		t.Run(host, func(t *testing.T) { askMany(t, "http://"+net.JoinHostPort(host, port)+"/", webRequests) })
	}
	// busybox opens a connection for each request.
	script := fmt.Sprintf("for i in $(seq %d); do wget -qO /dev/null http://%s/ || exit 1; done", webRequests, net.JoinHostPort(gateway, port))
	c.ok(t, "exec", asker, "sh", "-c", script)
}

// askMany asks over connections that stay open, some at a time. The server may be starting yet when the first is asked.
func askMany(t *testing.T, url string, requests int) {
	t.Helper()
	client := http.Client{Timeout: time.Minute, Transport: &http.Transport{MaxIdleConnsPerHost: 8}}
	defer client.CloseIdleConnections()
	once := func() error {
		answer, err := client.Get(url)
		if err != nil {
			return err
		}
		defer answer.Body.Close()
		if _, err := io.Copy(io.Discard, answer.Body); err != nil || answer.StatusCode != http.StatusOK {
			return fmt.Errorf("%s, %w", answer.Status, err)
		}
		return nil
	}
	for end := time.Now().Add(time.Minute); once() != nil && time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
	}
	var left atomic.Int64
	left.Store(int64(requests))
	var askers sync.WaitGroup
	for range 8 {
		askers.Go(func() {
			for left.Add(-1) >= 0 {
				if err := once(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	askers.Wait()
}

// A container whose interface somebody deletes by hand goes on, its machine lets go of the dead one, and a restart gives it
// another.
func TestDeletedInterface(t *testing.T) {
	c := inOwn(t)
	c.ok(t, "network", "create", "web")
	c.ok(t, append([]string{"run", "-d", "--name", "server", "--network", "web", "-p", "80"}, serve("again")...)...)
	_, port, err := net.SplitHostPort(strings.Fields(c.ok(t, "port", "server", "80"))[0])
	if err != nil {
		t.Fatal(err)
	}
	fetch(t, net.JoinHostPort("127.0.0.1", port))
	pid := c.ok(t, "inspect", "-f", "{{.State.Pid}}", "server")
	mac := c.ok(t, "inspect", "-f", "{{.NetworkSettings.Networks.web.MacAddress}}", "server")
	tap := ""
	open := tapsOf(t, pid)
	for _, name := range open {
		link, err := netlink.LinkByName(name)
		if err != nil {
			t.Fatal(err)
		}
		if link.Attrs().MasterIndex != 0 {
			tap = name
			if err := netlink.LinkDel(link); err != nil {
				t.Fatal(err)
			}
		}
	}
	if tap == "" {
		t.Fatalf("none of %v is on a bridge", open)
	}
	for end := time.Now().Add(time.Minute); len(tapsOf(t, pid)) == len(open); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("the machine still has %s open", tap)
		}
	}
	if got := c.ok(t, "exec", "server", "cat", "/w/x"); got != "again" {
		t.Errorf("the container says %q", got)
	}
	c.ok(t, "restart", "-t", "0", "server")
	if got := c.ok(t, "inspect", "-f", "{{.NetworkSettings.Networks.web.MacAddress}}", "server"); got != mac {
		t.Errorf("its address was %s and is %s", mac, got)
	}
	if _, port, err = net.SplitHostPort(strings.Fields(c.ok(t, "port", "server", "80"))[0]); err != nil {
		t.Fatal(err)
	}
	if got := fetch(t, net.JoinHostPort("127.0.0.1", port)); got != "again" {
		t.Errorf("after the restart: %q", got)
	}
}

// tapsOf are the TAPs that a process has open.
func tapsOf(t *testing.T, pid string) (names []string) {
	t.Helper()
	infos, err := filepath.Glob("/proc/" + pid + "/fdinfo/*")
	if err != nil || len(infos) == 0 {
		t.Fatalf("process %s: %v", pid, err)
	}
	for _, path := range infos {
		b, _ := os.ReadFile(path) // or it is closed
		if _, name, ok := strings.Cut(string(b), "iff:\t"); ok {
			name, _, _ = strings.Cut(name, "\n")
			names = append(names, name)
		}
	}
	return names
}

// Two daemons of one host have subnets of their own, also when the first had nothing on the host while the second picked its; both
// are used at the same time then. One whose subnet another interface has by now says which.
func TestTwoDaemons(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("bridge networks need root")
	}
	first, second := inAnother(t), inAnother(t) // not beside others, who could have the subnet that is taken away
	subnet := func(c client) string {
		return c.ok(t, "network", "inspect", "-f", "{{(index .IPAM.Config 0).Subnet}}", "bridge")
	}
	for _, c := range []client{first, second} {
		c.ok(t, "run", "--rm", "busybox", "true")
		if err := c.house.EndDaemon(commandLimit); err != nil {
			t.Fatal(err)
		}
	}
	if a, b := subnet(first), subnet(second); a == b {
		t.Fatalf("both have %s", a)
	}
	for _, c := range []client{first, second} {
		c.ok(t, append([]string{"run", "-d", "--name", "server", "-p", "127.0.0.1::80"}, serve(c.house.Dir)...)...)
	}
	for _, c := range []client{first, second} {
		if got := fetch(t, c.ok(t, "port", "server", "80")); got != c.house.Dir {
			t.Errorf("%s says %q", c.house.Dir, got)
		}
		c.ok(t, "rm", "-f", "server")
	}

	gateway := first.ok(t, "network", "inspect", "-f", "{{(index .IPAM.Config 0).Gateway}}", "bridge")
	if err := first.house.EndDaemon(commandLimit); err != nil {
		t.Fatal(err)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "e2e-thief"
	thief := &netlink.Bridge{LinkAttrs: attrs}
	if err := netlink.LinkAdd(thief); err != nil {
		t.Fatal(err)
	}
	there := true
	t.Cleanup(func() {
		if there {
			netlink.LinkDel(thief)
		}
	})
	if err := netlink.AddrAdd(thief, &netlink.Addr{IPNet: &net.IPNet{IP: net.ParseIP(gateway), Mask: net.CIDRMask(24, 32)}}); err != nil {
		t.Fatal(err)
	}
	r := first.do(t, nil, "run", "--rm", "busybox", "true")
	if r.code != 125 || !strings.Contains(r.stderr, "interface e2e-thief") {
		t.Errorf("with the subnet taken: exit code %d, %s", r.code, r.stderr)
	}
	first.ok(t, "run", "--rm", "--network", "none", "busybox", "true")
	if err := netlink.LinkDel(thief); err != nil {
		t.Fatal(err)
	}
	there = false
	first.ok(t, "run", "--rm", "busybox", "true")
}
