package node

import (
	"net/netip"
	"testing"

	"github.com/cradlevm/cradle/api"
	"github.com/cradlevm/cradle/dockerapi"
	"github.com/cradlevm/cradle/network"
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
	if got := (&Node{}).networkStats(record{}, s); got != nil {
		t.Errorf("without a network: %v", got)
	}
	if got := (&Node{}).networkStats(record{Links: []link{{Name: "web"}}}, s)["eth0"]; got.RxBytes != 5 || got.TxBytes != 7 {
		t.Errorf("%+v", got)
	}
}

// The default routes lead through the one link that is the way out.
func TestInterfaces(t *testing.T) {
	on := func(gateway string, slot int) link {
		return link{Slot: slot, Endpoint: &network.Endpoint{MAC: "02:00:00:00:00:01", IPv4: netip.MustParsePrefix("192.0.2.2/24"),
			Gateway4: netip.MustParseAddr(gateway)}}
	}
	got := interfaces([]link{on("192.0.2.1", 2), on("198.51.100.1", 0)}, 1)
	if len(got) != 2 || len(got[0].Routes) != 0 || len(got[1].Routes) != 1 || got[1].Routes[0].Gateway != "198.51.100.1" || got[0].Name != "eth2" {
		t.Errorf("%+v", got)
	}
}
