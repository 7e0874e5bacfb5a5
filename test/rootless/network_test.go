package rootless

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"

	"github.com/cradlevm/cradle/network/nettest"
)

// TestMain gives the tests a network of their own: what is open on this machine is not theirs to ask.
func TestMain(m *testing.M) { nettest.Main(m) }

// metadata is where clouds tell a machine its secrets.
const metadata = "169.254.169.254"

// TestOrdinaryUsersNetworks: a user's containers reach the world, by name too, and are reached at published ports; those on one
// network find each other by name. The host's own services are closed but for those who name it, and all of it is there again
// when another daemon comes.
func TestOrdinaryUsersNetworks(t *testing.T) {
	nettest.NeedRoot(t)
	u := newUser(t)
	t.Cleanup(func() { u.reset(t) })
	world := nettest.NewOutside(t)
	host := nettest.HostAddr().String()
	world.Do(func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		if err := netlink.AddrAdd(lo, &netlink.Addr{IPNet: &net.IPNet{IP: net.ParseIP(metadata), Mask: net.CIDRMask(32, 32)}}); err != nil {
			return err
		}
		serveHTTP(t, "0.0.0.0:8000", "the world")
		serveDNS(t, "0.0.0.0:53", "www.world.test.", nettest.OutsideAddr())
		return nil
	})
	serveHTTP(t, "0.0.0.0:8001", "the host")
	serveHTTP(t, "127.0.0.1:8002", "the host's loopback")
	u.load(t, "busybox")

	u.ok(t, "network", "create", "blue")
	u.ok(t, "run", "-d", "--name", "web", "--network", "blue", "-p", "8080:80", "-p", "127.0.0.1:9000-9009:80", "busybox",
		"sh", "-c", "mkdir /w; echo the container >/w/x; exec httpd -f -h /w -p 80")
	u.ok(t, "run", "-d", "--name", "one", "--network", "blue", "--dns", nettest.OutsideAddr().String(), "busybox", "sleep", "1000")
	u.ok(t, "run", "-d", "--name", "two", "--add-host", "host.docker.internal:host-gateway", "busybox", "sleep", "1000")
	check := func() {
		t.Helper()
		outside := nettest.OutsideAddr().String()
		for _, c := range []struct{ from, at, want string }{
			{"one", outside + ":8000", "the world"},
			{"one", "www.world.test:8000", "the world"},
			{"one", "web", "the container"},
			{"one", host + ":8080", "the container"},
			{"two", "host.docker.internal:8001", "the host"},
			{"two", host + ":8001", "the host"},
			{"two", "host.docker.internal:8080", "the container"},
		} {
			if got := u.fetchFrom(t, c.from, c.at); got != c.want {
				t.Errorf("%s, from %s: %q", c.at, c.from, got)
			}
		}
		if got := u.ok(t, "exec", "one", "nslookup", "www.world.test", outside); !strings.Contains(got, "Address: "+outside) {
			t.Errorf("asked over UDP: %s", got)
		}
		for _, c := range []struct{ from, at string }{
			{"one", host + ":8001"}, {"one", "127.0.0.1:8002"}, {"two", "host.docker.internal:8002"},
			{"one", metadata + ":8000"}, {"two", metadata + ":8000"}, {"two", "web"},
		} {
			if out, code := u.do(t, nil, "cradle", "exec", c.from, "timeout", "2", "wget", "-qO-", "http://"+c.at+"/x"); code == 0 {
				t.Errorf("%s is open to %s: %q", c.at, c.from, out)
			}
		}
		for _, at := range []string{"127.0.0.1:8080", host + ":8080", "[::1]:8080", u.ok(t, "port", "web", "80/tcp")} {
			at = strings.TrimPrefix(strings.Split(at, "\n")[0], "80/tcp -> ")
			if got := fetch(t, strings.Replace(at, "0.0.0.0", "127.0.0.1", 1)); got != "the container" {
				t.Errorf("from the host at %s: %q", at, got)
			}
		}
		world.Do(func() error {
			if got := fetch(t, host+":8080"); got != "the container" {
				t.Errorf("from the world: %q", got)
			}
			return nil
		})
		u.check(t)
	}
	check()
	u.killDaemon(t)
	check()

	if out, code := u.do(t, nil, "cradle", "run", "--rm", "-p", "80:80", "busybox", "true"); code != 125 || !strings.Contains(out, "ip_unprivileged_port_start") {
		t.Errorf("a port for root only: %d %s", code, out)
	}
	u.ok(t, "network", "disconnect", "blue", "one")
	if out, code := u.do(t, nil, "cradle", "exec", "one", "timeout", "2", "wget", "-qO-", "http://web/x"); code == 0 {
		t.Errorf("a container that has left the network reaches it: %q", out)
	}
	u.ok(t, "network", "connect", "blue", "two")
	if got := u.fetchFrom(t, "two", "web"); got != "the container" {
		t.Errorf("a container that was connected: %q", got)
	}
}

