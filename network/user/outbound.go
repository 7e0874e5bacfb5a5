package user

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// Bounds of what a guest may have open.
const (
	maxConns    = 1024             // connections and UDP flows of one guest together
	maxPending  = 1 << 16          // connections of all guests that are being made; each guest's are among its maxConns
	dialLimit   = 30 * time.Second // for the host to connect
	udpIdle     = 60 * time.Second // a flow in which nothing happens ends
	dnsIdle     = 10 * time.Second
	dnsFlow     = 2 * time.Second // the same for queries of one source port; each has a place
	maxQuery    = 4096            // longer ones are cut off, and so refused
	maxDatagram = 64 << 10
	dnsPort     = 53
)

// acquire takes a place for a connection of the guest's; false when it has too many.
func (p *Port) acquire() bool {
	select {
	case p.flows <- struct{}{}:
	default:
		return false
	}
	if p.n.o.Flows == nil {
		return true
	}
	select {
	case p.n.o.Flows <- struct{}{}:
		return true
	default:
		<-p.flows
		return false
	}
}

func (p *Port) release() {
	<-p.flows
	if p.n.o.Flows != nil {
		<-p.n.o.Flows
	}
}

// whose tells which guest opens a flow, and where to.
func (n *Network) whose(id stack.TransportEndpointID) (p *Port, to netip.AddrPort) {
	return n.port(addrOf(id.RemoteAddress)), netip.AddrPortFrom(addrOf(id.LocalAddress), id.LocalPort)
}

// outTCP answers a guest's connection. It has a goroutine of its own.
func (n *Network) outTCP(r *tcp.ForwarderRequest) {
	p, to := n.whose(r.ID())
	if p == nil || !p.acquire() {
		r.Complete(true)
		return
	}
	defer p.release()
	if to == netip.AddrPortFrom(n.o.Gateway, dnsPort) && n.o.Resolve != nil {
		if conn := accept(r); conn != nil {
			p.serveDNS(conn)
		}
		return
	}
	o, done := p.begin("tcp", to) // before it is asked about, so that no change of the policy is missed
	defer done()
	target, ok := p.reach("tcp", to)
	if !ok {
		r.Complete(true)
		return
	}
	ctx, cancel := context.WithTimeout(o.ctx, dialLimit)
	out, err := new(net.Dialer).DialContext(ctx, "tcp4", target.String())
	cancel()
	if err != nil {
		r.Complete(true)
		return
	}
	if in := accept(r); in != nil {
		relay(o.ctx, in, out.(*net.TCPConn))
	} else {
		out.Close()
	}
}

// accept completes the guest's handshake; nil when the guest has given up.
func accept(r *tcp.ForwarderRequest) *gonet.TCPConn {
	var q waiter.Queue
	ep, err := r.CreateEndpoint(&q)
	if err != nil {
		r.Complete(true)
		return nil
	}
	r.Complete(false)
	return gonet.NewTCPConn(&q, ep)
}

// halfCloser is a connection whose directions end one by one.
type halfCloser interface {
	net.Conn
	CloseWrite() error
}

// relay carries bytes both ways until both directions have ended, one is broken, or ctx ends.
func relay(ctx context.Context, a, b halfCloser) {
	stop := context.AfterFunc(ctx, func() {
		a.Close()
		b.Close()
	})
	defer stop()
	done := make(chan struct{})
	carry := func(to, from halfCloser) {
		if _, err := io.Copy(to, from); err != nil {
			a.Close()
			b.Close()
			return
		}
		to.CloseWrite()
	}
	go func() {
		defer close(done)
		carry(a, b)
	}()
	carry(b, a)
	<-done
	a.Close()
	b.Close()
}

// outUDP answers the first datagram of a guest's flow. It is called by the port's reader and must not wait.
func (n *Network) outUDP(r *udp.ForwarderRequest) bool {
	p, to := n.whose(r.ID())
	if p == nil || !p.acquire() {
		return true
	}
	dns := to == netip.AddrPortFrom(n.o.Gateway, dnsPort) && n.o.Resolve != nil
	o, done := p.begin("udp", to)
	over := func() {
		done()
		p.release()
	}
	var out *net.UDPConn
	if !dns {
		target, ok := p.reach("udp", to)
		if !ok {
			over()
			return false // the stack answers that nobody is there
		}
		var err error
		if out, err = net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(target)); err != nil {
			over()
			return false
		}
	}
	var q waiter.Queue
	ep, err := r.CreateEndpoint(&q)
	if err != nil {
		over()
		if out != nil {
			out.Close()
		}
		return true
	}
	in := gonet.NewUDPConn(&q, ep)
	n.work.Go(func() {
		defer over()
		if dns {
			p.serveDNSFlow(in)
			return
		}
		relayUDP(o.ctx, in, out)
	})
	return true
}

