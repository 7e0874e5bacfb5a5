package e2e

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	mdns "github.com/miekg/dns"

	"github.com/cradlevm/cradle/api"
)

// get is what a container gets of /x at an address; empty when nobody answers.
func (c client) get(t *testing.T, container, at string) string {
	t.Helper()
	return strings.TrimSpace(c.do(t, nil, "exec", container, "timeout", "2", "wget", "-qO-", "http://"+at+"/x").stdout)
}

// policyStatus is what is told of a container's policy on its one network.
func (c client) policyStatus(t *testing.T, container string) api.NetworkPolicyStatus {
	t.Helper()
	var list []api.ContainerNetworkPolicy
	if err := json.Unmarshal([]byte(c.ok(t, "network", "policy", "inspect", container)), &list); err != nil || len(list) != 1 || len(list[0].Networks) != 1 {
		t.Fatalf("%+v, %v", list, err)
	}
	return list[0].Networks[0]
}

// serveNames answers questions for A records on the host's loopback, at an address of the test's own.
func serveNames(t *testing.T, zone map[string]string) (at string) {
	t.Helper()
	at = fmt.Sprintf("127.77.%d.53", os.Getpid()%250+1)
	conn, err := net.ListenPacket("udp", at+":53")
	if err != nil {
		t.Fatal(err)
	}
	server := &mdns.Server{PacketConn: conn, Handler: mdns.HandlerFunc(func(w mdns.ResponseWriter, q *mdns.Msg) {
		m := new(mdns.Msg).SetReply(q)
		if a, ok := zone[q.Question[0].Name]; ok && q.Question[0].Qtype == mdns.TypeA {
			m.Answer = []mdns.RR{&mdns.A{Hdr: mdns.RR_Header{Name: q.Question[0].Name, Rrtype: mdns.TypeA, Class: mdns.ClassINET, Ttl: 600}, A: net.ParseIP(a)}}
		}
		w.WriteMsg(m)
	})}
	go server.ActivateAndServe()
	t.Cleanup(func() { server.Shutdown() })
	return at
}

// A container sends what its policy allows: from its first packet on, changed live, after a kill of the daemon, in its next
// machine, and in its clone.
func TestNetworkPolicy(t *testing.T) {
	c := inOwn(t)
	subnet := ownSubnet(213)
	names := serveNames(t, map[string]string{"www.good.example.": subnet + ".9", "bad.example.": subnet + ".9"})
	c.ok(t, "network", "create", "--subnet", subnet+".0/24", "web")
	c.ok(t, append([]string{"run", "-d", "--name", "server", "--network", "web", "--ip", subnet + ".9"}, serve("served")...)...)
	c.ok(t, "run", "-d", "--name", "friend", "--network", "web", "busybox", "sleep", "10000")
	c.fetchFrom(t, "friend", "server")
	c.ok(t, "run", "-d", "--name", "box", "--network", "web", "--dns", names, "--egress", "deny", "--egress-allow", "*.good.example:80/tcp",
		"busybox", "sleep", "10000")
	check := func(when, box, at string, open bool) {
		t.Helper()
		got := ""
		if open {
			got = c.fetchFrom(t, box, at)
		} else {
			got = c.get(t, box, at)
		}
		if (got == "served") != open {
			t.Errorf("%s: %s gets %q from %s", when, box, got, at)
		}
	}
	for _, at := range []string{subnet + ".9", "server", "bad.example"} {
		check("at the start", "box", at, false)
	}
	check("by an allowed name", "box", "www.good.example", true)
	check("at an opened address", "box", subnet+".9", true)
	if s := c.policyStatus(t, "box"); s.Egress == nil || s.Egress.Dropped["policy"] == 0 || s.Egress.Packets == 0 || s.Ingress.Bytes == 0 || s.Policy.Default != "deny" {
		t.Errorf("it is told: %+v", s)
	}

	if s := c.policyStatus(t, "box"); len(s.Rules) != 1 || s.Rules[0].Allow != "*.good.example:80/tcp" || s.Rules[0].Packets < 4 || s.Default == nil || s.Default.Packets == 0 {
		t.Errorf("its rules have decided: %+v", s)
	}

	set := func(args ...string) { t.Helper(); c.ok(t, append([]string{"network", "policy", "set"}, args...)...) }
	set("--default", "deny", "--allow", subnet+".0/24:81/tcp", "box")
	check("another port", "box", subnet+".9", false)
	file := filepath.Join(c.house.Dir, "policy.yaml")
	if err := os.WriteFile(file, fmt.Appendf(nil, "default: deny\nrules: [{deny: %[1]s.10}, {allow: '%[1]s.0/28:80,443/tcp'}]\n", subnet), 0o600); err != nil {
		t.Fatal(err)
	}
	set("--network", "web", "--file", file, "box")
	check("a file, for one network", "box", subnet+".9", true)
	set("--default", "deny", "--allow", "server:80/tcp", "box")
	check("a container's name", "box", "server", true)
	set("--deny", "bad.example", "box")
	check("a denied name", "box", "bad.example", false)
	check("its address", "box", subnet+".9", true)
	set("--default", "deny", "--deny", "bad.example", "box")
	if rows := strings.Fields(c.ok(t, "network", "policy", "rules", "--format", "{{.Action}}/{{.Target}}/{{.Packets}}", "box")); len(rows) != 2 ||
		!strings.HasPrefix(rows[0], "deny/bad.example/") || strings.HasSuffix(rows[0], "/0") || !strings.HasPrefix(rows[1], "deny/default/") {
		t.Errorf("a rule that stayed: %q", rows)
	}
	set("--default", "deny", "box")
	check("nothing", "box", subnet+".9", false)
	for bad, want := range map[string]string{"10.0.0.1/8": "it should be 10.0.0.0/8", "any:80/sctp": "none of tcp, udp, icmp", "a_b c": "is not a name"} {
		if r := c.do(t, nil, "network", "policy", "set", "--default", "deny", "--allow", bad, "box"); r.code != 1 || !strings.Contains(r.stderr, want) {
			t.Errorf("%s: code %d, %s", bad, r.code, r.stderr)
		}
	}

	c.killDaemon(t)
	check("without a daemon", "box", subnet+".9", false)
	c.ok(t, "restart", "-t", "0", "box")
	check("in its next machine", "box", subnet+".9", false)
	c.ok(t, "clone", "--name", "twin", "box")
	check("in its clone", "twin", subnet+".9", false)
	c.ok(t, "network", "policy", "rm", "twin")
	check("without a policy", "twin", subnet+".9", true)
	check("the clone's source", "box", subnet+".9", false)
	if got := c.ok(t, "network", "policy", "ls", "--format", "{{.Name}} {{.Network}} {{.Default}}"); got != "box web deny" {
		t.Errorf("listed: %q", got)
	}

	set("--egress-rate", "20pps", "box")
	c.do(t, nil, "exec", "box", "sh", "-c", "for i in 1 2 3 4; do wget -T1 -qO- http://"+subnet+".9/x; ping -c 30 -i 0.001 -W 1 "+subnet+".9; done >/dev/null")
	if s := c.policyStatus(t, "box"); s.Egress.Dropped["rate"] == 0 {
		t.Errorf("20 packets a second: %+v", s.Egress)
	}
}

