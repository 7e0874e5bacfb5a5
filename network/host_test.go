package network

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"
)

// TestHostServices: a guest reaches what its policy opens of the host, at the gateway; another guest does not, nor does anybody when
// the policy is another one, whatever has begun.
func TestHostServices(t *testing.T) {
	h := newHouse(t)
	n := h.create(Spec{Name: "n", IPv6: true})
	h.create(Spec{Name: "other"})
	listen(t, here{}, "host")
	one := Policy{Rules: []Rule{{Allow: true, Host: true, Protocol: "tcp", Low: 7, High: 7}}}
	a, ea := h.guest(EndpointSpec{Network: "n", Name: "a", Policy: one})
	b, _ := h.guest(EndpointSpec{Network: "n", Name: "b"})
	far, _ := h.guest(EndpointSpec{Network: "other", Name: "far"})
	gates := []netip.AddrPort{port7(n.Subnets[0].Gateway), port7(n.Subnets[1].Gateway)}
	set := func(p Policy) {
		t.Helper()
		if err := h.SetPolicy(context.Background(), ea.ID, p); err != nil {
			t.Fatal(err)
		}
		if !h.firewall.intact(h.hostState()) {
			t.Error("the firewall is not what the policy makes of it")
		}
	}
	open := func(when string, network string, want bool) {
		t.Helper()
		try := once
		if want {
			try = ask
		}
		var tries sync.WaitGroup
		for _, gate := range gates {
			tries.Go(func() {
				if got := try(a, network, gate) != ""; got != want {
					t.Errorf("%s: %s to %s: %v", when, network, gate, got)
				}
			})
		}
		tries.Wait()
	}
	open("one port", "tcp", true)
	open("one port", "udp", false)
	closed(t, door{b, gates[0]}, door{b, gates[1]}, door{far, gates[0]}, door{far, gates[1]})
	var begun net.Conn
	a.Do(func() (err error) {
		begun, err = net.DialTimeout("tcp", gates[0].String(), 5*time.Second)
		return err
	})
	defer begun.Close()
	line := len("host sees \n") + len(ea.IPv4.Addr().String())
	begun.SetDeadline(time.Now().Add(10 * time.Second))
	begun.Write([]byte("x"))
	if _, err := io.ReadFull(begun, make([]byte, line+1)); err != nil {
		t.Fatal(err)
	}
	set(Policy{})
	open("no policy", "tcp", false)
	begun.SetDeadline(time.Now().Add(wait))
	begun.Write([]byte("x"))
	if n, err := begun.Read(make([]byte, 1)); err == nil {
		t.Errorf("what had begun goes on: %d bytes", n)
	}
	set(Policy{Deny: true, Rules: []Rule{{Allow: true, Host: true, Protocol: "udp"}}})
	open("all over UDP", "udp", true)
	open("all over UDP", "tcp", false)
	set(Policy{Rules: []Rule{{Host: true, Protocol: "tcp", Low: 1, High: 10}, {Allow: true, Host: true}}})
	open("denied first", "tcp", false)
	open("denied first", "udp", true)
	set(Policy{Deny: true, Rules: []Rule{{Allow: true, Prefix: prefix("0.0.0.0/0")}, {Allow: true, Prefix: prefix("::/0")}}})
	open("any address", "tcp", false)
	set(one)
	h.reopen(ea.Sandbox)
	open("after a restart", "tcp", true)
	if err := h.Detach(context.Background(), ea.ID); err != nil {
		t.Fatal(err)
	}
	if len(h.hostState().hosts) > 0 || !h.firewall.intact(h.hostState()) {
		t.Error("something is left when the guest has gone")
	}
	wide := Policy{Rules: []Rule{{Allow: true, Host: true, Low: 1000, High: 2000}}}
	if err := wide.Check(); !errors.Is(err, ErrInvalid) {
		t.Errorf("1,001 ports: %v", err)
	}
}
