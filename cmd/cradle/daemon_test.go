package main

import (
	"io"
	"testing"
)

func TestNetworksSetting(t *testing.T) {
	for _, test := range []struct {
		flag, variable    string
		networks, streams bool
	}{
		{"", "", true, false}, {"auto", "none", true, false}, {"user", "", true, true}, {"", "user", true, true}, {"none", "user", false, false},
	} {
		getenv := func(name string) string {
			return map[string]string{envNetworks: test.variable, "HOME": t.TempDir()}[name]
		}
		c, err := daemonFlags{networks: test.flag, logLevel: "error", logFormat: "text"}.config(getenv, 0, io.Discard)
		if err != nil || c.Networks != test.networks || c.Streams != test.streams {
			t.Errorf("%q, %q: %v %v, %v", test.flag, test.variable, c.Networks, c.Streams, err)
		}
	}
	if _, err := (daemonFlags{networks: "bridges", logLevel: "error", logFormat: "text"}).config(func(string) string { return "" }, 0, io.Discard); err == nil {
		t.Error("a kind of networks that there is not is taken")
	}
}
