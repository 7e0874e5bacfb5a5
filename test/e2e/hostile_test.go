package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/cradlevm/cradle/network/nettest"
)

// segment is a network with a hostile container, whom it pretends to be, and two that mind their own business.
type segment struct {
	client
	t       *testing.T
	gateway netip.Addr
	who     map[string]nettest.Identity // by name
	bridge  *nettest.Sniffer            // behind the guards
	tap     *nettest.Sniffer            // what the hostile guest has sent, before its guard
}

func newSegment(t *testing.T) *segment {
	s := &segment{client: inOwn(t), t: t, who: map[string]nettest.Identity{}}
	s.ok(t, "network", "create", "--ipv6", "wire")
	program := filepath.Join(s.house.Dir, "hostile")
	build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", program, "./hostile")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the hostile program: %v\n%s", err, out)
	}
	for name, command := range map[string][]string{
		"bad": {"busybox", "sleep", "10000"}, "victim": {"busybox", "sleep", "10000"}, "good": {"busybox", "sleep", "10000"}, "server": serve("served"),
	} {
		s.ok(t, append([]string{"run", "-d", "--name", name, "--network", "wire"}, command...)...)
		s.who[name] = s.identify(name)
	}
	s.ok(t, "cp", program, "bad:/hostile")
	s.gateway = netip.MustParseAddr(s.ok(t, "inspect", "-f", "{{.NetworkSettings.Networks.wire.Gateway}}", "bad"))
	port, bridge := s.interfaces()
	s.tap, s.bridge = nettest.Sniff(t, port), nettest.Sniff(t, bridge)
	s.fetchFrom(t, "good", s.who["server"].IPv4.String())
	return s
}

func (s *segment) identify(name string) nettest.Identity {
	f := strings.Fields(s.ok(s.t, "inspect", "-f", "{{with .NetworkSettings.Networks.wire}}{{.MacAddress}} {{.IPAddress}} {{.GlobalIPv6Address}}{{end}}", name))
	if len(f) != 3 {
		s.t.Fatalf("%s is at %q", name, f)
	}
	mac, err := net.ParseMAC(f[0])
	if err != nil {
		s.t.Fatal(err)
	}
	return nettest.Identity{MAC: mac, IPv4: netip.MustParseAddr(f[1]), IPv6: netip.MustParseAddr(f[2])}
}

// interfaces finds the host's end of the hostile guest's interface, by its entry in the bridge's table, and the bridge.
func (s *segment) interfaces() (tap, bridge string) {
	entries, err := netlink.NeighList(0, unix.AF_BRIDGE)
	if err != nil {
		s.t.Fatalf("list the bridges' tables: %v", err)
	}
	for _, e := range entries {
		if !bytes.Equal(e.HardwareAddr, s.who["bad"].MAC) || e.MasterIndex == 0 {
			continue
		}
		port, err1 := netlink.LinkByIndex(e.LinkIndex)
		master, err2 := netlink.LinkByIndex(e.MasterIndex)
		if err1 == nil && err2 == nil && strings.Contains(master.Attrs().Alias, s.house.Dir) { // whose it is
			return port.Attrs().Name, master.Attrs().Name
		}
	}
	s.t.Fatalf("no bridge knows %s", s.who["bad"].MAC)
	return "", ""
}

// attack runs the hostile program and returns how many frames its kernel took.
func (s *segment) attack(args ...string) int {
	s.t.Helper()
	who, err := json.Marshal([]nettest.Identity{s.who["bad"], s.who["victim"]})
	if err != nil {
		s.t.Fatal(err)
	}
	out := s.ok(s.t, append([]string{"exec", "bad", "/hostile", args[0], string(who)}, args[1:]...)...)
	n, err := strconv.Atoi(out)
	if err != nil {
		s.t.Fatalf("the hostile program says %q", out)
	}
	return n
}

// dropped is what of the hostile guest's frames was dropped, by reason.
func (s *segment) dropped() map[string]uint64 {
	s.t.Helper()
	return s.policyStatus(s.t, "bad").Egress.Dropped
}

func sum(counts map[string]uint64) (n uint64) {
	for _, c := range counts {
		n += c
	}
	return n
}

// look reports what has come out at the bridge and should not have, and how much of the hostile guest's has.
func (s *segment) look() (passed int) {
	s.t.Helper()
	for _, f := range s.bridge.Frames() {
		var sender *nettest.Identity
		for _, one := range s.who {
			if bytes.Equal(f[6:12], one.MAC) {
				sender = &one
			}
		}
		switch {
		case sender == nil || bytes.Contains(f, []byte("forged")):
			s.t.Errorf("passed, from nobody: %x", f)
		case nettest.Forged(f, *sender) != "":
			s.t.Errorf("passed with a wrong %s: %x", nettest.Forged(f, *sender), f)
		case bytes.Equal(sender.MAC, s.who["bad"].MAC):
			passed++
		}
	}
	return passed
}

