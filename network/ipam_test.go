package network

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }
func addr(s string) netip.Addr     { return netip.MustParseAddr(s) }

// TestLeases: lowest first, never the network, the gateway, auxiliary addresses or the broadcast address, none twice, all of them.
func TestLeases(t *testing.T) {
	s := &Subnet{Prefix: prefix("10.0.0.0/29"), Gateway: addr("10.0.0.1"), Aux: map[string]netip.Addr{"x": addr("10.0.0.3")}}
	l := newLeases(s)
	var got []string
	for {
		a, ok := l.take()
		if !ok {
			break
		}
		got = append(got, a.String())
	}
	if s := strings.Join(got, " "); s != "10.0.0.2 10.0.0.4 10.0.0.5 10.0.0.6" {
		t.Errorf("%s", s)
	}
	l.release(addr("10.0.0.5"))
	l.release(addr("10.0.0.2"))
	if !l.claim(addr("10.0.0.2")) || l.claim(addr("10.0.0.2")) {
		t.Error("claim")
	}
	if a, ok := l.take(); !ok || a != addr("10.0.0.5") {
		t.Errorf("%s, %v", a, ok)
	}
	if _, ok := l.take(); ok {
		t.Error("one too many")
	}
	r := newLeases(&Subnet{Prefix: prefix("10.0.0.0/16"), Gateway: addr("10.0.0.1"), Range: prefix("10.0.255.254/31")})
	if a, ok := r.take(); !ok || a != addr("10.0.255.254") {
		t.Errorf("%s, %v", a, ok)
	}
	if a, ok := r.take(); ok {
		t.Errorf("the broadcast address is given: %s", a)
	}
	six := newLeases(&Subnet{Prefix: prefix("fd00::/64"), Gateway: addr("fd00::1")})
	if a, ok := six.take(); !ok || a != addr("fd00::2") {
		t.Errorf("%s, %v", a, ok)
	}
}

func TestCut(t *testing.T) {
	var taken []netip.Prefix
	for i := range 31 {
		p, ok := cut(DefaultPools(), true, taken)
		if !ok {
			t.Fatalf("exhausted after %d", i)
		}
		if overlaps(p, taken) {
			t.Fatalf("%s overlaps", p)
		}
		taken = append(taken, p)
	}
	if taken[0] != prefix("172.17.0.0/16") || taken[15] != prefix("192.168.0.0/20") || taken[30] != prefix("192.168.240.0/20") {
		t.Errorf("%v", taken)
	}
	if p, ok := cut(DefaultPools(), true, taken); ok {
		t.Errorf("one too many: %s", p)
	}
	if p, ok := cut(DefaultPools(), true, []netip.Prefix{prefix("172.16.0.0/12"), prefix("192.168.3.0/24")}); !ok || p != prefix("192.168.16.0/20") {
		t.Errorf("%s, %v", p, ok)
	}
	if p, ok := cut([]Pool{localPool(1 << 63)}, false, nil); !ok || p != prefix("fd80::/64") {
		t.Errorf("%s, %v", p, ok)
	}
}

