package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"

	"github.com/cradlevm/cradle/network/nettest"
)

// TestPublishedPorts: reachable from the world, the host, its loopback, and from other containers; released at the end.
func TestPublishedPorts(t *testing.T) {
	h := newHouse(t)
	world := nettest.NewOutside(t)
	one := h.create(Spec{Name: "one", IPv6: true})
	h.create(Spec{Name: "other"})
	both := func(s PortSpec) []PortSpec {
		s.Container = 7
		tcp, udp := s, s
		tcp.Protocol, udp.Protocol = "tcp", "udp"
		return []PortSpec{tcp, udp}
	}
	a, ea := h.guest(EndpointSpec{Network: "one", Name: "a", Ports: slices.Concat(both(PortSpec{Host: 8080}), both(PortSpec{}),
		both(PortSpec{HostIP: netip.MustParseAddr("127.0.0.1"), Host: 8081}), both(PortSpec{HostIP: nettest.HostAddr(), Host: 8082}))})
	b, _ := h.guest(EndpointSpec{Network: "one", Name: "b"})
	c, ec := h.guest(EndpointSpec{Network: "other", Name: "c", Ports: both(PortSpec{Host: 8083})})
	listen(t, a, "a")
	listen(t, c, "c")
	at := func(a netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(a, port) }
	four, six := netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("::1")
	open := func(t *testing.T, who string) {
		t.Helper()
		for _, p := range []place{world, here{}, b, c, a} {
			reaches(t, p, at(nettest.HostAddr(), 8080), who)
		}
		reaches(t, world, at(nettest.HostAddr6(), 8080), who)
		reaches(t, b, at(one.Subnets[0].Gateway, 8080), who)
		reaches(t, here{}, at(four, 8080), who)
		reaches(t, here{}, at(six, 8080), who)
		reaches(t, here{}, at(four, 8081), who)
		reaches(t, world, at(nettest.HostAddr(), 8082), who)
		closed(t, door{world, at(nettest.HostAddr(), 8081)}, door{here{}, at(four, 8082)})
	}
	open(t, "a")
	if got := ask(world, "tcp", at(nettest.HostAddr(), 8080)); got != "a sees "+nettest.OutsideAddr().String() {
		t.Errorf("the source is not kept: %q", got)
	}
	reaches(t, world, at(nettest.HostAddr(), 8083), "c")
	reaches(t, a, at(nettest.HostAddr(), 8083), "c")
	reaches(t, world, at(nettest.HostAddr6(), 8083), "c") // the guest has no IPv6
	var picked uint16
	for _, p := range ea.Ports {
		if p.Protocol == "tcp" && p.Host > 10000 {
			picked = p.Host
		}
	}
	if got := ask(world, "tcp", at(nettest.HostAddr(), picked)); !strings.HasPrefix(got, "a") {
		t.Errorf("port %d: %q", picked, got)
	}

	// Conflicts: with a container, and with another program.
	_, err := h.tryAttach(EndpointSpec{Network: "one", Name: "d", Ports: both(PortSpec{Host: 8080})})
	if !errors.Is(err, ErrPortTaken) || err.Error() != "Bind for 0.0.0.0:8080 failed: port is already allocated" {
		t.Errorf("taken port: %v", err)
	}
	l, err := net.Listen("tcp", "0.0.0.0:8090")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, err = h.tryAttach(EndpointSpec{Network: "one", Name: "d", Ports: both(PortSpec{Host: 8090})})
	if !errors.Is(err, ErrPortTaken) {
		t.Errorf("a program's port: %v", err)
	}
	e, err := h.tryAttach(EndpointSpec{Network: "one", Name: "d", Ports: both(PortSpec{Host: 8080, HostEnd: 8099})})
	if err != nil || e.Ports[0].Host != 8081 && e.Ports[0].Host != 8084 {
		t.Errorf("range: %v, %v", e.Ports, err)
	}

	// A new daemon, and between the daemons the kernel.
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	reaches(t, world, at(nettest.HostAddr(), 8080), "a")
	reaches(t, b, at(nettest.HostAddr(), 8080), "a")
	h.open()
	if r := h.reopen(ea.Sandbox, ec.Sandbox, e.Sandbox, "sandbox-b"); len(r.Made)+len(r.Lost) > 0 {
		t.Errorf("%+v", r)
	}
	open(t, "a")

	if err := h.Detach(context.Background(), ea.ID); err != nil {
		t.Fatal(err)
	}
	closed(t, door{world, at(nettest.HostAddr(), 8080)}, door{here{}, at(four, 8080)})
	l2, err := net.Listen("tcp", "0.0.0.0:8080")
	if err != nil {
		t.Fatalf("not released: %v", err)
	}
	l2.Close()
}

