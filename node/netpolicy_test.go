package node

import (
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/cradlevm/cradle/api"
	"github.com/cradlevm/cradle/network"
)

// What users write becomes what the networks have.
func TestCompilePolicy(t *testing.T) {
	prefix := netip.MustParsePrefix
	for text, want := range map[string]network.Policy{
		`{}`:                 {},
		`{"default":"deny"}`: {Deny: true},
		`{"rules":[{"deny":"10.0.0.0/8"},{"deny":"any:25,100-200/tcp"}]}`: {Rules: []network.Rule{
			{Prefix: prefix("10.0.0.0/8")},
			{Prefix: prefix("0.0.0.0/0"), Protocol: "tcp", Low: 25, High: 25}, {Prefix: prefix("::/0"), Protocol: "tcp", Low: 25, High: 25},
			{Prefix: prefix("0.0.0.0/0"), Protocol: "tcp", Low: 100, High: 200}, {Prefix: prefix("::/0"), Protocol: "tcp", Low: 100, High: 200},
		}},
		`{"rules":[{"allow":"host:5432/tcp"}]}`: {Rules: []network.Rule{{Allow: true, Host: true, Protocol: "tcp", Low: 5432, High: 5432}}},
		`{"default":"deny","rules":[{"allow":"192.0.2.1"},{"allow":"2001:db8::/32"},{"allow":"[2001:db8::1]:53/udp"},{"allow":"2001:db8::2/icmp"}]}`: {
			Deny: true, Rules: []network.Rule{
				{Allow: true, Prefix: prefix("192.0.2.1/32")}, {Allow: true, Prefix: prefix("2001:db8::/32")},
				{Allow: true, Prefix: prefix("2001:db8::1/128"), Protocol: "udp", Low: 53, High: 53},
				{Allow: true, Prefix: prefix("2001:db8::2/128"), Protocol: "icmp"},
			}},
		`{"default":"deny","rules":[{"allow":"*.Example.org:443/tcp"},{"allow":"example.org"}]}`: {Deny: true, Names: []network.NameRule{
			{Name: "*.Example.org", Protocol: "tcp", Low: 443, High: 443}, {Name: "example.org"}}},
		`{"default":"allow","rules":[{"allow":"a.bad.example"},{"deny":"bad.example"}]}`: {Names: []network.NameRule{
			{Name: "a.bad.example"}, {Deny: true, Name: "bad.example"}}},
		`{"egress":{"bytesPerSecond":1000,"packetsPerSecond":10,"burst":"50ms"},"ingress":{"bytesPerSecond":5}}`: {
			Egress: network.Rate{BytesPerSecond: 1000, PacketsPerSecond: 10, Burst: 50 * time.Millisecond}, Ingress: network.Rate{BytesPerSecond: 5}},
	} {
		p, err := parsePolicy(text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		if got, err := compilePolicy(p); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %v\n got %+v\nwant %+v", text, err, got, want)
		}
	}
}

// A rule as users write it has decided about what those that it comes to have.
func TestRuleTraffic(t *testing.T) {
	rules := []api.PolicyRule{{Allow: "any:25,100-200/tcp"}, {Deny: "a.example"}, {Allow: "any:25/tcp"}}
	counts := network.RuleCounts{Rules: map[network.Rule]network.RuleCount{}, Names: map[network.NameRule]network.RuleCount{{Deny: true, Name: "a.example"}: {Packets: 9}}}
	p, err := compilePolicy(&api.NetworkPolicy{Default: "deny", Rules: rules})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range p.Rules {
		counts.Rules[r] = network.RuleCount{Packets: 1, Bytes: 60}
	}
	want := []api.RuleTraffic{{PolicyRule: rules[0], Decided: api.Decided{Packets: 4, Bytes: 240}}, {PolicyRule: rules[1], Decided: api.Decided{Packets: 9}},
		{PolicyRule: rules[2]}}
	if got := ruleTraffic(rules, counts); !reflect.DeepEqual(got, want) {
		t.Errorf("%+v", got)
	}
}