// TestOrdinaryUsersPolicies: a user's containers send what their policies allow, changed live, as root's do.
func TestOrdinaryUsersPolicies(t *testing.T) {
	nettest.NeedRoot(t)
	u := newUser(t)
	t.Cleanup(func() { u.reset(t) })
	world := nettest.NewOutside(t)
	world.Do(func() error {
		serveHTTP(t, "0.0.0.0:8000", "the world")
		serveDNS(t, "0.0.0.0:53", "www.world.test.", nettest.OutsideAddr())
		return nil
	})
	serveHTTP(t, "0.0.0.0:8001", "the host")
	u.load(t, "busybox")
	outside := nettest.OutsideAddr().String()
	u.ok(t, "run", "-d", "--name", "box", "--dns", outside, "--egress", "deny", "--egress-allow", "*.world.test:8000/tcp", "--egress-allow", "host:8001/tcp",
		"busybox", "sleep", "10000")
	isClosed := func(at string) {
		t.Helper()
		if out, code := u.do(t, nil, "cradle", "exec", "box", "timeout", "2", "wget", "-qO-", "http://"+at+"/x"); code == 0 {
			t.Errorf("%s is open: %q", at, out)
		}
	}
	gateway := u.ok(t, "inspect", "-f", "{{range .NetworkSettings.Networks}}{{.Gateway}}{{end}}", "box")
	check := func() {
		t.Helper()
		isClosed(outside + ":8000")
		if got := u.fetchFrom(t, "box", "www.world.test:8000"); got != "the world" {
			t.Errorf("by an allowed name: %q", got)
		}
		if got := u.fetchFrom(t, "box", gateway+":8001"); got != "the host" {
			t.Errorf("the host's service: %q", got)
		}
	}
	check()
	u.killDaemon(t)
	check()
	u.ok(t, "network", "policy", "set", "--deny", "world.test", "box")
	isClosed("www.world.test:8000")
	isClosed(gateway + ":8001")
	if got := u.fetchFrom(t, "box", outside+":8000"); got != "the world" {
		t.Errorf("the address of a name that is denied: %q", got)
	}
	u.ok(t, "network", "policy", "set", "--deny", outside, "box")
	isClosed(outside + ":8000")
	if got := u.ok(t, "network", "policy", "rules", "--format", "{{.Action}} {{.Target}} {{.Packets}}", "box"); strings.HasPrefix(got, "deny "+outside+" 0") ||
		!strings.HasPrefix(got, "deny "+outside) {
		t.Errorf("its rules have decided: %q", got)
	}
	u.check(t)
}

// fetchFrom asks for /x from inside of a container, until it is served.
func (u *user) fetchFrom(t *testing.T, container, at string) string {
	t.Helper()
	return u.ok(t, "exec", container, "sh", "-c",
		"for i in $(seq 100); do timeout 10 wget -qO- http://"+at+"/x 2>/dev/null && exit; sleep 0.1; done; exit 1")
}

// killDaemon kills the user's daemon, as a crash would. The next command starts another.
func (u *user) killDaemon(t *testing.T) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(u.home, "data", "cradle", "lock"))
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.Split(string(b), "\n")[0])
	if err != nil || pid <= 1 {
		t.Fatalf("no daemon's process: %q", b)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
}

// fetch asks for /x until it is served, or for long enough. It stays on the caller's thread, and so in its network.
func fetch(t *testing.T, at string) string {
	t.Helper()
	var last error
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		var got string
		if got, last = ask(at); last == nil {
			return got
		}
	}
	t.Errorf("nobody serves at %s: %v", at, last)
	return ""
}

func ask(at string) (string, error) {
	c, err := net.Dial("tcp", at)
	if err != nil {
		return "", err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	r, err := http.NewRequest(http.MethodGet, "http://"+at+"/x", nil)
	if err != nil {
		return "", err
	}
	if err := r.Write(c); err != nil {
		return "", err
	}
	answer, err := http.ReadResponse(bufio.NewReader(c), r)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	b, err := io.ReadAll(answer.Body)
	if err == nil && answer.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", at, answer.Status)
	}
	return strings.TrimSpace(string(b)), err
}

// serveHTTP answers everything with a line, in the caller's network.
func serveHTTP(t *testing.T, at, line string) {
	t.Helper()
	l, err := net.Listen("tcp4", at)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, line) })}
	go server.Serve(l)
	t.Cleanup(func() { server.Close() })
}

// serveDNS knows one name, in the caller's network.
func serveDNS(t *testing.T, at, name string, a netip.Addr) {
	t.Helper()
	c, err := net.ListenPacket("udp4", at)
	if err != nil {
		t.Fatal(err)
	}
	server := &dns.Server{PacketConn: c, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		switch asked := q.Question[0]; {
		case asked.Name != name:
			m.Rcode = dns.RcodeNameError
		case asked.Qtype == dns.TypeA:
			m.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 60}, A: a.AsSlice()}}
		}
		w.WriteMsg(m)
	})}
	go server.ActivateAndServe()
	t.Cleanup(func() { server.Shutdown() })
}