// TestRestart: leases, fixed addresses, ports, names and guards are as they were; what nobody owns goes.
func TestRestart(t *testing.T) {
	h := newHouse(t)
	n := h.create(Spec{Name: "n", IPv6: true, Labels: map[string]string{"a": "b"}, Subnets: []Subnet{{Prefix: netip.MustParsePrefix("10.9.0.0/24")}}})
	a, ea := h.guest(EndpointSpec{Network: "n", Name: "a", IPv4: netip.MustParseAddr("10.9.0.77")})
	b, eb := h.guest(EndpointSpec{Network: "n", Name: "b"})
	dead := h.attach(EndpointSpec{Network: "n", Name: "dead", Ports: []PortSpec{{Protocol: "tcp", Host: 8080, Container: 80}}})
	spare, err := h.MakeTAP(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	listen(t, a, "a")
	h.Close()
	reaches(t, b, port7(ea.IPv4.Addr()), "a")
	h.open()
	r, err := h.Reconcile(context.Background(), Live{Sandboxes: []string{ea.Sandbox, eb.Sandbox}, TAPs: []string{spare}})
	if err != nil || len(r.Made) > 0 || len(r.Lost) > 0 || len(r.Removed) != 2 {
		t.Errorf("%+v, %v", r, err)
	}
	if r := h.reopen(ea.Sandbox, eb.Sandbox); !slices.Equal(r.Removed, []string{"interface " + spare}) {
		t.Errorf("%+v", r)
	}
	reaches(t, b, port7(ea.IPv4.Addr()), "a")
	if got, err := resolve(b, eb.Resolvers[0], "udp", "a", 1); err != nil || got != "10.9.0.77" {
		t.Errorf("%q, %v", got, err)
	}
	for _, want := range []Endpoint{ea, eb} {
		all, err := h.Endpoints("n")
		if err != nil || !slices.ContainsFunc(all, func(e Endpoint) bool { return e.ID == want.ID && e.IPv4 == want.IPv4 && e.IPv6 == want.IPv6 }) {
			t.Errorf("%v is not among %v (%v)", want, all, err)
		}
	}
	again, err := h.Get("n")
	if err != nil || again.ID != n.ID || again.Labels["a"] != "b" || again.Subnets[0].Prefix != n.Subnets[0].Prefix {
		t.Errorf("%+v, %v", again, err)
	}
	if e := h.attach(EndpointSpec{Network: "n", Name: "new"}); e.IPv4.Addr() != dead.IPv4.Addr() {
		t.Errorf("%s is given, not %s again", e.IPv4, dead.IPv4)
	}
	if err := h.Remove(context.Background(), "n"); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), `has active endpoints (name:"a"`) {
		t.Errorf("%v", err)
	}
	r = h.reopen()
	if len(r.Removed) != 6 { // three endpoints, three interfaces
		t.Errorf("%+v", r)
	}
	if err := h.Remove(context.Background(), "n"); err != nil {
		t.Error(err)
	}
	if _, err := netlink.LinkByName(n.Bridge); !notFound(err) {
		t.Errorf("the bridge is there: %v", err)
	}
}

