package network

import (
	"net/netip"
	"os/exec"
	"testing"

	"github.com/google/nftables"

	"github.com/cradlevm/cradle/network/nettest"
)

func TestMain(m *testing.M) { nettest.Main(m) }

// TestFirewallTable: the kernel takes the table whole, it is found intact, and any change to it is seen.
func TestFirewallTable(t *testing.T) {
	nettest.NeedRoot(t)
	f := &firewall{"cradle-test"}
	h := hostState{
		networks: []Network{
			{Bridge: "cradle0", Subnets: []Subnet{{Prefix: netip.MustParsePrefix("10.1.0.0/24"), Gateway: netip.MustParseAddr("10.1.0.1")},
				{Prefix: netip.MustParsePrefix("fd00:1::/64"), Gateway: netip.MustParseAddr("fd00:1::1")}}},
			{Bridge: "cradle1", Internal: true, Subnets: []Subnet{{Prefix: netip.MustParsePrefix("10.1.1.0/24"), Gateway: netip.MustParseAddr("10.1.1.1")}}},
		},
		ports: []portElement{
			{6, netip.MustParseAddrPort("0.0.0.0:8080"), netip.MustParseAddrPort("10.1.0.2:80")},
			{17, netip.MustParseAddrPort("192.0.2.1:53"), netip.MustParseAddrPort("10.1.0.2:53")},
			{6, netip.MustParseAddrPort("[::]:8080"), netip.MustParseAddrPort("[fd00:1::2]:80")},
			{6, netip.MustParseAddrPort("[2001:db8::1]:81"), netip.MustParseAddrPort("[fd00:1::2]:80")},
		},
	}
	for _, guest := range []string{"10.1.0.2", "fd00:1::2"} {
		h.hosts = append(h.hosts, hostElement{netip.MustParseAddr(guest), 6, 5432}, hostElement{netip.MustParseAddr(guest), 17, 0})
	}
	if f.intact(h) {
		t.Error("intact before it is made")
	}
	for range 2 {
		if err := f.replace(h); err != nil {
			t.Fatal(err)
		}
		if !f.intact(h) {
			out, _ := exec.Command("nft", "list", "ruleset").CombinedOutput()
			t.Fatalf("not intact after it was made\n%s", out)
		}
	}
	if err := f.removePorts(h.ports[:1]); err != nil {
		t.Fatal(err)
	}
	if f.intact(h) {
		t.Error("intact without a port")
	}
	if err := f.addPorts(h.ports[:1]); err != nil {
		t.Fatal(err)
	}
	if !f.intact(h) {
		t.Error("not intact with the port again")
	}
	if err := f.removeHosts(h.hosts[1:2]); err != nil {
		t.Fatal(err)
	}
	if f.intact(h) {
		t.Error("intact without a port of the host's")
	}
	if err := f.addHosts(h.hosts[1:2]); err != nil {
		t.Fatal(err)
	}
	c, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	c.FlushChain(&nftables.Chain{Table: f.tableOf(), Name: "host"})
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
	if f.intact(h) {
		t.Error("intact with an empty chain")
	}
	if err := f.remove(); err != nil {
		t.Fatal(err)
	}
	if there, err := f.exists(); err != nil || there {
		t.Errorf("there after removal: %v, %v", there, err)
	}
}