// What cannot be is refused in words that say what is wrong.
func TestRefusedPolicies(t *testing.T) {
	deny := func(rule string) string { return `{"default":"deny","rules":[` + rule + `]}` }
	for text, want := range map[string]string{
		``:                   "EOF",
		`{} {}`:              "behind its end",
		`{"defualt":"deny"}`: "unknown field",
		`{"default":"drop"}`: `can be "allow" or "deny"`,
		`{"rules":[{}]}`:     `rule 1 must have either "allow" or "deny"`,
		`{"rules":[{"allow":"any","deny":"any"}]}`:                                    "either",
		`{"rules":[{"allow":"10.0.0.0/8"}]}`:                                          "must say by its default",
		`{"default":"allow","rules":[{"allow":"a.example"}]}`:                         "does nothing while the default",
		deny(`{"deny":"evil.example:443"}`):                                           "for all protocols and ports, or not at all",
		deny(`{"allow":"10.0.0.1/8"}`):                                                "it should be 10.0.0.0/8",
		deny(`{"allow":"10.0.0.300"}`):                                                "not an IPv4 address",
		deny(`{"allow":"2001:db8::1:x"}`):                                             "stands in brackets",
		deny(`{"allow":"[2001:db8::1"}`):                                              "brackets",
		deny(`{"allow":"fe80::1%eth0"}`):                                              "zone",
		deny(`{"allow":"::ffff:10.0.0.1"}`):                                           "not a prefix",
		deny(`{"allow":"any:0/tcp"}`):                                                 "neither a port nor",
		deny(`{"allow":"any:9-8/tcp"}`):                                               "neither a port nor",
		deny(`{"allow":"any:65536"}`):                                                 "neither a port nor",
		deny(`{"allow":"any:80/sctp"}`):                                               "none of tcp, udp, icmp",
		deny(`{"allow":"any:80/icmp"}`):                                               "no ports",
		deny(`{"allow":"a b.example"}`):                                               "is not a name",
		deny(`{"allow":"` + strings.Repeat("a", 600) + `"}`):                          "bytes",
		deny(strings.Repeat(`{"deny":"10.0.0.0/8"},`, 256) + `{"deny":"10.0.0.0/8"}`): "257 rules",
		deny(`{"allow":"any:1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17/tcp"}`):         "more than 16 rules speak of",
		deny(`{"allow":"host:1-1000/tcp"}`):                                           "ports of the host",
		`{"egress":{"burst":"soon"}}`:                                                 "a burst is a time",
		`{"egress":{"burst":"2m"}}`:                                                   "out of bounds",
		`{"egress":{"bytesPerSecond":-1}}`:                                            "cannot unmarshal",
		strings.Repeat(" ", 1<<17):                                                    "bytes, and may have",
	} {
		if _, err := parsePolicy(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.80s: %v, want %q", text, err, want)
		}
	}
}

// A policy from another host opens nothing of this one's, and is checked as any.
func TestPortablePolicy(t *testing.T) {
	p := &api.NetworkPolicy{Default: "deny", Rules: []api.PolicyRule{{Allow: "host:22/tcp"}, {Deny: "host:53"}, {Allow: "[host]"}, {Allow: "any:80"}}}
	out, err := portablePolicy(p)
	if err != nil || out.Default != "deny" || !reflect.DeepEqual(out.Rules, []api.PolicyRule{{Deny: "host:53"}, {Allow: "any:80"}}) {
		t.Errorf("%+v, %v", out, err)
	}
	if len(p.Rules) != 4 {
		t.Error("the other one was changed")
	}
	if _, err := portableLinks([]link{{Name: "a", Policy: &api.NetworkPolicy{Default: "perhaps"}}}); err == nil {
		t.Error("a policy that is none was taken")
	}
	links, err := portableLinks([]link{{Name: "a", Policy: p}})
	if err != nil || len(links) != 1 || links[0].Policy == nil || len(links[0].Policy.Rules) != 2 {
		t.Errorf("%+v, %v", links, err)
	}
	if none, err := portablePolicy(nil); none != nil || err != nil {
		t.Errorf("%v, %v", none, err)
	}
}

// A policy of all networks takes the place of those of single ones, which stand before it otherwise.
func TestWhosePolicy(t *testing.T) {
	n := &Node{}
	one, two := &api.NetworkPolicy{Default: "deny"}, &api.NetworkPolicy{Default: "allow"}
	first := record{Name: "/box", Links: []link{{Name: "a"}, {Name: "b"}}}
	step := func(rec record, network string, p *api.NetworkPolicy, a, b *api.NetworkPolicy) record {
		t.Helper()
		rec, err := n.withPolicy(rec, network, p)
		if err != nil || rec.policyOf(rec.Links[0]) != a || rec.policyOf(rec.Links[1]) != b {
			t.Errorf("%v: %+v", err, rec)
		}
		return rec
	}
	rec := step(first, "", one, one, one)
	rec = step(rec, "b", two, one, two)
	if later := rec.policyOf(link{Name: "c"}); later != one {
		t.Errorf("a network that it comes to later has %v", later)
	}
	if clone := ownLinks(rec.Links); clone[1].Policy != two {
		t.Errorf("a clone has %+v", clone)
	}
	step(rec, "b", nil, one, one)
	step(rec, "", two, two, two)
	step(rec, "", nil, nil, nil)
	if first.Links[0].Policy != nil || first.Policy != nil {
		t.Error("the record itself was changed")
	}
	if _, err := n.withPolicy(first, "c", one); err == nil {
		t.Error("a policy for a network that it is not on")
	}
}