// TestRepair: what somebody deletes by hand comes back by itself.
func TestRepair(t *testing.T) {
	h := newHouse(t)
	world := nettest.NewOutside(t)
	n := h.create(Spec{Name: "n", IPv6: true})
	a, ea := h.guest(EndpointSpec{Network: "n", Name: "a", Ports: []PortSpec{{Protocol: "tcp", Host: 8080, Container: 7}}})
	b, eb := h.guest(EndpointSpec{Network: "n", Name: "b"})
	lost := h.attach(EndpointSpec{Network: "n", Name: "lost"})
	live := Live{Sandboxes: []string{ea.Sandbox, eb.Sandbox, lost.Sandbox}}
	if r, err := h.Reconcile(context.Background(), live); err != nil || len(r.Made)+len(r.Removed)+len(r.Lost) > 0 {
		t.Fatalf("%+v, %v", r, err)
	}
	listen(t, a, "a")
	works := func() bool {
		host := netip.AddrPortFrom(nettest.HostAddr(), 8080)
		name, err := resolveWithin(wait, b, eb.Resolvers[0], "udp", "a", 1)
		return once(b, "tcp", port7(ea.IPv4.Addr())) != "" && once(b, "tcp", port7(ea.IPv6.Addr())) != "" &&
			once(world, "tcp", host) == "a sees "+nettest.OutsideAddr().String() && err == nil && name == ea.IPv4.Addr().String()
	}
	if !works() {
		t.Fatal("does not work to begin with")
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Error(err)
		}
	}
	for name, harm := range map[string]func(){
		"bridge deleted": func() {
			link, err := netlink.LinkByName(n.Bridge)
			must(err)
			must(netlink.LinkDel(link))
		},
		"ruleset flushed": func() {
			c, err := nftables.New()
			must(err)
			c.FlushRuleset()
			must(c.Flush())
		},
		"TAP off its bridge": func() {
			link, err := netlink.LinkByName(ea.TAP)
			must(err)
			must(netlink.LinkSetNoMaster(link))
		},
		"TAP down": func() {
			link, err := netlink.LinkByName(ea.TAP)
			must(err)
			must(netlink.LinkSetDown(link))
		},
		"address gone": func() {
			link, err := netlink.LinkByName(n.Bridge)
			must(err)
			addresses, err := netlink.AddrList(link, netlink.FAMILY_ALL)
			must(err)
			for _, a := range addresses {
				must(netlink.AddrDel(link, &a))
			}
			must(netlink.LinkSetDown(link))
		},
	} {
		harm()
		end := time.Now().Add(15 * time.Second)
		for !works() {
			if time.Now().After(end) {
				out, _ := exec.Command("sh", "-c", "ip a; nft list ruleset").CombinedOutput()
				t.Fatalf("%s: does not come back\n%s", name, out)
			}
			time.Sleep(50 * time.Millisecond)
		}
	}
	link, err := netlink.LinkByName(lost.TAP)
	must(err)
	must(netlink.LinkDel(link))
	for range 2 { // the first time nobody could do anything about it
		select {
		case id := <-h.told:
			if id != lost.ID {
				t.Errorf("%s is told lost", id)
			}
		case <-time.After(15 * time.Second):
			t.Fatal("nobody is told of a TAP that was deleted")
		}
		must(netlink.LinkSetAlias(bridgeOf(t, n), "cradle "+h.dir)) // whatever changes has the watch look
	}
	r, err := h.Reconcile(context.Background(), live)
	if err != nil || !slices.Equal(r.Lost, []string{lost.ID}) {
		t.Errorf("%+v, %v", r, err)
	}
	if _, _, err := h.Counters(lost.ID); !errors.Is(err, ErrLost) {
		t.Errorf("%v", err)
	}
	must(h.Detach(context.Background(), lost.ID))
}

func bridgeOf(t *testing.T, n Network) netlink.Link {
	t.Helper()
	link, err := netlink.LinkByName(n.Bridge)
	if err != nil {
		t.Fatal(err)
	}
	return link
}

