package vm

import (
	"errors"
	"testing"
)

func TestNICs(t *testing.T) {
	for name, tc := range map[string]struct {
		nics []NIC
		ok   bool
	}{
		"none":               {nil, true},
		"all kinds":          {[]NIC{{}, {TAP: "cr-0.1@x"}, {TAP: "fifteen_letters", NetNS: "/proc/self/ns/net"}, {Stream: true}}, true},
		"one name, two nets": {[]NIC{{TAP: "tap0"}, {TAP: "tap0", NetNS: "/run/netns/x"}}, true},
		"too many":           {make([]NIC, MaxNICs+1), false},
		"one TAP twice":      {[]NIC{{TAP: "tap0"}, {TAP: "tap0"}}, false},
		"long name":          {[]NIC{{TAP: "sixteen__letters"}}, false},
		"name with a slash":  {[]NIC{{TAP: "a/b"}}, false},
		"name with %":        {[]NIC{{TAP: "tap%d"}}, false},
		"name of a parent":   {[]NIC{{TAP: ".."}}, false},
		"TAP and stream":     {[]NIC{{TAP: "tap0", Stream: true}}, false},
		"namespace alone":    {[]NIC{{NetNS: "/proc/self/ns/net"}}, false},
		"relative namespace": {[]NIC{{TAP: "tap0", NetNS: "net"}}, false},
	} {
		if err := checkNICs(tc.nics); (err == nil) != tc.ok || err != nil && !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
