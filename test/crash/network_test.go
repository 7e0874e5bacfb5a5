package crash

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// settleLimit is how long a daemon that has just started may take until the host has what its containers need.
const settleLimit = time.Minute

// While containers with published ports, and sharers of their networks, start and stop on three networks, the daemon is killed CRADLE_CRASH_NETWORK_ROUNDS
// times, with four starts to a kill, at moments that CRADLE_CRASH_SEED decides. After each kill the next daemon has the
// host's bridges, TAPs, guards, leases, rules and sockets agree with the containers that run; at the end there are none.
func TestKilledDaemonsOnNetworks(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("networks need root")
	}
	rounds := knob(t, "CRADLE_CRASH_NETWORK_ROUNDS", 5)
	seed := uint64(knob(t, "CRADLE_CRASH_SEED", int(time.Now().UnixNano()&0xffffff)))
	t.Logf("CRADLE_CRASH_SEED=%d CRADLE_CRASH_NETWORK_ROUNDS=%d", seed, rounds)
	h := &networked{crashing: newHouse(t)}
	networks := [][]string{{"one"}, {"two", "--ipv6"}}
	if b, err := os.ReadFile("/proc/sys/net/ipv6/conf/all/disable_ipv6"); err != nil || strings.TrimSpace(string(b)) != "0" {
		networks[1] = networks[1][:1]
	}
	for _, words := range networks {
		if _, err := h.must("", append([]string{"network", "create"}, words...)...); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := h.must("", "run", "-d", "-m", "64m", "--name", "steady", "--network", "one", "-p", "80", "busybox", "sh", "-c",
		"mkdir /w; echo still >/w/x; exec httpd -f -h /w -p 80"); err != nil {
		t.Fatal(err)
	}
	at, err := h.must("", "port", "steady", "80")
	if err != nil {
		t.Fatal(err)
	}
	begun, ended := time.Now(), make(chan struct{})
	var workers sync.WaitGroup
	for w := range 2 {
		g := tenant{networked: h, rand: rand.New(rand.NewPCG(seed, uint64(w)+1))}
		for range tenants {
			p, err := freePort(g.rand)
			if err != nil {
				t.Fatal(err)
			}
			g.ports = append(g.ports, p)
		}
		workers.Go(func() {
			for i := 0; !h.enough.Load() || h.starts.Load() < int64(4*rounds); i++ {
				if err := g.comeAndGo(w, i); err != nil {
					t.Error(err)
					h.starts.Add(int64(4 * rounds)) // that is it
					return
				}
			}
			if err := g.leave(); err != nil {
				t.Error(err)
			}
		})
	}
	go func() { workers.Wait(); close(ended) }()
	r := rand.New(rand.NewPCG(seed, 0))
	for kills := 0; kills < rounds && !t.Failed(); {
		for some := h.started.Load() + r.Int64N(6); h.started.Load() < some && !t.Failed(); {
			time.Sleep(10 * time.Millisecond) // so that there is something to be found again
		}
		time.Sleep(time.Duration(r.Int64N(int64(maxPause)))) // the moment is the test
		if !h.killDaemon() {
			h.do("version")
			continue
		}
		kills++
		if err := h.agrees(); err != nil {
			t.Errorf("after kill %d: %v", kills, err)
		}
		if err := serves(at); err != nil {
			t.Errorf("after kill %d: %v", kills, err)
		}
	}
	h.enough.Store(true)
	<-ended
	t.Logf("%d kills in %v, %d starts, of which %d were cut short; %d things agreed, sharers ran %d times", rounds,
		time.Since(begun).Round(time.Second), h.starts.Load(), h.cut.Load(), h.compared, h.shared)
	if _, err := h.must("No such container", "rm", "-f", "steady"); err != nil {
		t.Error(err)
	}
	if out, err := h.must("", "ps", "-aq"); err != nil || out != "" {
		t.Errorf("containers are left: %q, %v", out, err)
	}
	if err := h.agrees(); err != nil {
		t.Errorf("at the end: %v", err)
	}
	for _, name := range []string{"one", "two"} {
		if _, err := h.must("not found", "network", "rm", name); err != nil {
			t.Error(err)
		}
	}
	if left, err := filepath.Glob(filepath.Join(h.Root(), "containers", "*")); err != nil || len(left) > 0 {
		t.Errorf("left over: %v, %v", left, err)
	}
}

// networked is a house whose networks are looked at between two commands.
type networked struct {
	*crashing
	gate        sync.RWMutex // read: a command; write: a look
	enough      atomic.Bool  // the daemon is not killed any more
	starts, cut atomic.Int64
	started     atomic.Int64 // starts that were not cut short
	compared    int          // things that were as they have to be
	shared      int          // times that a sharer was seen to run
}

func (h *networked) do(args ...string) result {
	h.gate.RLock()
	defer h.gate.RUnlock()
	return h.crashing.do(args...)
}

// must is crashing's, with looks between its tries.
func (h *networked) must(accept string, args ...string) (string, error) {
	return retry(h.do, accept, args...)
}

