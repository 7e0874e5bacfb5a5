package network

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// PortSpec asks for a port of the host that leads to one of the container.
type PortSpec struct {
	Protocol  string     `json:"protocol"`          // "tcp" or "udp"
	HostIP    netip.Addr `json:"host_ip,omitzero"`  // the zero Addr: all addresses of the host, of both families
	Host      uint16     `json:"host,omitzero"`     // 0: any free one
	HostEnd   uint16     `json:"host_end,omitzero"` // the last of a range of which one is taken; 0: Host
	Container uint16     `json:"container"`
}

// Port is a published port. A PortSpec without a HostIP makes one of each family that the host has.
type Port struct {
	Protocol  string     `json:"protocol"`
	HostIP    netip.Addr `json:"host_ip"`
	Host      uint16     `json:"host"`
	Container uint16     `json:"container"`
}

func (p Port) addr() netip.AddrPort { return netip.AddrPortFrom(p.HostIP, p.Host) }

// portElements are an endpoint's ports for the firewall. A port of another family than the guest's is the listener's alone.
func portElements(e *Endpoint) []portElement {
	var all []portElement
	for _, p := range e.Ports {
		guest := e.IPv4
		if p.HostIP.Is6() {
			guest = e.IPv6
		}
		if !guest.IsValid() || p.HostIP.IsLoopback() {
			continue
		}
		protocol := byte(unix.IPPROTO_TCP)
		if p.Protocol == "udp" {
			protocol = unix.IPPROTO_UDP
		}
		all = append(all, portElement{protocol, p.addr(), netip.AddrPortFrom(guest.Addr(), p.Container)})
	}
	return all
}

// ports holds the listeners of published ports. A listener takes the port, so that nobody else can have it. To endpoints that are
// streams it carries everything; to those with a TAP what the firewall does not: connections from the host's loopback, and from
// IPv6 to guests that have none. All others pass it by, in the kernel, and so go on when the daemon has gone.
type ports struct {
	log    *slog.Logger
	dialer func(*Endpoint) dialFunc

	mu        sync.Mutex
	listening map[string][]*proxy // by endpoint
}

func newPorts(log *slog.Logger, dialer func(*Endpoint) dialFunc) *ports {
	return &ports{log: log, dialer: dialer, listening: map[string][]*proxy{}}
}

