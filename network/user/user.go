// Package user is a network without privileges: what a bridge, a TAP device and the kernel's filters are for root, this
// package is for an ordinary user, inside of the daemon.
//
// A Network is one subnet. Its guests are attached by streams of Ethernet frames (vm.Streamer). The package is their
// switch, their gateway and their resolver; what leaves the subnet goes through a TCP/IP stack of the process's own
// (gVisor's) and out of ordinary sockets:
//
//	guest ── frames ── port: is it who it says? ──┬── another port of the network
//	                                              └── stack ── reach: may it go there? ── socket
//
// A guest is held to the MAC and the address that its port was given: anything else is dropped, and counted. It reaches
// no loopback or link-local address, and the host's own services only through a port that allows it. TCP, UDP and, to
// the gateway only, ICMP echo are carried; IPv4 only. Connections end with the process; guests stay.
package user

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/channel"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
)

// MaxMTU of a network, bytes: what a guest's interface takes, whatever it was told.
const MaxMTU = 1500

// nicID is the stack's one interface; queueLength bounds what waits for a guest, or leaves the stack, in packets.
const (
	nicID       = 1
	queueLength = 512
	minBuffer   = 4 << 10   // of a TCP connection, each way, bytes
	maxBuffer   = 128 << 10 // the same
)

// Options of New.
type Options struct {
	Subnet  netip.Prefix // IPv4
	Gateway netip.Addr   // in Subnet; the resolver answers there as well
	// Internal networks have no way out.
	Internal bool
	// Isolate keeps the guests of the network from one another.
	Isolate bool
	// MTU is at most MaxMTU; 0: MaxMTU.
	MTU int
	// Resolve answers a DNS query of the guest at this address, message for message, or with nil; it bounds how many it
	// works at. Without it there is no resolver.
	Resolve func(ctx context.Context, from netip.Addr, query []byte, tcp bool) []byte
	// Published tells whether an address of the host's, for "tcp" or "udp", leads to a guest: all may go there. Nil: none does.
	Published func(protocol string, at netip.AddrPort) bool
	// Flows has a place for each connection of the guests of all networks that share it; nil: only each guest's own are bounded.
	Flows chan struct{}
	Log   *slog.Logger
}

// Network is one subnet with its guests. All methods may be called from any goroutine.
type Network struct {
	o    Options
	mac  net.HardwareAddr // the gateway's
	link *channel.Endpoint
	st   *stack.Stack

	ctx  context.Context
	stop context.CancelFunc
	work sync.WaitGroup

	mu    sync.Mutex
	ports map[netip.Addr]*Port
}

// New makes a network without guests.
func New(o Options) (*Network, error) {
	switch {
	case !o.Subnet.IsValid() || !o.Subnet.Addr().Is4() || o.Subnet != o.Subnet.Masked() || o.Subnet.Bits() > 30:
		return nil, fmt.Errorf("make user-mode network: %s is no IPv4 subnet of /30 or larger", o.Subnet)
	case o.MTU < 0 || o.MTU > MaxMTU:
		return nil, fmt.Errorf("make user-mode network: the MTU %d is not up to %d", o.MTU, MaxMTU)
	case !o.Subnet.Contains(o.Gateway):
		return nil, fmt.Errorf("make user-mode network: the gateway %s is not in %s", o.Gateway, o.Subnet)
	}
	if o.MTU == 0 {
		o.MTU = MaxMTU
	}
	n := &Network{
		o: o, mac: macOf(o.Gateway), link: channel.New(queueLength, uint32(o.MTU), ""), ports: map[netip.Addr]*Port{},
		st: stack.New(stack.Options{
			NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol},
			TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4},
		}),
	}
	n.ctx, n.stop = context.WithCancel(context.Background())
	if err := n.configure(); err != nil {
		n.st.Destroy()
		return nil, fmt.Errorf("make user-mode network: %w", err)
	}
	n.work.Go(n.leave)
	return n, nil
}

// configure makes the stack the gateway, and one who takes packets for all others.
func (n *Network) configure() error {
	address := tcpip.ProtocolAddress{
		Protocol: ipv4.ProtocolNumber,
		AddressWithPrefix: tcpip.AddressWithPrefix{
			Address: tcpip.AddrFrom4(n.o.Gateway.As4()), PrefixLen: n.o.Subnet.Bits(),
		},
	}
	for _, do := range []func() tcpip.Error{
		func() tcpip.Error { return n.st.CreateNIC(nicID, n.link) },
		func() tcpip.Error { return n.st.AddProtocolAddress(nicID, address, stack.AddressProperties{}) },
		func() tcpip.Error { return n.st.SetPromiscuousMode(nicID, true) },
		func() tcpip.Error { return n.st.SetSpoofing(nicID, true) },
		func() tcpip.Error { return n.configureTCP() },
	} {
		if err := do(); err != nil {
			return errors.New(err.String())
		}
	}
	n.st.SetRouteTable([]tcpip.Route{{Destination: header.IPv4EmptySubnet, NIC: nicID}})
	n.st.SetTransportProtocolHandler(tcp.ProtocolNumber, tcp.NewForwarder(n.st, 0, maxPending, n.outTCP).HandlePacket)
	n.st.SetTransportProtocolHandler(udp.ProtocolNumber, udp.NewForwarder(n.st, n.outUDP).HandlePacket)
	return nil
}

// configureTCP bounds what a connection can take of the process's memory. Guests are near: a small window fills their link.
func (n *Network) configureTCP() tcpip.Error {
	sack := tcpip.TCPSACKEnabled(true)
	receive := tcpip.TCPReceiveBufferSizeRangeOption{Min: minBuffer, Default: maxBuffer, Max: maxBuffer}
	send := tcpip.TCPSendBufferSizeRangeOption{Min: minBuffer, Default: maxBuffer, Max: maxBuffer}
	for _, option := range []tcpip.SettableTransportProtocolOption{&sack, &receive, &send} {
		if err := n.st.SetTransportProtocolOption(tcp.ProtocolNumber, option); err != nil {
			return err
		}
	}
	return nil
}

// Close ends all connections and detaches all guests.
func (n *Network) Close() {
	n.stop()
	n.mu.Lock()
	var all []*Port
	for _, p := range n.ports {
		all = append(all, p)
	}
	n.mu.Unlock()
	for _, p := range all {
		p.Close()
	}
	n.st.Close()
	n.link.Close()
	n.work.Wait()
	n.st.Wait()
}

// port finds the guest that has an address; nil when none does.
func (n *Network) port(a netip.Addr) *Port {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.ports[a]
}

// leave carries what the stack sends to the guests.
func (n *Network) leave() {
	for {
		packet := n.link.ReadContext(n.ctx)
		if packet == nil {
			return
		}
		view := packet.ToView()
		packet.DecRef()
		if b := view.AsSlice(); len(b) >= header.IPv4MinimumSize {
			if p := n.port(addrOf(header.IPv4(b).DestinationAddress())); p != nil {
				p.deliver(n.mac, b)
			}
		}
		view.Release()
	}
}

// macOf is a hardware address for an IPv4 address, locally administered, the same at every start.
func macOf(a netip.Addr) net.HardwareAddr {
	sum := sha256.Sum256(a.AsSlice())
	return append(net.HardwareAddr{0x02, 'c'}, sum[:4]...)
}

func addrOf(a tcpip.Address) netip.Addr {
	if a.Len() != 4 {
		return netip.Addr{}
	}
	return netip.AddrFrom4(a.As4())
}