// tenants is how many containers a tenant has at a time.
const tenants = 3

// tenant is a worker that has containers come and go.
type tenant struct {
	*networked
	rand  *rand.Rand
	ports []uint16 // of the host, for one container each
	names []string // of its containers, in the same order
}

// comeAndGo has a container come, in the place of the one that has been there longest, and be changed a little.
func (h *tenant) comeAndGo(worker, turn int) error {
	r, name, slot := h.rand, fmt.Sprintf("guest%d-%d", worker, turn), turn%tenants
	if slot < len(h.names) {
		if err := h.remove(h.names[slot]); err != nil {
			return err
		}
		h.names[slot] = name
	} else {
		h.names = append(h.names, name)
	}
	port, on := h.ports[slot], []string{"bridge", "one", "two"}
	r.Shuffle(len(on), func(i, j int) { on[i], on[j] = on[j], on[i] })
	args := []string{"run", "-d", "-m", "64m", "--name", name, "--network", on[0],
		"-p", "80", "-p", fmt.Sprintf("%d:81/udp", port), "-p", fmt.Sprintf("127.0.0.1:%d:82", port)}
	if r.IntN(3) == 0 && on[0] != "bridge" && on[1] != "bridge" {
		args = append(args, "--network", on[1])
	}
	if err := h.start(append(args, "busybox", "sleep", "1000000")...); err != nil {
		return err
	}
	if r.IntN(2) == 0 {
		if err := h.share(name); err != nil {
			return err
		}
	}
	for range r.IntN(3) {
		var err error
		switch r.IntN(2) {
		case 0: // what shares its network ends
			if _, err = h.must("", "stop", "-t", "0", name); err == nil {
				err = h.start("start", name)
			}
		default: // on a third network
			if _, err = h.must("already exists", "network", "connect", on[2], name); err == nil && r.IntN(2) == 0 {
				_, err = h.must("is not connected", "network", "disconnect", on[2], name)
			}
		}
		if err != nil && !strings.Contains(err.Error(), "No such container") { // its run was cut short
			return err
		}
	}
	return nil
}

// share has a second container come to the network of one, unless that one, or its sharer, was cut short.
func (h *tenant) share(name string) error {
	err := h.start("run", "-d", "--name", name+sharer, "--network", "container:"+name, "busybox", "sleep", "1000000")
	if err == nil || strings.Contains(err.Error(), "non running container") || strings.Contains(err.Error(), "is already in use") {
		return nil
	}
	return err
}

// sharer is what a sharer's name ends with.
const sharer = "-sharer"

// remove removes a container, which ends its sharer, and then that.
func (h *tenant) remove(name string) error {
	for _, one := range []string{name, name + sharer} {
		if _, err := h.must("No such container", "rm", "-f", one); err != nil {
			return err
		}
	}
	return nil
}

// leave removes what is left of the tenant.
func (h *tenant) leave() error {
	for _, name := range h.names {
		if err := h.remove(name); err != nil {
			return err
		}
	}
	return nil
}

// start starts a container, which a kill may cut short.
func (h *networked) start(args ...string) error {
	h.starts.Add(1)
	switch r := h.do(args...); {
	case r.killed:
		h.cut.Add(1)
	case r.code != 0 && !strings.Contains(r.stderr, "No such container"):
		return fmt.Errorf("%s: %+v", strings.Join(args, " "), r)
	default:
		h.started.Add(1)
	}
	return nil
}

// agrees looks, while no command runs, whether what the host has is what containers need.
func (h *networked) agrees() error {
	h.gate.Lock()
	defer h.gate.Unlock()
	if r := h.crashing.do("version"); r.code != 0 { // a daemon is there
		return fmt.Errorf("version: %+v", r)
	}
	for end := time.Now().Add(settleLimit); ; time.Sleep(50 * time.Millisecond) {
		want, err := h.needed()
		if err != nil {
			return err
		}
		have, err := h.Kernel()
		if err != nil {
			return err
		}
		if slices.Equal(want, have) {
			h.compared += len(want)
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("the host has not what its containers need:\n%s", difference(want, have))
		}
	}
}

func difference(want, have []string) string {
	var lines []string
	for _, l := range want {
		if !slices.Contains(have, l) {
			lines = append(lines, "lacks "+l)
		}
	}
	for _, l := range have {
		if !slices.Contains(want, l) {
			lines = append(lines, "has   "+l)
		}
	}
	if lines == nil { // something is there twice
		lines = append(slices.Clone(have), "is not", strings.Join(want, "\n"))
	}
	return strings.Join(lines, "\n")
}

