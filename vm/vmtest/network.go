package vmtest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/cradlevm/cradle/api"
	"github.com/cradlevm/cradle/api/wire"
	"github.com/cradlevm/cradle/vm"
	"github.com/cradlevm/cradle/vm/vmtest/guestapi"
)

// peer is the other end of an interface.
type peer interface {
	// receive waits for a frame of the guest's of the type that the guest program uses.
	receive(t *testing.T) []byte
	send(frame []byte) error
}

// testNetwork boots a VM with interfaces of all kinds that this process may use.
func (s *suite) testNetwork(t *testing.T) {
	c := s.config(t)
	c.NICs = []vm.NIC{{}, {Stream: true}}
	var device *tap
	if os.Geteuid() == 0 {
		device = newTAP(t)
		c.NICs = append(c.NICs, device.nic)
	}
	m := s.start(t, c)
	client := m.session()
	checkNICs(t, client, c)
	testNowhere(t, client, 0)
	t.Run("Stream", func(t *testing.T) { testStream(t, m, client, 1) })
	t.Run("TAP", func(t *testing.T) { testTAP(t, client, device, 2) })
	t.Run("Cut", func(t *testing.T) { testCut(t, m, client, device, 2) })
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

func testTAP(t *testing.T, client *wire.Client, device *tap, slot int) {
	if device == nil {
		t.Skip("only root makes TAP devices")
	}
	testFrames(t, client, device, slot)
}

// testCut parts an interface from its TAP; the VM goes on.
func testCut(t *testing.T, m *machine, client *wire.Client, device *tap, slot int) {
	v, ok := m.VM.(vm.NICCutter)
	if !ok || device == nil {
		t.Skip("the driver has no NICCutter, or only root makes TAP devices")
	}
	for range 2 {
		if err := v.CutNIC(within(t), slot); err != nil {
			t.Fatal(err)
		}
	}
	testNowhere(t, client, slot)
	for _, other := range []int{-1, 0, vm.MaxNICs} {
		if err := v.CutNIC(within(t), other); !errors.Is(err, vm.ErrInvalid) {
			t.Errorf("cut interface %d: %v, want ErrInvalid", other, err)
		}
	}
}

// testStream exchanges frames over a stream, and again over another one.
func testStream(t *testing.T, m *machine, client *wire.Client, slot int) {
	v, ok := m.VM.(vm.Streamer)
	if !ok {
		t.Skip("the driver has no Streamer")
	}
	testNowhere(t, client, slot)
	for range 2 {
		conn, err := v.DialNIC(within(t), slot)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close() // it is still there when the next one is dialled
		testFrames(t, client, newStream(conn), slot)
	}
	for _, other := range []int{-1, vm.MaxNICs} {
		if _, err := v.DialNIC(within(t), other); !errors.Is(err, vm.ErrInvalid) {
			t.Errorf("dial interface %d: %v, want ErrInvalid", other, err)
		}
	}
}

// testFrames exchanges frames with the guest.
func testFrames(t *testing.T, client *wire.Client, p peer, slot int) {
	mac := api.SlotMAC(slot)
	for _, text := range []string{"short", string(contents("a full frame", 1500))} {
		call(t, client, guestapi.MethodSendFrame, guestapi.Frame{MAC: mac.String(), Data: frame(mac, text)}, nil)
		if got := p.receive(t); !bytes.Equal(got, frame(mac, text)) {
			t.Errorf("a frame of %d bytes came out as %d: %.40q", len(frame(mac, text)), len(got), got)
		}
		// Nobody tells when the guest listens: it is sent to until it has heard. What is left of an earlier round comes first.
		want := frame(net.HardwareAddr{2, 0, 0, 0, 0, 1}, text)
		stop := keepSending(t, p, want)
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

// keepSending sends a frame to the guest again and again, until it is told to stop.
func keepSending(t *testing.T, p peer, b []byte) (stop func()) {
	over := make(chan struct{})
	var sender sync.WaitGroup
	sender.Go(func() {
		for {
			if err := p.send(b); err != nil {
				t.Errorf("send to the guest: %v", err)
				return
			}
			select {
			case <-over:
				return
			case <-time.After(20 * time.Millisecond):
			}
		}
	})
	return func() {
		close(over)
		sender.Wait()
	}
}

// testRestoredNetwork restores a VM that was saved with its interfaces connected to nothing, and uses them.
func (s *suite) testRestoredNetwork(t *testing.T, tm template) {
	c := s.restored(t, tm)
	c.NICs[1] = vm.NIC{Stream: true}
	var device *tap
	if os.Geteuid() == 0 {
		device = newTAP(t)
		c.NICs[0] = device.nic
	}
	v, err := tm.saved.Restore(within(t), c)
	if err != nil {
		t.Fatal(err)
	}
	m := watched(t, v, c)
	client := m.session()
	checkNICs(t, client, c)
	t.Run("Stream", func(t *testing.T) { testStream(t, m, client, 1) })
	t.Run("TAP", func(t *testing.T) { testTAP(t, client, device, 0) })
}
