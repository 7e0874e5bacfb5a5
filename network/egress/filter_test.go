package egress

import (
	"net/netip"
	"testing"
	"time"
)

// FuzzFilter: whatever a guest and its neighbours send, nothing passes a policy that denies all but what the guest was spoken to from.
func FuzzFilter(f *testing.F) {
	f.Add([]byte{}, []byte{0x45})
	f.Add([]byte{0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 3, 10, 0, 0, 2, 0, 7, 0, 8, 0, 8, 0, 0},
		[]byte{0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 2, 10, 0, 0, 3, 0, 8, 0, 7, 0, 8, 0, 0})
	f.Add([]byte{0x45, 0, 0, 28, 0, 0, 0, 0, 64, 1, 0, 0, 10, 0, 0, 3, 10, 0, 0, 2, 8, 0, 0, 0, 0, 0, 0, 0},
		[]byte{0x4f, 0, 0, 28, 0, 0, 0x20, 0, 64, 6, 0, 0, 10, 0, 0, 2, 10, 0, 0, 3, 0, 8, 0, 7, 0, 8, 0, 0})
	f.Fuzz(func(t *testing.T, received, sent []byte) {
		filter := NewFilter(netip.MustParseAddr("10.0.0.1"))
		filter.Set(Policy{Deny: true, Counted: []uint64{DefaultDeny}})
		filter.Receive(received)
		if filter.Send(sent, len(sent)) != Pass {
			return
		}
		to := netip.AddrFrom4([4]byte(sent[16:20]))
		resolver := to == netip.MustParseAddr("10.0.0.1") && (sent[9] == tcp || sent[9] == udp)
		if !resolver && (len(received) < 20 || to != netip.AddrFrom4([4]byte(received[12:16])) || sent[9] != received[9]) {
			t.Errorf("%x passes after %x", sent, received)
		}
	})
}

// TestBounds: neither neighbours nor names make a filter remember without end, and what names have opened closes by itself.
func TestBounds(t *testing.T) {
	f := NewFilter(netip.MustParseAddr("10.0.0.1"))
	now := time.Now()
	f.now = func() time.Time { return now }
	f.Set(Policy{Deny: true})
	packet := []byte{0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 3, 10, 0, 0, 2, 0, 7, 0, 8, 0, 8, 0, 0}
	for i := range 2 * maxFlows {
		packet[20], packet[21] = byte(i>>8), byte(i)
		f.Receive(packet)
	}
	if len(f.flows) != maxFlows {
		t.Errorf("%d conversations", len(f.flows))
	}
	a := netip.MustParseAddr("192.0.2.1")
	for range MaxOpened {
		if err := f.Open(a, time.Minute, []Rule{{Allow: true}}); err != nil {
			t.Fatal(err)
		}
		a = a.Next()
	}
	if f.Open(a, time.Minute, nil) == nil || f.Open(a, time.Minute, make([]Rule, MaxOpenRules+1)) == nil {
		t.Error("more is open than may be")
	}
	if !f.Allows(udp, netip.MustParseAddrPort("192.0.2.1:1")) {
		t.Error("an open address is closed")
	}
	now = now.Add(time.Hour)
	if f.Allows(udp, netip.MustParseAddrPort("192.0.2.1:1")) {
		t.Error("an address is open for ever")
	}
	if err := f.Open(a, time.Minute, nil); err != nil {
		t.Error(err)
	}
}

// TestCountersStay: a rule that stays goes on counting when others come and go.
func TestCountersStay(t *testing.T) {
	f := NewFilter(netip.MustParseAddr("10.0.0.1"))
	packet := []byte{0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 2, 10, 0, 0, 3, 0, 7, 0, 8, 0, 8, 0, 0}
	stays := Rule{Allow: true, Prefix: netip.MustParsePrefix("10.0.0.3/32"), ID: 77}
	f.Set(Policy{Rules: []Rule{stays}})
	f.Send(packet, 42)
	f.Set(Policy{Deny: true, Counted: []uint64{DefaultDeny}, Rules: []Rule{{Prefix: netip.MustParsePrefix("10.0.0.3/32"), Protocol: tcp, ID: 78}, stays}})
	f.Send(packet, 42)
	if c := f.Counts(); c[77] != (Count{2, 84}) || len(c) != 3 {
		t.Errorf("%+v", c)
	}
	f.Set(Policy{})
	f.Set(Policy{Rules: []Rule{stays}})
	if c := f.Counts(); c[77] != (Count{}) {
		t.Errorf("a rule that was away: %+v", c)
	}
}
