package network

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/cradlevm/cradle/network/incoming"
)

// Limits of one proxy.
const (
	maxProxied   = 1024 // connections, or UDP conversations
	dialTimeout  = 10 * time.Second
	conversation = 90 * time.Second // without a datagram
	maxDatagram  = 65536
)

// proxy carries connections to a published port into a guest.
type proxy struct {
	log    *slog.Logger
	dial   dialFunc
	port   Port
	target string

	listener net.Listener
	packets  net.PacketConn
	ctx      context.Context // ends with close
	stop     context.CancelFunc
	running  sync.WaitGroup

	mu            sync.Mutex
	conversations map[netip.AddrPort]net.Conn
}

func newProxy(log *slog.Logger, dial dialFunc, e *Endpoint, p Port) (*proxy, error) {
	guest := e.IPv4
	if p.HostIP.Is6() && e.IPv6.IsValid() {
		guest = e.IPv6
	}
	x := &proxy{log: log, dial: dial, port: p, target: netip.AddrPortFrom(guest.Addr(), p.Container).String(), conversations: map[netip.AddrPort]net.Conn{}}
	x.ctx, x.stop = context.WithCancel(context.Background())
	var err error
	if x.listener, x.packets, err = listenAt(x.ctx, p); err != nil {
		x.stop()
		return nil, err
	}
	if x.listener != nil {
		x.port.Host = uint16(x.listener.Addr().(*net.TCPAddr).Port)
		x.running.Go(x.serveTCP)
	} else {
		x.port.Host = uint16(x.packets.LocalAddr().(*net.UDPAddr).Port)
		x.running.Go(x.serveUDP)
	}
	return x, nil
}

func (x *proxy) close() error {
	x.stop()
	var err error
	if x.listener != nil {
		err = x.listener.Close()
	} else {
		err = x.packets.Close()
	}
	x.mu.Lock()
	for _, c := range x.conversations {
		c.Close()
	}
	x.mu.Unlock()
	x.running.Wait()
	return err
}

func (x *proxy) serveTCP() { incoming.Serve(x.ctx, x.listener, maxProxied, x.log, x.carry) }

// carry copies both ways; one side's end is told to the other.
func (x *proxy) carry(client net.Conn) {
	defer client.Close()
	ctx, cancel := context.WithTimeout(x.ctx, dialTimeout)
	guest, err := x.dial(ctx, "tcp", x.target)
	cancel()
	if err != nil {
		if tcp, ok := client.(*net.TCPConn); ok {
			tcp.SetLinger(0) // refused, as it would have been in the kernel
		}
		return
	}
	defer guest.Close()
	stop := context.AfterFunc(x.ctx, func() { client.Close(); guest.Close() })
	defer stop()
	var both sync.WaitGroup
	oneWay := func(to, from net.Conn) {
		io.Copy(to, from) // an end is an end
		to.(interface{ CloseWrite() error }).CloseWrite()
	}
	both.Go(func() { oneWay(guest, client) })
	both.Go(func() { oneWay(client, guest) })
	both.Wait()
}

func (x *proxy) serveUDP() {
	buf := make([]byte, maxDatagram)
	socket := x.packets.(*net.UDPConn)
	for x.ctx.Err() == nil {
		n, from, err := socket.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // an error that an earlier answer met
		}
		if c := x.conversation(socket, from); c != nil {
			c.SetReadDeadline(time.Now().Add(conversation))
			c.Write(buf[:n]) // lost, as datagrams may be
		}
	}
}

// conversation finds or begins the one with a client; nil when there are too many.
func (x *proxy) conversation(socket *net.UDPConn, from netip.AddrPort) net.Conn {
	x.mu.Lock()
	defer x.mu.Unlock()
	if c := x.conversations[from]; c != nil {
		return c
	}
	if len(x.conversations) >= maxProxied || x.ctx.Err() != nil {
		return nil
	}
	c, err := x.dial(x.ctx, "udp", x.target)
	if err != nil {
		return nil
	}
	x.conversations[from] = c
	x.running.Go(func() {
		x.answers(socket, c, from)
		x.mu.Lock()
		defer x.mu.Unlock()
		delete(x.conversations, from)
		c.Close()
	})
	return c
}

// answers carries a guest's datagrams back until there are none for a while.
func (x *proxy) answers(socket *net.UDPConn, c net.Conn, to netip.AddrPort) {
	buf := make([]byte, maxDatagram)
	for {
		n, err := c.Read(buf)
		if err != nil {
			return
		}
		c.SetReadDeadline(time.Now().Add(conversation))
		if _, err := socket.WriteToUDPAddrPort(buf[:n], to); err != nil {
			return
		}
	}
}
