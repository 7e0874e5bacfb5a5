package user

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
)

// acceptPause is between attempts to accept when one has failed.
const acceptPause = 10 * time.Millisecond

// connectLimit bounds how long a guest may take to accept a connection to a published port.
const connectLimit = 30 * time.Second

// Publish listens at an address of the host's for a guest's port, until closed. The protocol is "tcp" or "udp"; a host
// port of 0 is one of the kernel's choice, which is returned. Guests see who connects as the gateway. Errors: those of
// listening (syscall.EADDRINUSE, EACCES, …).
func (n *Network) Publish(protocol string, host, guest netip.AddrPort) (at netip.AddrPort, end io.Closer, err error) {
	switch protocol {
	case "tcp":
		l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(host))
		if err != nil {
			return at, nil, err
		}
		n.work.Go(func() { n.serveTCP(l, guest) })
		return l.Addr().(*net.TCPAddr).AddrPort(), l, nil
	case "udp":
		l, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(host))
		if err != nil {
			return at, nil, err
		}
		n.work.Go(func() { n.serveUDP(l, guest) })
		return l.LocalAddr().(*net.UDPAddr).AddrPort(), l, nil
	}
	return at, nil, fmt.Errorf("publish port: protocol %q", protocol)
}

// full is an address as the stack has them.
func full(a netip.AddrPort) tcpip.FullAddress {
	return tcpip.FullAddress{NIC: nicID, Addr: tcpip.AddrFrom4(a.Addr().As4()), Port: a.Port()}
}

// serveTCP carries connections to the guest until the listener closes.
func (n *Network) serveTCP(l *net.TCPListener, guest netip.AddrPort) {
	stop := context.AfterFunc(n.ctx, func() { l.Close() })
	defer stop()
	for {
		out, err := l.AcceptTCP()
		if err != nil {
			if errors.Is(err, net.ErrClosed) || n.ctx.Err() != nil {
				return
			}
			// Out of descriptors, or the client has gone already: others will come.
			select {
			case <-n.ctx.Done():
			case <-time.After(acceptPause):
			}
			continue
		}
		n.work.Go(func() { n.connect(out, guest) })
	}
}

// connect carries one connection to a published port.
func (n *Network) connect(out *net.TCPConn, guest netip.AddrPort) {
	p := n.port(guest.Addr())
	if p == nil || !p.acquire() {
		out.Close()
		return
	}
	defer p.release()
	ctx, cancel := context.WithTimeout(p.ctx, connectLimit)
	in, err := gonet.DialTCPWithBind(ctx, n.st, full(netip.AddrPortFrom(n.o.Gateway, 0)), full(guest), ipv4.ProtocolNumber)
	cancel()
	if err != nil {
		out.SetLinger(0) // the client is told by a reset, as by a port that nobody listens at
		out.Close()
		return
	}
	relay(p.ctx, in, out)
}

// serveUDP carries datagrams to the guest until the socket closes: each client has a flow of its own.
func (n *Network) serveUDP(l *net.UDPConn, guest netip.AddrPort) {
	stop := context.AfterFunc(n.ctx, func() { l.Close() })
	defer stop()
	var mu sync.Mutex
	flows := map[netip.AddrPort]net.Conn{}
	defer func() {
		mu.Lock()
		defer mu.Unlock()
		for _, f := range flows {
			f.Close()
		}
	}()
	buf := make([]byte, maxDatagram)
	for {
		k, client, err := l.ReadFromUDPAddrPort(buf)
		if err != nil {
			if errors.Is(err, net.ErrClosed) || n.ctx.Err() != nil {
				return
			}
			continue // what an earlier answer came to, at a client that is gone
		}
		mu.Lock()
		flow := flows[client]
		mu.Unlock()
		if flow == nil {
			p := n.port(guest.Addr())
			if p == nil || !p.acquire() {
				continue
			}
			from, to := full(netip.AddrPortFrom(n.o.Gateway, 0)), full(guest)
			if flow, err = gonet.DialUDP(n.st, &from, &to, ipv4.ProtocolNumber); err != nil {
				p.release()
				continue
			}
			mu.Lock()
			flows[client] = flow
			mu.Unlock()
			n.work.Go(func() {
				defer p.release()
				back(p.ctx, flow, l, client)
				mu.Lock()
				defer mu.Unlock()
				delete(flows, client)
			})
		}
		flow.SetReadDeadline(time.Now().Add(udpIdle))
		flow.Write(buf[:k])
	}
}

// back carries the guest's answers to one client.
func back(ctx context.Context, flow net.Conn, l *net.UDPConn, client netip.AddrPort) {
	defer flow.Close()
	stop := context.AfterFunc(ctx, func() { flow.Close() })
	defer stop()
	buf := make([]byte, maxDatagram)
	for {
		k, err := flow.Read(buf)
		if err != nil {
			return
		}
		if _, err := l.WriteToUDPAddrPort(buf[:k], client); err != nil {
			return
		}
		flow.SetReadDeadline(time.Now().Add(udpIdle))
	}
}