// needed is what house.Kernel is to say, as the daemon's answers have it.
func (h *networked) needed() ([]string, error) {
	var networks []struct {
		ID   string `json:"Id"`
		IPAM struct {
			Config []struct {
				Subnet  netip.Prefix
				Gateway netip.Addr
			}
		}
	}
	if err := h.inspect(&networks, "network"); err != nil {
		return nil, err
	}
	var lines []string
	bridges := map[string]netip.Prefix{} // of IPv4, by the network's id
	for _, n := range networks {
		for _, c := range n.IPAM.Config {
			gateway := netip.PrefixFrom(c.Gateway, c.Subnet.Bits())
			if c.Gateway.Is4() {
				bridges[n.ID] = gateway
			}
			at := netip.AddrPortFrom(c.Gateway, 53)
			lines = append(lines, "bridge "+gateway.String(), "listen tcp "+at.String(), "listen udp "+at.String())
		}
	}
	var containers []inspected
	if err := h.inspect(&containers, "container"); err != nil {
		return nil, err
	}
	running := map[string]bool{}
	for _, c := range containers {
		running[c.ID] = true
		lines = append(lines, c.needs(bridges)...)
	}
	for _, c := range containers {
		owner, shares := strings.CutPrefix(c.HostConfig.NetworkMode, "container:")
		if shares && !running[owner] {
			lines = append(lines, "a sharer's container "+owner) // nothing has that
		}
		if shares {
			h.shared++
		}
	}
	slices.Sort(lines)
	return lines, nil
}

// inspected is what is needed of a running container. One that shares another's network has none of its own.
type inspected struct {
	ID              string `json:"Id"`
	HostConfig      struct{ NetworkMode string }
	State           struct{ Pid int }
	NetworkSettings struct {
		Ports    map[string][]struct{ HostIp, HostPort string }
		Networks map[string]*struct {
			NetworkID, EndpointID, MacAddress, IPAddress, GlobalIPv6Address, Gateway string
		}
	}
}

// needs are a container's lines. The published ports lead to the network that is first by name, none being preferred.
func (c inspected) needs(bridges map[string]netip.Prefix) (lines []string) {
	way := ""
	for name, n := range c.NetworkSettings.Networks {
		lines = append(lines, fmt.Sprintf("tap %s %s %d", bridges[n.NetworkID], n.MacAddress, c.State.Pid), "lease "+n.EndpointID+".json")
		if way == "" || name < way {
			way = name
		}
	}
	out := c.NetworkSettings.Networks[way]
	for port, bindings := range c.NetworkSettings.Ports {
		number, protocol, _ := strings.Cut(port, "/")
		for _, b := range bindings {
			lines = append(lines, "listen "+protocol+" "+net.JoinHostPort(b.HostIp, b.HostPort))
			guest := out.IPAddress
			if strings.Contains(b.HostIp, ":") {
				guest = out.GlobalIPv6Address
			}
			if guest != "" && (b.HostIp == "0.0.0.0" || b.HostIp == "::") { // loopback is not the firewall's
				lines = append(lines, fmt.Sprintf("forward %s * %s %s", protocol, b.HostPort, net.JoinHostPort(guest, number)))
			}
		}
	}
	return lines
}

// inspect reads all networks, or all running containers.
func (h *networked) inspect(into any, kind string) error {
	list := []string{"network", "ls", "-q"}
	if kind == "container" {
		list = []string{"ps", "-q"}
	}
	r := h.crashing.do(list...)
	if r.code != 0 {
		return fmt.Errorf("%s: %+v", strings.Join(list, " "), r)
	}
	ids := strings.Fields(r.out)
	if len(ids) == 0 {
		return nil
	}
	if r = h.crashing.do(append([]string{kind, "inspect"}, ids...)...); r.code != 0 {
		return fmt.Errorf("%s inspect: %+v", kind, r)
	}
	return json.Unmarshal([]byte(r.out), into)
}

// serves asks a published port, from loopback and at another address of the host's.
func serves(at string) error {
	_, port, err := net.SplitHostPort(strings.Fields(at)[0])
	if err != nil {
		return err
	}
	hosts := []string{"127.0.0.1"}
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		return err
	}
	for _, a := range addresses {
		if n, ok := a.(*net.IPNet); ok && n.IP.To4() != nil && n.IP.IsGlobalUnicast() {
			hosts = append(hosts, n.IP.String())
			break
		}
	}
	client := http.Client{Timeout: time.Minute, Transport: &http.Transport{DisableKeepAlives: true}}
	for _, host := range hosts {
		answer, err := client.Get("http://" + net.JoinHostPort(host, port) + "/x")
		if err != nil {
			return err
		}
		b, err := io.ReadAll(answer.Body)
		if err = errors.Join(err, answer.Body.Close()); err != nil || string(b) != "still\n" {
			return fmt.Errorf("%s says %q, %w", host, b, err)
		}
	}
	return nil
}

// freePort is a port below those that the kernel gives to whoever asks for any.
func freePort(r *rand.Rand) (uint16, error) {
	for range 100 {
		p := uint16(20000 + r.IntN(10000))
		l, err := net.Listen("tcp", fmt.Sprintf(":%d", p))
		if err != nil {
			continue
		}
		c, err := net.ListenPacket("udp", fmt.Sprintf(":%d", p))
		if err == nil {
			err = c.Close()
		}
		if err := errors.Join(err, l.Close()); err == nil {
			return p, nil
		}
	}
	return 0, errors.New("no port is free")
}
