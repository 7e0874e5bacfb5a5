package vmtest

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/cradlevm/cradle/api"
	"github.com/cradlevm/cradle/api/wire"
	"github.com/cradlevm/cradle/vm"
	"github.com/cradlevm/cradle/vm/vmtest/guestapi"
)

// The user-mode network of the tests.
var (
	userNetwork = vm.User{Subnet: netip.MustParsePrefix("10.87.0.0/24"), Gateway: netip.MustParseAddr("10.87.0.1"), DNS: netip.MustParseAddr("10.87.0.2")}
	userGuest   = netip.MustParsePrefix("10.87.0.9/24")
)

// testNetwork boots a VM with interfaces of all kinds that this process may use.
func (s *suite) testNetwork(t *testing.T) {
	c := s.config(t)
	user := userNetwork
	c.NICs = []vm.NIC{{}, {User: &user}}
	var peer *tap
	if os.Geteuid() == 0 {
		peer = newTAP(t)
		c.NICs = append(c.NICs, peer.nic)
	}
	m := s.start(t, c)
	client := m.session()
	checkNICs(t, client, c)
	testNowhere(t, client, 0)
	t.Run("User", func(t *testing.T) { testUser(t, m, client, 1) })
	t.Run("TAP", func(t *testing.T) { testTAP(t, client, peer, 2) })
}

// checkNICs checks that the guest has the interfaces that c says, and no others.
func checkNICs(t *testing.T, client *wire.Client, c vm.Config) {
	t.Helper()
	var found []guestapi.NIC
	call(t, client, guestapi.MethodNICs, nil, &found)
	var macs, want []string
	for _, n := range found {
		macs = append(macs, n.MAC)
	}
	for i := range c.NICs {
		want = append(want, api.SlotMAC(i).String())
	}
	slices.Sort(macs)
	if !slices.Equal(macs, want) {
		t.Errorf("the guest has interfaces %v, want %v", macs, want)
	}
}

// testNowhere sends through an interface that is connected to nothing: more than any queue holds, and none of it stays.
func testNowhere(t *testing.T, client *wire.Client, slot int) {
	mac := api.SlotMAC(slot)
	call(t, client, guestapi.MethodSendFrame, guestapi.Frame{MAC: mac.String(), Data: frame(mac, "to nobody"), Again: 2000}, nil)
}

// frame is a broadcast of the type that the guest receives.
func frame(from net.HardwareAddr, text string) []byte {
	b := append(bytes.Repeat([]byte{0xff}, 6), from...)
	b = binary.BigEndian.AppendUint16(b, guestapi.FrameType)
	return append(b, text...)
}

// testTAP exchanges frames with the guest.
func testTAP(t *testing.T, client *wire.Client, peer *tap, slot int) {
	if peer == nil {
		t.Skip("only root makes TAP devices")
	}
	mac := api.SlotMAC(slot)
	for _, text := range []string{"short", string(contents("a full frame", 1500))} {
		call(t, client, guestapi.MethodSendFrame, guestapi.Frame{MAC: mac.String(), Data: frame(mac, text)}, nil)
		if got := peer.receive(t); !bytes.Equal(got, frame(mac, text)) {
			t.Errorf("a frame of %d bytes came out as %d: %.40q", len(frame(mac, text)), len(got), got)
		}
		// Nobody tells when the guest listens: it is sent to until it has heard. What is left of an earlier round comes first.
		want := frame(net.HardwareAddr{2, 0, 0, 0, 0, 1}, text)
		stop := peer.keepSending(t, want)
		var got guestapi.Frame
		for began := time.Now(); !bytes.HasPrefix(got.Data, want); {
			call(t, client, guestapi.MethodReceiveFrame, guestapi.Frame{MAC: mac.String()}, &got)
			if time.Since(began) > limit {
				t.Errorf("the guest has received %d bytes, want %d: %.40q", len(got.Data), len(want), got.Data)
				break
			}
		}
		stop()
	}
}

