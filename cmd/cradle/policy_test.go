package main

import (
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cradlevm/cradle/api"
)

// policies is what the fake answers about network policies.
func (f *fakeNode) policies(w http.ResponseWriter, r *http.Request, name string) {
	web := api.ContainerNetworkPolicy{Container: strings.Repeat("42", 32), Name: "web", Networks: []api.NetworkPolicyStatus{{
		Network: "front", Policy: &api.NetworkPolicy{Default: "deny", Rules: []api.PolicyRule{{Allow: "10.0.0.0/8"}}},
		Rules:   []api.RuleTraffic{{PolicyRule: api.PolicyRule{Allow: "10.0.0.0/8"}, Decided: api.Decided{Packets: 3, Bytes: 1500}}},
		Default: &api.Decided{Packets: 7, Bytes: 420},
		Egress:  &api.Traffic{Packets: 3, Bytes: 1500, Dropped: map[string]uint64{"policy": 7, "rate": 1}},
		Ingress: &api.Traffic{Packets: 2, Bytes: 2_000_000, Dropped: map[string]uint64{}},
	}}}
	plain := api.ContainerNetworkPolicy{Container: strings.Repeat("23", 32), Name: "plain", Networks: []api.NetworkPolicyStatus{{Network: "front"}}}
	switch {
	case name == "/gone":
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusNotFound)
		_ = json.NewEncoder(w).Encode(map[string]string{"message": "No such container: gone"})
	case r.Method == http.MethodGet && name == "":
		_ = json.NewEncoder(w).Encode([]api.ContainerNetworkPolicy{plain, web})
	case r.Method == http.MethodGet:
		_ = json.NewEncoder(w).Encode(web)
	default:
		b, _ := io.ReadAll(r.Body)
		f.mu.Lock()
		f.changed = r.Method + " " + name + " " + r.URL.RawQuery + " " + string(b)
		f.mu.Unlock()
		w.WriteHeader(http.StatusNoContent)
	}
}

func TestPolicyCommands(t *testing.T) {
	h := newHouse(t)
	node := &fakeNode{}
	socket := serveFake(t, node)
	file := filepath.Join(h.dir, "policy.yaml")
	yaml := "default: deny\nrules:\n  - allow: '*.example.org:443/tcp'\n  - deny: 10.0.0.0/8\negress: {bytesPerSecond: 1000, burst: 50ms}\n"
	wrong := filepath.Join(h.dir, "wrong.yaml")
	for path, text := range map[string]string{file: yaml, wrong: "defualt: deny\n"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	const asYAML = `{"default":"deny","rules":[{"allow":"*.example.org:443/tcp"},{"deny":"10.0.0.0/8"}],"egress":{"bytesPerSecond":1000,"burst":"50ms"}}`
	for _, c := range []struct {
		args           string
		code           int
		stdout, stderr string // contained
		asked          string // of the daemon
	}{
		{"network policy set --default deny --allow 10.0.0.0/8:443/tcp --deny any --allow example.org web", 0, "", "",
			`PUT /web  {"default":"deny","rules":[{"allow":"10.0.0.0/8:443/tcp"},{"deny":"any"},{"allow":"example.org"}]}`},
		{"network policy set --network front --egress-rate 10mbit,1000pps --ingress-rate 1m web", 0, "", "",
			`PUT /web network=front {"egress":{"bytesPerSecond":1250000,"packetsPerSecond":1000},"ingress":{"bytesPerSecond":1048576}}`},
		{"network policy set --file " + file + " web", 0, "", "", "PUT /web  " + asYAML},
		{"network policy set --file " + wrong + " web", 1, "", "unknown field", ""},
		{"network policy set --file /nowhere web", 1, "", "no such file", ""},
		{"network policy set --file " + file + " --deny any web", 1, "", "not in both", ""},
		{"network policy set web", 1, "", "nothing to set", ""},
		{"network policy set --default deny gone", 1, "", "No such container: gone", ""},
		{"network policy set --egress-rate much web", 125, "", "no bandwidth such as", ""},
		{"network policy set --egress-rate 0pps web", 125, "", "no rate of packets", ""},
		{"network policy rm web other", 0, "web\nother\n", "", "DELETE /other  "},
		{"network policy reset --network front gone web", 1, "web\n", "No such container: gone", "DELETE /web network=front "},
		{"network policy ls", 0, "web       front     deny      1         1.5kB     2MB        8\n", "", ""},
		{"network policy ls -a --format {{.Name}}:{{.Default}}:{{.Rules}}:{{.Sent}}:{{.Dropped}}", 0, "plain:allow:0:-:-\nweb:deny:1:1.5kB:8\n", "", ""},
		{"network policy rules web", 0, "web       front     allow     10.0.0.0/8   3         1.5kB\nweb       front     deny      default      7         420B\n", "", ""},
		{"network policy rules --format json web", 0, `"Packets":"7"`, "", ""},
		{"network policy rules gone", 1, "", "No such container: gone", ""},
		{"network policy inspect web", 0, `"policy": 7`, "", ""},
		{"network policy inspect gone", 1, "[]", "No such container: gone", ""},
		{"network policy", 0, "", "Usage:  cradle network policy COMMAND", ""},
		{"create --egress deny --egress-allow host:5432/tcp --egress-deny any:25 busybox", 0, "", "",
			`"dev.cradle.network.policy":"{\"default\":\"deny\",\"rules\":[{\"allow\":\"host:5432/tcp\"},{\"deny\":\"any:25\"}]}"`},
		{"create --egress-file " + file + " busybox", 0, "", "", `\"*.example.org:443/tcp\"`},
		{"run --egress-file " + wrong + " busybox", 125, "", "unknown field", ""},
	} {
		node.mu.Lock()
		node.changed, node.created = "", ""
		node.mu.Unlock()
		r := h.cradle(t, []string{envHost + "=" + socket}, strings.Fields(c.args)...)
		if r.code != c.code || !strings.Contains(r.stdout, c.stdout) || !strings.Contains(r.stderr, c.stderr) {
			t.Errorf("cradle %s: code %d, want %d\nstdout %q\nstderr %q", c.args, r.code, c.code, r.stdout, r.stderr)
		}
		node.mu.Lock()
		if node.changed != c.asked && (node.created == "" || !strings.Contains(node.created, c.asked)) {
			t.Errorf("cradle %s asks for %q %s, want %q", c.args, node.changed, node.created, c.asked)
		}
		node.mu.Unlock()
	}
}