func TestSpecs(t *testing.T) {
	sub := func(s Subnet) []Subnet { return []Subnet{s} }
	for want, s := range map[string]Spec{
		"invalid network name":                      {Name: "-"},
		"not permitted on predefined":               {Name: "bridge"},
		"could not find plugin overlay":             {Name: "a", Driver: "overlay"},
		"it should be 10.0.0.0/24":                  {Name: "a", Subnets: sub(Subnet{Prefix: prefix("10.0.0.1/24")})},
		"no matching subnet for gateway 10.0.1.1":   {Name: "a", Subnets: sub(Subnet{Prefix: prefix("10.0.0.0/24"), Gateway: addr("10.0.1.1")})},
		"no matching subnet for gateway 10.0.0.255": {Name: "a", Subnets: sub(Subnet{Prefix: prefix("10.0.0.0/24"), Gateway: addr("10.0.0.255")})},
		"no matching subnet for range":              {Name: "a", Subnets: sub(Subnet{Prefix: prefix("10.0.0.0/24"), Range: prefix("10.0.0.0/16")})},
		"no matching subnet for aux-address":        {Name: "a", Subnets: sub(Subnet{Prefix: prefix("10.0.0.0/24"), Aux: map[string]netip.Addr{"x": addr("10.1.0.0")}})},
		"no room":                                   {Name: "a", Subnets: sub(Subnet{Prefix: prefix("10.0.0.0/31")})},
		"it is not for networks":                    {Name: "a", Subnets: sub(Subnet{Prefix: prefix("224.0.0.0/24")})},
		"needs IPv6":                                {Name: "a", Subnets: sub(Subnet{Prefix: prefix("fd00::/64")})},
		"multiple subnets":                          {Name: "a", Subnets: []Subnet{{Prefix: prefix("10.0.0.0/24")}, {Prefix: prefix("10.0.1.0/24")}}},
		"must be given with":                        {Name: "a", Subnets: sub(Subnet{Gateway: addr("10.0.0.1")})},
		"invalid MTU":                               {Name: "a", Options: map[string]string{OptionMTU: "67"}},
		"invalid bridge name":                       {Name: "a", Options: map[string]string{OptionBridge: "../../etc"}},
		"neither true nor false":                    {Name: "a", Options: map[string]string{OptionIsolate: "maybe"}},
		"option x is not supported":                 {Name: "a", Options: map[string]string{"x": "y"}},
	} {
		if err := s.check(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
	if err := (Spec{Name: "a", IPv6: true, Subnets: []Subnet{{Prefix: prefix("10.0.0.0/24"), Gateway: addr("10.0.0.254"), Range: prefix("10.0.0.128/25")},
		{Prefix: prefix("fd00::/64")}}}).check(); err != nil {
		t.Error(err)
	}
}

func TestStore(t *testing.T) {
	s, err := openStore(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if f, err := s.networks(); err != nil || len(f.Networks) != 0 {
		t.Errorf("%+v, %v", f, err)
	}
	if err := s.putNetworks(networksFile{Networks: []Network{{ID: "1", Subnets: []Subnet{{Prefix: prefix("10.0.0.0/8"), Chosen: true}}}}}); err != nil {
		t.Fatal(err)
	}
	if f, err := s.networks(); err != nil || len(f.Networks) != 1 || f.Networks[0].Subnets[0].Prefix != prefix("10.0.0.0/8") || !f.Networks[0].Subnets[0].Chosen {
		t.Errorf("%+v, %v", f, err)
	}
	e := Endpoint{ID: "e", IPv4: prefix("10.0.0.2/8"), Policy: Policy{Deny: true, Names: []NameRule{{Name: "a.b"}}}}
	if err := s.putEndpoint(e); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"short.json": `{"version":1,"endp`, "empty.json": "", "x.json": `{"version":1,"endpoint":{"id":"y"}}`, "e.json.new": "{"} {
		if err := os.WriteFile(filepath.Join(s.dir, "endpoints", name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	all, err := s.endpoints()
	if err != nil || len(all) != 1 || all[0].IPv4 != e.IPv4 || !all[0].Policy.Deny || all[0].IPv6.IsValid() {
		t.Errorf("%+v, %v", all, err)
	}
	if left, _ := os.ReadDir(filepath.Join(s.dir, "endpoints")); len(left) != 1 {
		t.Errorf("%v", left)
	}
	for range 2 {
		if err := s.removeEndpoint("e"); err != nil {
			t.Error(err)
		}
	}
	if err := os.WriteFile(filepath.Join(s.dir, "networks.json"), []byte(`{"version":2}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.networks(); err == nil {
		t.Error("a later version is read")
	}
}

func TestNamePolicy(t *testing.T) {
	p := Policy{Deny: true, Names: []NameRule{{Name: "Example.org"}, {Name: "*.example.org", Protocol: "tcp", Low: 443, High: 443}, {Name: "*.b.example.org"}}}
	if err := p.Check(); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]int{"example.org": 1, "a.example.org": 1, "a.b.example.org": 2, "badexample.org": 0, "org": 0, "example.org.evil": 0} {
		if got := len(p.namesOf(name)); got != want {
			t.Errorf("%s: %d rules", name, got)
		}
	}
	for want, bad := range map[string]Policy{
		"is not a name":     {Names: []NameRule{{Name: "a b"}}},
		"more than 4 rules": {Names: []NameRule{{Name: "a"}, {Name: "a", Low: 1, High: 1}, {Name: "a", Low: 2, High: 2}, {Name: "a", Low: 3, High: 3}, {Name: "a", Low: 4, High: 4}}},
		"is not a prefix":   {Rules: []Rule{{Prefix: prefix("10.0.0.1/8")}}},
		"none of tcp":       {Rules: []Rule{{Prefix: prefix("10.0.0.0/8"), Protocol: "sctp"}}},
		"ports 0 to 5":      {Rules: []Rule{{Prefix: prefix("10.0.0.0/8"), Protocol: "icmp", High: 5}}},
		"rate is out of":    {Egress: Rate{Burst: -1}},
	} {
		if err := bad.Check(); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
}