// open takes the ports that an endpoint asks for; on error none. hostIP is where they are when they do not say.
// ErrPortTaken, ErrInvalid.
func (p *ports) open(e *Endpoint, specs []PortSpec, hostIP string) ([]Port, error) {
	var (
		opened  []Port
		proxies []*proxy
	)
	for _, s := range specs {
		if err := s.check(); err != nil {
			return nil, errors.Join(err, closeProxies(proxies))
		}
		if a, err := netip.ParseAddr(hostIP); err == nil && !s.HostIP.IsValid() && !a.IsUnspecified() {
			s.HostIP = a
		}
		list, err := p.openOne(e, s)
		if err != nil {
			return nil, errors.Join(err, closeProxies(proxies))
		}
		for _, x := range list {
			proxies = append(proxies, x)
			opened = append(opened, x.port)
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.listening[e.ID] = append(p.listening[e.ID], proxies...)
	return opened, nil
}

func (s PortSpec) check() error {
	if s.Protocol != "tcp" && s.Protocol != "udp" {
		return fail(ErrInvalid, "invalid port: protocol %q is neither tcp nor udp", s.Protocol)
	}
	if s.Container == 0 || (s.HostEnd != 0 && (s.Host == 0 || s.HostEnd < s.Host)) {
		return fail(ErrInvalid, "invalid port: host %d to %d, container %d", s.Host, s.HostEnd, s.Container)
	}
	return nil
}

// openOne takes one port, the first of its range that is free on all its addresses.
func (p *ports) openOne(e *Endpoint, s PortSpec) ([]*proxy, error) {
	addresses := []netip.Addr{s.HostIP}
	if !s.HostIP.IsValid() {
		addresses = []netip.Addr{netip.IPv4Unspecified()}
		if hasIPv6() {
			addresses = append(addresses, netip.IPv6Unspecified())
		}
	}
	const attempts = 20 // at a port that the kernel picked for one family and that is taken in the other
	end, tries := max(s.Host, s.HostEnd), 0
	for host := s.Host; ; {
		list, err := p.listen(e, s, addresses, host)
		if err == nil {
			return list, nil
		}
		if errors.Is(err, unix.EACCES) {
			return nil, fail(ErrUnsupported, "publish port %d/%s: port %d of the host is for root only; sysctl net.ipv4.ip_unprivileged_port_start tells from which port on they are for all", s.Container, s.Protocol, s.Host)
		}
		if !errors.Is(err, unix.EADDRINUSE) {
			return nil, fmt.Errorf("publish port %d/%s: %w", s.Container, s.Protocol, err)
		}
		if host == 0 {
			if tries++; tries < attempts {
				continue
			}
		} else if host < end {
			host++
			continue
		}
		return nil, fail(ErrPortTaken, "Bind for %s failed: port is already allocated", netip.AddrPortFrom(addresses[0], s.Host))
	}
}

func (p *ports) listen(e *Endpoint, s PortSpec, addresses []netip.Addr, host uint16) ([]*proxy, error) {
	var list []*proxy
	for _, a := range addresses {
		x, err := newProxy(p.log, p.dialer(e), e, Port{s.Protocol, a, host, s.Container})
		if err != nil {
			return nil, errors.Join(err, closeProxies(list))
		}
		host = x.port.Host
		list = append(list, x)
	}
	return list, nil
}

// resume takes the ports again that an endpoint of an earlier process has. Ports that somebody else took meanwhile go on in
// the kernel, but not from loopback; the error tells of them.
func (p *ports) resume(e *Endpoint) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.listening[e.ID]) > 0 {
		return nil
	}
	var errs []error
	for _, port := range e.Ports {
		x, err := newProxy(p.log, p.dialer(e), e, port)
		if err != nil {
			errs = append(errs, fmt.Errorf("listen at %s again: %w", port.addr(), err))
			continue
		}
		p.listening[e.ID] = append(p.listening[e.ID], x)
	}
	return errors.Join(errs...)
}

// close gives an endpoint's ports back. Idempotent.
func (p *ports) close(endpoint string) error {
	p.mu.Lock()
	list := p.listening[endpoint]
	delete(p.listening, endpoint)
	p.mu.Unlock()
	return closeProxies(list)
}

func (p *ports) closeAll() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	var errs []error
	for id, list := range p.listening {
		errs = append(errs, closeProxies(list))
		delete(p.listening, id)
	}
	return errors.Join(errs...)
}

func closeProxies(list []*proxy) error {
	var errs []error
	for _, x := range list {
		errs = append(errs, x.close())
	}
	return errors.Join(errs...)
}

// published tells whether connections to an address of the host's come to a listener of ours, not counting loopback.
func (p *ports) published(protocol string, at netip.AddrPort) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, list := range p.listening {
		for _, x := range list {
			if x.port.Protocol == protocol && x.port.Host == at.Port() && (x.port.HostIP == at.Addr() || x.port.HostIP == netip.IPv4Unspecified()) {
				return true
			}
		}
	}
	return false
}

// listenConfig keeps IPv6 sockets from taking IPv4's port too, and lets a published address be one that comes later.
func listenConfig() net.ListenConfig {
	return net.ListenConfig{Control: func(network, _ string, raw syscall.RawConn) error {
		if network != "tcp6" && network != "udp6" {
			return nil
		}
		var err error
		if e := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_IPV6, unix.IPV6_V6ONLY, 1) }); e != nil {
			return e
		}
		return err
	}}
}

// listenAt opens the socket of a published port.
func listenAt(ctx context.Context, p Port) (net.Listener, net.PacketConn, error) {
	family := "4"
	if p.HostIP.Is6() {
		family = "6"
	}
	config := listenConfig()
	if p.Protocol == "udp" {
		c, err := config.ListenPacket(ctx, "udp"+family, p.addr().String())
		return nil, c, err
	}
	l, err := config.Listen(ctx, "tcp"+family, p.addr().String())
	return l, nil, err
}
