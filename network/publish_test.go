package network

import (
	"context"
	"errors"
	"net/netip"
	"testing"

	"github.com/cradlevm/cradle/network/nettest"
)

// TestPublishMovesPorts: from one endpoint of a container to another one, picked numbers too, and after a restart.
func TestPublishMovesPorts(t *testing.T) {
	h := newHouse(t)
	world := nettest.NewOutside(t)
	ctx := context.Background()
	h.create(Spec{Name: "one"})
	h.create(Spec{Name: "two"})
	h.create(Spec{Name: "within", Internal: true})
	_, first := h.guest(EndpointSpec{Network: "one", Name: "c", Ports: []PortSpec{
		{Protocol: "tcp", Host: 8080, Container: 7}, {Protocol: "udp", Host: 8080, Container: 7}, {Protocol: "tcp", Container: 7}}})
	second, e := h.guest(EndpointSpec{Network: "two", Name: "c"})
	listen(t, second, "second")
	in := h.attach(EndpointSpec{Network: "within", Name: "c"})
	host := netip.AddrPortFrom(nettest.HostAddr(), 8080)
	var specs []PortSpec
	for _, p := range first.Ports {
		specs = append(specs, p.spec())
	}
	if _, err := h.Publish(ctx, e.ID, specs); !errors.Is(err, ErrPortTaken) {
		t.Fatalf("ports that the first endpoint has: %v", err)
	}
	if ports, err := h.Publish(ctx, first.ID, nil); err != nil || len(ports) != 0 {
		t.Fatalf("%v, %v", ports, err)
	}
	closed(t, door{world, host})
	if ports, err := h.Publish(ctx, in.ID, specs); err != nil || len(ports) != 0 {
		t.Errorf("on an internal network: %v, %v", ports, err)
	}
	ports, err := h.Publish(ctx, e.ID, specs)
	if err != nil || len(ports) != len(first.Ports) {
		t.Fatalf("%v, %v, not %v", ports, err, first.Ports)
	}
	for i := range ports {
		if ports[i] != first.Ports[i] {
			t.Errorf("%v is %v now", first.Ports[i], ports[i])
		}
	}
	reaches(t, world, host, "second")
	if r := h.reopen(e.Sandbox); len(r.Made)+len(r.Lost) > 0 {
		t.Errorf("%+v", r)
	}
	reaches(t, world, host, "second")
	// What cannot be had changes nothing.
	if _, err := h.Publish(ctx, e.ID, []PortSpec{{Protocol: "tcp", Host: 8081, Container: 7}, {Protocol: "x", Container: 7}}); !errors.Is(err, ErrInvalid) {
		t.Errorf("%v", err)
	}
	reaches(t, world, host, "second")
	closed(t, door{world, netip.AddrPortFrom(nettest.HostAddr(), 8081)})
	if _, err := h.Publish(ctx, "nobody", nil); !errors.Is(err, ErrNotFound) {
		t.Errorf("%v", err)
	}
}