// testUser connects guest and host both ways.
func testUser(t *testing.T, m *machine, client *wire.Client, slot int) {
	f, ok := m.VM.(vm.Forwarder)
	if !ok {
		t.Skip("the driver has no Forwarder")
	}
	mac := api.SlotMAC(slot).String()
	call(t, client, guestapi.MethodAddress, guestapi.Address{MAC: mac, Prefix: userGuest}, nil)

	// From the guest: the gateway is the host's loopback.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			io.WriteString(conn, "told by the host")
			conn.Close()
		}
	}()
	taken := l.Addr().(*net.TCPAddr).AddrPort()
	var told guestapi.Print
	gateway := netip.AddrPortFrom(userNetwork.Gateway, taken.Port()).String()
	call(t, client, guestapi.MethodFetch, guestapi.Print{Text: gateway}, &told)
	if told.Text != "told by the host" {
		t.Errorf("the guest was told %q", told.Text)
	}

	// To the guest.
	call(t, client, guestapi.MethodServe, guestapi.Print{Text: ":8080"}, nil)
	guest := netip.AddrPortFrom(userGuest.Addr(), 8080)
	if err := f.Forward(within(t), slot, vm.Forward{Protocol: "tcp", Host: taken, Guest: guest}); err == nil {
		t.Error("a port that is taken has been forwarded")
	} else if !errors.Is(err, os.ErrExist) && !bytes.Contains([]byte(err.Error()), []byte("in use")) {
		t.Errorf("a port that is taken: %v, which does not say so", err)
	}
	forward := vm.Forward{Protocol: "tcp", Host: freePort(t), Guest: guest}
	if err := f.Forward(within(t), slot, forward); err != nil {
		t.Fatal(err)
	}
	if got := fetch(t, forward.Host); got != guestapi.Served {
		t.Errorf("through the forwarded port: %q", got)
	}
	if err := f.Unforward(within(t), slot, forward); err != nil {
		t.Error(err)
	}
	if err := f.Unforward(within(t), slot, forward); !errors.Is(err, vm.ErrNotFound) {
		t.Errorf("ending a forward again: %v, want ErrNotFound", err)
	}
	if conn, err := net.Dial("tcp", forward.Host.String()); err == nil {
		conn.Close()
		t.Error("the port is still open")
	}
	udp := vm.Forward{Protocol: "udp", Host: forward.Host, Guest: guest}
	if err := errors.Join(f.Forward(within(t), slot, udp), f.Unforward(within(t), slot, udp)); err != nil {
		t.Error(err)
	}
	for name, bad := range map[string]vm.Forward{
		"other protocol": {Protocol: "tcp net1", Host: forward.Host, Guest: guest},
		"foreign guest":  {Protocol: "tcp", Host: forward.Host, Guest: netip.MustParseAddrPort("10.88.0.9:80")},
	} {
		if err := f.Forward(within(t), slot, bad); !errors.Is(err, vm.ErrInvalid) {
			t.Errorf("%s: %v, want ErrInvalid", name, err)
		}
	}
	for _, other := range []int{-1, 0, vm.MaxNICs} {
		if err := f.Forward(within(t), other, forward); !errors.Is(err, vm.ErrInvalid) {
			t.Errorf("forward to interface %d: %v, want ErrInvalid", other, err)
		}
	}
}

// freePort is an address of the host's that nobody listens at.
func freePort(t *testing.T) netip.AddrPort {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).AddrPort()
}

// fetch reads what is told at an address.
func fetch(t *testing.T, from netip.AddrPort) string {
	t.Helper()
	var d net.Dialer
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	conn, err := d.DialContext(ctx, "tcp", from.String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(limit))
	b, err := io.ReadAll(conn)
	if err != nil {
		t.Error(err)
	}
	return string(b)
}

// testRestoredNetwork restores a VM that was saved with its interfaces connected to nothing, and uses them.
func (s *suite) testRestoredNetwork(t *testing.T, tm template) {
	c := s.restored(t, tm)
	user := userNetwork
	c.NICs[1] = vm.NIC{User: &user}
	var peer *tap
	if os.Geteuid() == 0 {
		peer = newTAP(t)
		c.NICs[0] = peer.nic
	}
	v, err := tm.saved.Restore(within(t), c)
	if err != nil {
		t.Fatal(err)
	}
	m := watched(t, v, c)
	client := m.session()
	checkNICs(t, client, c)
	t.Run("User", func(t *testing.T) { testUser(t, m, client, 1) })
	t.Run("TAP", func(t *testing.T) { testTAP(t, client, peer, 0) })
}
