package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cradlevm/cradle/network/incoming"
)

// Server listens at one address, over UDP and TCP.
type Server struct {
	resolver *Resolver
	log      *slog.Logger
	udp      *net.UDPConn
	tcp      net.Listener
	ctx      context.Context // ends with Close; bounds what is being forwarded
	stop     context.CancelFunc
	running  sync.WaitGroup
}

// Serve starts a server. The address need not be the host's yet.
func Serve(at netip.AddrPort, d Directory, o Options) (*Server, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	config := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var err error
		level, option := unix.SOL_IP, unix.IP_FREEBIND
		if at.Addr().Is6() {
			level, option = unix.SOL_IPV6, unix.IPV6_FREEBIND
		}
		if e := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), level, option, 1) }); e != nil {
			return e
		}
		return err
	}}
	s := &Server{resolver: NewResolver(d, o), log: o.Log}
	s.ctx, s.stop = context.WithCancel(context.Background())
	packets, err := config.ListenPacket(s.ctx, "udp", at.String())
	if err != nil {
		s.stop()
		return nil, fmt.Errorf("start resolver: %w", err)
	}
	s.udp = packets.(*net.UDPConn)
	at = netip.AddrPortFrom(at.Addr(), uint16(s.udp.LocalAddr().(*net.UDPAddr).Port))
	if s.tcp, err = config.Listen(s.ctx, "tcp", at.String()); err != nil {
		s.stop()
		return nil, errors.Join(fmt.Errorf("start resolver: %w", err), s.udp.Close())
	}
	s.running.Go(s.serveUDP)
	s.running.Go(s.serveTCP)
	return s, nil
}

// Addr is where the server listens.
func (s *Server) Addr() netip.AddrPort { return s.udp.LocalAddr().(*net.UDPAddr).AddrPort() }

// Close ends the server and waits for what it was doing.
func (s *Server) Close() error {
	s.stop()
	err := errors.Join(s.udp.Close(), s.tcp.Close())
	s.running.Wait()
	return err
}

func (s *Server) serveUDP() {
	buf := make([]byte, maxQuery+1)
	for s.ctx.Err() == nil {
		size, from, err := s.udp.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // an error that an earlier answer met
		}
		source := from.Addr().Unmap()
		if !s.resolver.enter(source) {
			continue // dropped, as the network drops what is too much
		}
		query := append([]byte{}, buf[:size]...)
		s.running.Go(func() {
			defer s.resolver.leave(source)
			if out := s.resolver.answer(s.ctx, source, query, false); out != nil {
				s.udp.WriteToUDPAddrPort(out, from) // the asker asks again
			}
		})
	}
}

func (s *Server) serveTCP() {
	incoming.Serve(s.ctx, s.tcp, maxConnections, s.log, func(c net.Conn) {
		stop := context.AfterFunc(s.ctx, func() { c.Close() })
		defer stop()
		defer c.Close()
		s.serveConnection(c)
	})
}

// serveConnection answers one query after the other, until the asker is done or does nothing for a while.
func (s *Server) serveConnection(c net.Conn) {
	remote, ok := c.RemoteAddr().(*net.TCPAddr)
	if !ok {
		return
	}
	source := remote.AddrPort().Addr().Unmap()
	for {
		c.SetDeadline(time.Now().Add(idle))
		var length [2]byte
		if _, err := io.ReadFull(c, length[:]); err != nil {
			return
		}
		query := make([]byte, binary.BigEndian.Uint16(length[:]))
		if len(query) > maxQuery {
			return
		}
		if _, err := io.ReadFull(c, query); err != nil {
			return
		}
		if !s.resolver.enter(source) {
			return
		}
		out := s.resolver.answer(s.ctx, source, query, true)
		s.resolver.leave(source)
		if out == nil {
			return
		}
		c.SetDeadline(time.Now().Add(idle))
		if _, err := c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(out))), out...)); err != nil {
			return
		}
	}
}
