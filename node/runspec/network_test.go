package runspec

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
)

func TestNetworks(t *testing.T) {
	fixed := &network.EndpointSettings{IPAMConfig: &network.EndpointIPAMConfig{IPv4Address: netip.MustParseAddr("10.0.0.5")}}
	for _, test := range []struct {
		mode string
		nc   map[string]*network.EndpointSettings
		want string // names, or a part of the error
	}{
		{"", nil, "[default]"},
		{"default", nil, "[default]"},
		{"none", nil, "[]"},
		{"none", map[string]*network.EndpointSettings{"none": {}}, "[]"},
		{"none", map[string]*network.EndpointSettings{"web": {}}, "conflicting options"},
		{"container:x", nil, "[]"},
		{"container:x", map[string]*network.EndpointSettings{"container:x": {}}, "[]"},
		{"container:x", map[string]*network.EndpointSettings{"container:x": fixed}, "user specified IP address is supported on user defined networks only"},
		{"container:x", map[string]*network.EndpointSettings{"container:x": {MacAddress: network.HardwareAddr{2, 2, 3, 4, 5, 6}}}, "conflicting options: mac-address"},
		{"web", map[string]*network.EndpointSettings{"web": fixed}, "[web 10.0.0.5]"},
		{"web", map[string]*network.EndpointSettings{"default": fixed}, "[web 10.0.0.5]"},
		{"web", map[string]*network.EndpointSettings{"b": nil, "a": {}}, "[web a b]"},
		{"web", map[string]*network.EndpointSettings{"a": {Links: []string{"x"}}}, "[web a]"},
		{"web", map[string]*network.EndpointSettings{"a": {Links: []string{"x:y:z"}}}, "bad format for links"},
		{"web", map[string]*network.EndpointSettings{"a": {Links: []string{"x:a b"}}}, "bad format for links"},
		{"web", map[string]*network.EndpointSettings{"a": {Aliases: []string{"a\nb"}}}, "invalid network alias"},
		{"web", map[string]*network.EndpointSettings{"a": {MacAddress: network.HardwareAddr{1, 2, 3, 4, 5, 6}}}, "invalid MAC address"},
		{"web", map[string]*network.EndpointSettings{"a": {IPAMConfig: &network.EndpointIPAMConfig{IPv4Address: netip.MustParseAddr("::1")}}}, "invalid IPv4"},
		{"web", map[string]*network.EndpointSettings{"a": {IPAMConfig: &network.EndpointIPAMConfig{IPv6Address: netip.MustParseAddr("::ffff:1.2.3.4")}}}, "invalid IPv6"},
	} {
		list, err := Networks(&container.HostConfig{NetworkMode: container.NetworkMode(test.mode)}, &network.NetworkingConfig{EndpointsConfig: test.nc})
		var names []string
		for _, n := range list {
			names = append(names, n.Name)
			if n.Settings.IPAMConfig != nil {
				names = append(names, n.Settings.IPAMConfig.IPv4Address.String())
			}
		}
		got := fmt.Sprint(names)
		if err != nil {
			got = err.Error()
		}
		if !strings.Contains(got, test.want) {
			t.Errorf("%s %v: %s, want %s", test.mode, test.nc, got, test.want)
		}
	}
}

func TestPublications(t *testing.T) {
	port := network.MustParsePort
	hc := &container.HostConfig{PublishAllPorts: true, PortBindings: network.PortMap{
		port("80/tcp"): {{HostIP: netip.MustParseAddr("127.0.0.1"), HostPort: "8080"}, {HostPort: "9000-9010"}},
		port("53/udp"): nil,
	}}
	list, err := Publications(&container.Config{ExposedPorts: network.PortSet{port("80/tcp"): {}, port("443/tcp"): {}}}, hc)
	if err != nil {
		t.Fatal(err)
	}
	const want = "[{53/udp invalid IP 0 0} {80/tcp 127.0.0.1 8080 8080} {80/tcp invalid IP 9000 9010} {443/tcp invalid IP 0 0}]"
	if got := fmt.Sprint(list); got != want {
		t.Errorf("%s, want %s", got, want)
	}
	for _, bad := range []string{"x", "-1", "70000", "80-", "90-80", "0-5", "1-2-3"} {
		hc.PortBindings = network.PortMap{port("80/tcp"): {{HostPort: bad}}}
		if _, err := Publications(&container.Config{}, hc); !cerrdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", bad, err)
		}
	}
	hc.PortBindings = network.PortMap{port("80/sctp"): nil}
	if _, err := Publications(&container.Config{}, hc); !cerrdefs.IsNotImplemented(err) {
		t.Errorf("sctp: %v", err)
	}
}

// Links of a network are names; those of the host configuration are the default network's, which has no names.
func TestLinkNames(t *testing.T) {
	got, err := LinkNames(&network.EndpointSettings{Links: []string{"web", "/db_1:db", "cache:/web/kv"}})
	if err != nil || fmt.Sprint(got) != "map[db:db_1 kv:cache web:web]" {
		t.Errorf("%v, %v", got, err)
	}
	for mode, refused := range map[container.NetworkMode]bool{"": true, "bridge": true, "front": false} {
		err := refuse(adaptHost(&container.HostConfig{NetworkMode: mode, Links: []string{"a:b"}}))
		if (err != nil) != refused {
			t.Errorf("mode %q: %v", mode, err)
		}
	}
}