// TestManyEndpoints: 60 on one network, or CRADLE_TEST_ENDPOINTS (300 are what is promised), no address twice, and how long one
// takes.
func TestManyEndpoints(t *testing.T) {
	h := newHouse(t)
	h.create(Spec{Name: "n", IPv6: true})
	many := 60
	if v := os.Getenv("CRADLE_TEST_ENDPOINTS"); v != "" {
		var err error
		if many, err = strconv.Atoi(v); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := h.Reconcile(context.Background(), Live{}); err != nil { // it watches from now on
		t.Fatal(err)
	}
	seen := map[netip.Addr]bool{}
	var taps []string
	for range many {
		tap, err := h.MakeTAP(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		taps = append(taps, tap)
	}
	var took []time.Duration
	var endpoints []Endpoint
	for i, tap := range taps {
		begin := time.Now()
		e := h.attach(EndpointSpec{Network: "n", Name: fmt.Sprint("c", i), TAP: tap})
		took = append(took, time.Since(begin))
		if seen[e.IPv4.Addr()] || seen[e.IPv6.Addr()] {
			t.Fatalf("%v is given twice", e)
		}
		seen[e.IPv4.Addr()], seen[e.IPv6.Addr()] = true, true
		endpoints = append(endpoints, e)
	}
	slices.Sort(took)
	t.Logf("attach: median %v, worst %v", took[many/2], took[many-1])
	begin := time.Now()
	live := Live{}
	for _, e := range endpoints {
		live.Sandboxes = append(live.Sandboxes, e.Sandbox)
	}
	if r, err := h.Reconcile(context.Background(), live); err != nil || len(r.Made)+len(r.Removed)+len(r.Lost) > 0 {
		t.Errorf("%+v, %v", r, err)
	}
	t.Logf("reconcile of %d with nothing to do: %v", many, time.Since(begin))
	begin = time.Now()
	for _, e := range endpoints {
		if err := h.Detach(context.Background(), e.ID); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("detach: %v each", time.Since(begin)/time.Duration(many))
	begin = time.Now()
	r, err := h.Reconcile(context.Background(), Live{})
	if err != nil || len(r.Removed) != many {
		t.Errorf("%d removed, %v", len(r.Removed), err)
	}
	t.Logf("removing %d TAPs: %v", many, time.Since(begin))
}

// TestCrashes stops a process after each step of making and unmaking things, which is what a kill does: the next one leaves
// exactly what lives.
func TestCrashes(t *testing.T) {
	h := newHouse(t)
	n := h.create(Spec{Name: "n"})
	kept, ek := h.guest(EndpointSpec{Network: "n", Name: "kept", Ports: []PortSpec{{Protocol: "tcp", Host: 8080, Container: 7}}})
	listen(t, kept, "kept")
	crashed := func() { // what a process loses
		h.kernel.stopWatching()
		h.Networks.mu.Lock()
		for _, net := range h.Networks.networks {
			net.silence()
		}
		h.Networks.ports.closeAll()
		h.Networks.mu.Unlock()
		h.open()
	}
	check := func(step string) {
		t.Helper()
		r, err := h.Reconcile(context.Background(), Live{Sandboxes: []string{ek.Sandbox}})
		if err != nil || len(r.Lost) > 0 {
			t.Fatalf("%s: %+v, %v", step, r, err)
		}
		taps, _ := h.links.taps()
		bridges, _ := h.links.bridges()
		assigned, _ := h.links.guards.Assigned()
		files, _ := filepath.Glob(filepath.Join(h.dir, "endpoints", "*"))
		if len(taps) != 1 || len(bridges) != 1 || len(assigned) != 1 || len(files) != 1 {
			t.Errorf("%s: left: TAPs %d, bridges %d, guards %d, leases %v", step, len(taps), len(bridges), len(assigned), files)
		}
		if !h.firewall.intact(h.hostState()) {
			t.Errorf("%s: the firewall is not what it should be", step)
		}
		if got := ask(here{}, "tcp", netip.MustParseAddrPort("127.0.0.1:8080")); !strings.HasPrefix(got, "kept") {
			t.Errorf("%s: %q", step, got)
		}
	}
	half := func() *Endpoint { // an endpoint's lease, taken but not stored
		tap, err := h.MakeTAP(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		k := h.networks[n.ID]
		e := &Endpoint{ID: randomID(), Network: n.ID, NetworkName: "n", Sandbox: "gone", Container: "gone", Name: "gone", TAP: tap, MTU: n.MTU}
		if err := k.lease(e, EndpointSpec{}); err != nil {
			t.Fatal(err)
		}
		e.Ports = []Port{{"tcp", netip.IPv4Unspecified(), 8099, 80}}
		return e
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	steps := []struct {
		name string
		do   func()
	}{
		{"TAP made", func() { h.MakeTAP(context.Background()) }},
		{"TAP without a guard", func() { must(persistTAP(h.links.tapPrefix + "beef")) }},
		{"lease taken", func() { half() }},
		{"lease stored", func() { must(h.store.putEndpoint(*half())) }},
		{"lease half written", func() {
			must(os.WriteFile(filepath.Join(h.dir, "endpoints", "x.json.new"), []byte(`{"vers`), 0o600))
			must(os.WriteFile(filepath.Join(h.dir, "endpoints", "y.json"), nil, 0o600))
		}},
		{"ports in the firewall", func() { e := half(); must(h.store.putEndpoint(*e)); must(h.firewall.addPorts(portElements(e))) }},
		{"ports in the firewall, no lease", func() { must(h.firewall.addPorts(portElements(half()))) }},
		{"guard assigned", func() { e := half(); must(h.links.connect(&n, e)) }},
		{"all but the answer", func() {
			h.attach(EndpointSpec{Network: "n", Name: "gone", Ports: []PortSpec{{Protocol: "udp", Host: 9, Container: 9}}})
		}},
		{"bridge of no network", func() {
			must(h.links.ensureBridge(&Network{Bridge: "crx", MTU: 1500, Subnets: []Subnet{{Prefix: netip.MustParsePrefix("10.77.0.0/24"), Gateway: netip.MustParseAddr("10.77.0.1")}}}))
		}},
		{"network stored, no bridge", func() { link, _ := netlink.LinkByName(n.Bridge); must(netlink.LinkDel(link)) }},
		{"network gone from the firewall", func() { must(h.firewall.remove()) }},
		{"TAP removed, lease kept", func() {
			e := h.attach(EndpointSpec{Network: "n", Name: "gone"})
			link, _ := netlink.LinkByName(e.TAP)
			must(netlink.LinkDel(link))
		}},
	}
	for _, s := range steps {
		s.do()
		crashed()
		check(s.name)
	}
}