// service has the good container fetch from the server until the function it returns is called, which tells how often it
// was served and how often not.
func (s *segment) service() (end func() (served, failed int)) {
	at := s.who["server"].IPv4.String()
	s.ok(s.t, "exec", "-d", "good", "sh", "-c", "rm -f /stop /log; while [ ! -e /stop ]; do timeout 30 wget -qO- http://"+at+"/x >>/log || echo failed >>/log; done; touch /end")
	s.ok(s.t, "exec", "good", "sh", "-c", "until [ -s /log ]; do sleep 0.05; done")
	return func() (int, int) {
		log := s.ok(s.t, "exec", "good", "sh", "-c", "touch /stop; until [ -e /end ]; do sleep 0.05; done; rm /end; cat /log")
		return strings.Count(log, "served"), strings.Count(log, "failed")
	}
}

// A hostile guest sends raw frames through its own virtio interface.
func TestHostileContainer(t *testing.T) {
	s := newSegment(t)
	for _, test := range []struct {
		name string
		run  func(*testing.T, *segment)
	}{{"Forging", testForging}, {"Flooding", testFlooding}} {
		t.Run(test.name, func(t *testing.T) {
			s.t = t
			test.run(t, s)
		})
	}
}

// testForging sends forgeries of all kinds, and 10,000 mutations, while others' connections are answered. What comes out at the
// bridge is honest; what does not is counted.
func testForging(t *testing.T, s *segment) {
	end := s.service()
	before, want := s.dropped(), map[string]uint64{}
	for _, f := range nettest.Forgeries(s.who["bad"], s.who["victim"], s.gateway) {
		want[f.Reason]++
	}
	s.attack("forgeries", s.gateway.String())
	after := s.dropped()
	for reason, n := range want {
		if after[reason]-before[reason] < n {
			t.Errorf("%d forgeries are to be counted as %s: %v, %v", n, reason, before, after)
		}
	}
	before = after
	s.attack("checksum") // of which the guest's kernel refuses some, and others it writes itself
	if sum(s.dropped()) == sum(before) {
		t.Errorf("no frame with a checksum over its sender was dropped: %v", before)
	}
	s.look()

	before = s.dropped()
	s.tap.Frames()
	const mutations = 10_000
	sent := s.attack("mutations", strconv.Itoa(mutations))
	tried, forged := 0, 0
	for _, f := range s.tap.Frames() {
		tried++
		if nettest.Forged(f, s.who["bad"]) != "" {
			forged++
		}
	}
	passed := s.look()
	after = s.dropped()
	served, failed := end()
	t.Logf("%d mutations sent, %d seen at the TAP, %d of them forged; %d at the bridge; %d dropped: %v; %d connections served meanwhile",
		sent, tried, forged, passed, sum(after)-sum(before), after, served)
	if failed > 0 || served < 3 {
		t.Errorf("of the others' connections %d were served and %d failed", served, failed)
	}
	if int(sum(after)-sum(before)) < forged {
		t.Errorf("%d dropped, %d were forged", sum(after)-sum(before), forged)
	}
	if sent < mutations*9/10 || tried < sent*9/10 || forged < mutations/4 || passed == 0 {
		t.Error("the test has not seen what was sent: it shows nothing")
	}
}

// testFlooding sends garbage as fast as it can, which takes neither the others' service nor the daemon's time.
func testFlooding(t *testing.T, s *segment) {
	end := s.service()
	daemon := s.house.DaemonPID()
	before, cpu := s.dropped(), cpuTime(t, daemon)
	const seconds = 5
	sent := s.attack("flood", strconv.Itoa(seconds))
	used := cpuTime(t, daemon) - cpu
	after := s.dropped()
	s.look()
	served, failed := end()
	t.Logf("%d frames in %d s, %d dropped; the daemon used %v; %d connections served meanwhile", sent, seconds, sum(after)-sum(before), used, served)
	if sum(after)-sum(before) < uint64(sent) {
		t.Errorf("%d sent, %d dropped", sent, sum(after)-sum(before))
	}
	if failed > 0 || served < 2 {
		t.Errorf("of the others' connections %d were served and %d failed", served, failed)
	}
	if used > seconds*time.Second/5 {
		t.Errorf("the daemon used %v of processor time in %d s", used, seconds)
	}
}

// cpuTime is the processor time that a process has used.
func cpuTime(t *testing.T, pid int) time.Duration {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	user, err1 := strconv.Atoi(f[11])
	system, err2 := strconv.Atoi(f[12])
	if err1 != nil || err2 != nil {
		t.Fatalf("/proc/%d/stat: %q", pid, b)
	}
	const tick = 10 * time.Millisecond // USER_HZ is 100 everywhere
	return time.Duration(user+system) * tick
}
