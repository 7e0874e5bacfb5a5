package guest

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/cradlevm/cradle/api"
)

// What an interface has been told of IPv6 it forgets only when it is parked.
func TestSysctlsIn(t *testing.T) {
	network := func(keys ...string) *wantedNetwork {
		w := &wantedNetwork{}
		for i, key := range keys {
			w.Sysctls = append(w.Sysctls, api.Sysctl{Family: "ipv6", Key: key, Value: []string{"0", "1"}[i%2]})
		}
		return w
	}
	for _, test := range []struct {
		now, wanted *wantedNetwork
		in          bool
	}{
		{network(), network("accept_ra"), true},
		{network("accept_ra"), network("disable_ipv6", "accept_ra"), true},
		{network("accept_ra", "disable_ipv6"), network("accept_ra"), false},
	} {
		if in := test.now.sysctlsIn(test.wanted); in != test.in {
			t.Errorf("%v in %v: %v", test.now.Sysctls, test.wanted.Sysctls, in)
		}
	}
}

func TestParseNetwork(t *testing.T) {
	good := api.Interface{
		Slot: 1, Name: "eth0", MAC: "02:42:ac:11:00:02", MTU: 1400,
		Addresses:  []string{"172.17.0.2/16", "fd00::2/64"},
		Routes:     []api.Route{{Destination: "0.0.0.0/0", Gateway: "172.17.0.1"}, {Destination: "10.1.2.3/8", MTU: 1300}, {Destination: "::/0", Gateway: "fe80::1"}},
		Neighbours: []api.Neighbour{{Address: "169.254.1.1", MAC: "02:42:ac:11:00:01"}},
		Sysctls:    []api.Sysctl{{Family: "ipv6", Key: "accept_ra", Value: "0"}},
	}
	wanted, err := parseNetwork([]api.Interface{good, {Slot: 0, Name: "eth1"}})
	if err != nil {
		t.Fatal(err)
	}
	w := wanted[1]
	if w.mac[1] != 0x42 || len(w.addresses) != 2 || len(w.neighbours) != 1 || w.routes[1].mtu != 1300 || w.routes[1].to != netip.MustParsePrefix("10.0.0.0/8") || w.routes[1].gateway.IsValid() {
		t.Errorf("%+v", w)
	}
	if m := wanted[0].mac; string(m) != string(api.SlotMAC(0)) {
		t.Errorf("an interface without an address of its own gets %x", m)
	}
	for name, spoil := range map[string]func(*api.Interface){
		"slot":           func(i *api.Interface) { i.Slot = api.MaxSlots },
		"negative slot":  func(i *api.Interface) { i.Slot = -1 },
		"taken name":     func(i *api.Interface) { i.Name = "eth1" },
		"path as name":   func(i *api.Interface) { i.Name = "../x" },
		"no name":        func(i *api.Interface) { i.Name = "" },
		"long name":      func(i *api.Interface) { i.Name = "eth0123456789abc" },
		"reserved name":  func(i *api.Interface) { i.Name = "all" },
		"multicast":      func(i *api.Interface) { i.MAC = "03:42:ac:11:00:02" },
		"long address":   func(i *api.Interface) { i.MAC = "02:42:ac:11:00:02:00:01" },
		"MTU":            func(i *api.Interface) { i.MTU = 67 },
		"address":        func(i *api.Interface) { i.Addresses = []string{"172.17.0.2"} },
		"route":          func(i *api.Interface) { i.Routes[0].Destination = "default" },
		"mixed families": func(i *api.Interface) { i.Routes[0].Gateway = "fe80::1" },
		"route's MTU":    func(i *api.Interface) { i.Routes[1].MTU = 67 },
		"neighbour":      func(i *api.Interface) { i.Neighbours = []api.Neighbour{{Address: "x", MAC: "02:42:ac:11:00:01"}} },
		"neighbour's": func(i *api.Interface) {
			i.Neighbours = []api.Neighbour{{Address: "10.0.0.1", MAC: "ff:42:ac:11:00:01"}}
		},
		"neighbours":    func(i *api.Interface) { i.Neighbours = make([]api.Neighbour, maxNeighbours+1) },
		"sysctl family": func(i *api.Interface) { i.Sysctls[0].Family = "../kernel" },
		"sysctl key":    func(i *api.Interface) { i.Sysctls[0].Key = "../all/forwarding" },
		"addresses":     func(i *api.Interface) { i.Addresses = make([]string, maxAddresses+1) },
	} {
		bad := good
		bad.Addresses = append([]string(nil), good.Addresses...)
		bad.Routes = append([]api.Route(nil), good.Routes...)
		bad.Sysctls = append([]api.Sysctl(nil), good.Sysctls...)
		spoil(&bad)
		var answered *api.Error
		if _, err := parseNetwork([]api.Interface{{Slot: 0, Name: "eth1"}, bad}); !errors.As(err, &answered) || answered.Code != api.CodeInvalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}