// relayUDP carries datagrams both ways until nothing has come for udpIdle.
func relayUDP(ctx context.Context, a, b net.Conn) {
	over := func() {
		a.Close()
		b.Close()
	}
	stop := context.AfterFunc(ctx, over)
	defer stop()
	alive := func() {
		end := time.Now().Add(udpIdle)
		a.SetReadDeadline(end)
		b.SetReadDeadline(end)
	}
	alive()
	done := make(chan struct{})
	carry := func(to, from net.Conn) {
		defer over()
		buf := make([]byte, maxDatagram)
		for {
			k, err := from.Read(buf)
			if err != nil {
				return
			}
			if _, err := to.Write(buf[:k]); err != nil {
				return
			}
			alive()
		}
	}
	go func() {
		defer close(done)
		carry(a, b)
	}()
	carry(b, a)
	<-done
}

// serveDNS answers queries over a connection: each message comes after its length (RFC 1035, 4.2.2).
func (p *Port) serveDNS(conn net.Conn) {
	defer conn.Close()
	stop := context.AfterFunc(p.ctx, func() { conn.Close() })
	defer stop()
	for {
		conn.SetDeadline(time.Now().Add(dnsIdle))
		var length [2]byte
		if _, err := io.ReadFull(conn, length[:]); err != nil {
			return
		}
		query := make([]byte, binary.BigEndian.Uint16(length[:]))
		if _, err := io.ReadFull(conn, query); err != nil {
			return
		}
		answer := p.n.o.Resolve(p.ctx, p.guest.Addr, query, true)
		if answer == nil || len(answer) > 1<<16-1 {
			return
		}
		conn.SetDeadline(time.Now().Add(dnsIdle))
		if _, err := conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(answer))), answer...)); err != nil {
			return
		}
	}
}

// serveDNSFlow answers the queries of one source port, each as soon as it can be: C libraries ask for both families at once.
func (p *Port) serveDNSFlow(conn net.Conn) {
	defer conn.Close()
	stop := context.AfterFunc(p.ctx, func() { conn.Close() })
	defer stop()
	var asked sync.WaitGroup
	defer asked.Wait()
	buf := make([]byte, maxQuery+1)
	for {
		conn.SetReadDeadline(time.Now().Add(dnsFlow))
		k, err := conn.Read(buf)
		if err != nil {
			return
		}
		query := bytes.Clone(buf[:k])
		asked.Go(func() {
			if answer := p.n.o.Resolve(p.ctx, p.guest.Addr, query, false); answer != nil {
				conn.Write(answer) // the guest asks again
			}
		})
	}
}

// Dial opens a connection from the gateway to a port of a guest's; network is "tcp" or "udp". ctx bounds the opening.
func (n *Network) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	to, err := netip.ParseAddrPort(address)
	if err != nil || !n.o.Subnet.Contains(to.Addr()) {
		return nil, fmt.Errorf("dial guest %s: it is not on %s", address, n.o.Subnet)
	}
	gateway, guest := full(netip.AddrPortFrom(n.o.Gateway, 0)), full(to)
	switch {
	case n.port(to.Addr()) == nil:
		return nil, fmt.Errorf("dial guest %s: it is not there", address)
	case network == "udp":
		return gonet.DialUDP(n.st, &gateway, &guest, ipv4.ProtocolNumber)
	}
	return gonet.DialTCPWithBind(ctx, n.st, gateway, guest, ipv4.ProtocolNumber)
}

// full is an address as the stack has them.
func full(a netip.AddrPort) tcpip.FullAddress {
	return tcpip.FullAddress{NIC: nicID, Addr: tcpip.AddrFrom4(a.Addr().As4()), Port: a.Port()}
}
