package node

import (
	"testing"

	"github.com/cradlevm/cradle/api"
	"github.com/cradlevm/cradle/dockerapi"
)

func TestNoneMatches(t *testing.T) {
	n := &Node{}
	for _, test := range []struct {
		key, value string
		found      int
	}{
		{"name", "no", 1}, {"name", "x", 0}, {"id", "140bed", 1}, {"id", "0", 0}, {"driver", "null", 1}, {"driver", "bridge", 0},
		{"scope", "local", 1}, {"type", "builtin", 1}, {"type", "custom", 0}, {"label", "a", 0}, {"dangling", "true", 0},
	} {
		found, err := n.NetworkList(t.Context(), dockerapi.Filters{test.key: {test.value: true}})
		if err != nil || len(found) != test.found {
			t.Errorf("%s=%s: %d networks, %v", test.key, test.value, len(found), err)
		}
	}
	if found, err := n.NetworkInspect(t.Context(), "140bed"); err != nil || found.Name != "none" {
		t.Errorf("by prefix: %q, %v", found.Name, err)
	}
}

func TestNetworkStats(t *testing.T) {
	s := api.StatsResult{NetRxBytes: 5, NetTxBytes: 7}
	if got := networkStats(record{}, s); got != nil {
		t.Errorf("without a network: %v", got)
	}
	if got := networkStats(record{Links: []link{{Name: "web"}}}, s)["eth0"]; got.RxBytes != 5 || got.TxBytes != 7 {
		t.Errorf("%+v", got)
	}
}
