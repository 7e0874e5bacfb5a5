package vm

import (
	"errors"
	"net/netip"
	"testing"
)

func TestNICs(t *testing.T) {
	user := func(subnet, gateway, dns string) NIC {
		return NIC{User: &User{Subnet: netip.MustParsePrefix(subnet), Gateway: netip.MustParseAddr(gateway), DNS: netip.MustParseAddr(dns)}}
	}
	fine := user("10.0.2.0/24", "10.0.2.2", "10.0.2.3")
	for name, tc := range map[string]struct {
		nics []NIC
		ok   bool
	}{
		"none":               {nil, true},
		"all kinds":          {[]NIC{{}, {TAP: "cr-0.1@x"}, {TAP: "fifteen_letters", NetNS: "/proc/self/ns/net"}, fine}, true},
		"one name, two nets": {[]NIC{{TAP: "tap0"}, {TAP: "tap0", NetNS: "/run/netns/x"}}, true},
		"small network":      {[]NIC{user("10.0.2.8/29", "10.0.2.9", "10.0.2.14")}, true},
		"too many":           {make([]NIC, MaxNICs+1), false},
		"one TAP twice":      {[]NIC{{TAP: "tap0"}, {TAP: "tap0"}}, false},
		"long name":          {[]NIC{{TAP: "sixteen__letters"}}, false},
		"name with a slash":  {[]NIC{{TAP: "a/b"}}, false},
		"name with %":        {[]NIC{{TAP: "tap%d"}}, false},
		"name of a parent":   {[]NIC{{TAP: ".."}}, false},
		"TAP and user":       {[]NIC{{TAP: "tap0", User: fine.User}}, false},
		"namespace alone":    {[]NIC{{NetNS: "/proc/self/ns/net"}}, false},
		"relative namespace": {[]NIC{{TAP: "tap0", NetNS: "net"}}, false},
		"empty user":         {[]NIC{{User: &User{}}}, false},
		"IPv6":               {[]NIC{user("fd00::/64", "fd00::1", "fd00::2")}, false},
		"not masked":         {[]NIC{user("10.0.2.1/24", "10.0.2.2", "10.0.2.3")}, false},
		"tiny network":       {[]NIC{user("10.0.2.0/30", "10.0.2.1", "10.0.2.2")}, false},
		"foreign gateway":    {[]NIC{user("10.0.2.0/24", "10.0.3.2", "10.0.2.3")}, false},
		"network as gateway": {[]NIC{user("10.0.2.0/24", "10.0.2.0", "10.0.2.3")}, false},
		"broadcast as DNS":   {[]NIC{user("10.0.2.0/24", "10.0.2.2", "10.0.2.255")}, false},
		"same address":       {[]NIC{user("10.0.2.0/24", "10.0.2.2", "10.0.2.2")}, false},
	} {
		if err := checkNICs(tc.nics); (err == nil) != tc.ok || err != nil && !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestForward(t *testing.T) {
	host, guest := netip.MustParseAddrPort("0.0.0.0:80"), netip.MustParseAddrPort("10.0.2.15:8080")
	six, none := netip.MustParseAddrPort("[::1]:80"), netip.MustParseAddrPort("10.0.2.15:0")
	for _, f := range []Forward{{"tcp", host, guest}, {"udp", host, guest}} {
		if err := f.Check(); err != nil {
			t.Errorf("%v: %v", f, err)
		}
	}
	for _, f := range []Forward{
		{}, {"sctp", host, guest}, {"tcp", six, guest}, {"tcp", host, six}, {"tcp", none, guest}, {"tcp", host, none},
		{"tcp", host, netip.MustParseAddrPort("0.0.0.0:80")},
	} {
		if err := f.Check(); !errors.Is(err, ErrInvalid) {
			t.Errorf("%v: %v, want ErrInvalid", f, err)
		}
	}
}