// A label is how docker's clients give a policy.
func TestNetworkPolicyLabel(t *testing.T) {
	both(t, func(t *testing.T, c client) {
		box := c.name(t)
		r := c.do(t, nil, "run", "--rm", "--label", `dev.cradle.network.policy={"default":"drop"}`, "busybox", "true")
		if r.code != 125 || !strings.Contains(r.stderr, `default is "drop"`) {
			t.Errorf("a policy that is none: code %d, %s", r.code, r.stderr)
		}
		c.ok(t, "run", "-d", "--name", box, "--label", `dev.cradle.network.policy={"default":"deny"}`, "busybox", "sleep", "1000")
		if r := c.do(t, nil, "exec", box, "sh", "-c", "ping -c 1 -W 1 $(ip route | awk '/default/{print $3}')"); r.code == 0 {
			t.Errorf("it reaches its gateway: %s", r.stdout)
		}
		cradle := client{"cradle", c.house}
		if s := cradle.policyStatus(t, box); s.Egress == nil || s.Egress.Dropped["policy"] == 0 {
			t.Errorf("it is told: %+v", s)
		}
	})
}

// Containers of a network without inter-container communication reach the gateway, not one another.
func TestIsolatedNetwork(t *testing.T) {
	both(t, func(t *testing.T, c client) {
		name := c.name(t)
		net, server, friend := name+"-net", name+"-server", name+"-friend"
		t.Cleanup(func() {
			c.do(t, nil, "rm", "-f", server, friend)
			c.do(t, nil, "network", "rm", net)
		})
		c.ok(t, "network", "create", "-o", "com.docker.network.bridge.enable_icc=false", net)
		c.ok(t, append([]string{"run", "-d", "--name", server, "--network", net, "-p", "127.0.0.1::80"}, serve("served")...)...)
		c.ok(t, "run", "-d", "--name", friend, "--network", net, "busybox", "sleep", "1000")
		if got := fetch(t, c.ok(t, "port", server, "80")); got != "served" {
			t.Fatalf("the published port says %q", got)
		}
		if got := c.get(t, friend, server); got != "" {
			t.Errorf("a neighbour reaches it: %q", got)
		}
		c.ok(t, "exec", friend, "sh", "-c", "ping -c 1 -W 5 $(ip route | awk '/default/{print $3}')")
	})
}

// A service of the host's is closed to containers, and open to the one whose policy says so, at host-gateway.
func TestHostService(t *testing.T) {
	c := inShared(t, "cradle")
	listener, err := net.Listen("tcp4", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "hosted") })}
	go server.Serve(listener)
	t.Cleanup(func() { server.Close() })
	port := listener.Addr().(*net.TCPAddr).Port
	at := fmt.Sprintf("host.docker.internal:%d", port)
	box := c.name(t)
	c.ok(t, "run", "-d", "--name", box, "--add-host", "host.docker.internal:host-gateway", "busybox", "sleep", "1000")
	if got := c.get(t, box, at); got != "" {
		t.Errorf("without a policy: %q", got)
	}
	c.ok(t, "network", "policy", "set", "--allow", fmt.Sprintf("host:%d/tcp", port), box)
	if got := c.fetchFrom(t, box, at); got != "hosted" {
		t.Errorf("with one that opens it: %q", got)
	}
	c.ok(t, "network", "policy", "reset", box)
	if got := c.get(t, box, at); got != "" {
		t.Errorf("without it again: %q", got)
	}
}
