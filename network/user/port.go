package user

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"github.com/cradlevm/cradle/network/egress"
)

// Guest is who may be at a port.
type Guest struct {
	MAC  net.HardwareAddr // 6 bytes, unicast
	Addr netip.Addr       // in the network's subnet
	// Host lets the guest reach the host's own services, but for those that listen on loopback only: at the host's
	// addresses, and at the gateway's, which stands for one of them.
	Host bool
	// Policy is what the guest may send, and how much both ways; with Host unset, Services are those of the host that it may reach at
	// the gateway's address.
	Policy   egress.Policy
	Services []Service
}

// Service of the host's.
type Service struct {
	Protocol string // "tcp" or "udp"
	Port     uint16 // 0: all
}

// Reason is why a frame was dropped.
type Reason int

// Reasons.
const (
	Malformed   Reason = iota // shorter or longer than it says, or than anything may be
	ForgedMAC                 // from another hardware address
	ForgedIP                  // from another address, or with other addresses in an ARP packet
	OtherType                 // neither IPv4 nor ARP: IPv6, a VLAN, …
	Unreachable               // to nobody, to many, or where the network does not lead
	Fragment                  // where a policy asks for ports
	Denied                    // by the guest's policy
	Rate                      // over the guest's rate limit
	Full                      // faster than the other side reads
	reasons
)

func (r Reason) String() string {
	return [...]string{"malformed", "forged MAC", "forged IP", "other type", "unreachable", "fragment", "policy", "rate", "full"}[r]
}

// Counters of a port; all but Dropped in both directions as the guest sees them.
type Counters struct {
	SentFrames, SentBytes         uint64
	ReceivedFrames, ReceivedBytes uint64
	Dropped                       map[Reason]uint64 // of what the guest sent
	Refused                       map[Reason]uint64 // of what was for it
}

// Port is where one guest is attached.
type Port struct {
	n      *Network
	guest  Guest // but for its policy, which mu guards
	conn   net.Conn
	out    chan []byte // frames to the guest
	filter *egress.Filter

	mu       sync.Mutex
	services []Service
	open     map[*outbound]bool

	ctx   context.Context
	stop  context.CancelFunc
	flows chan struct{} // a place for each of the guest's connections

	sentFrames, sentBytes, gotFrames, gotBytes atomic.Uint64
	dropped, refused                           [reasons]atomic.Uint64
}

// Frame sizes, in bytes.
const (
	ethernetSize = 14
	arpSize      = 28
	maxFrame     = ethernetSize + MaxMTU
)

// Attach puts a guest at the other end of conn, which the network owns from then on. The port is closed when conn breaks,
// and by Close.
func (n *Network) Attach(g Guest, conn net.Conn) (*Port, error) {
	fail := func(format string, args ...any) (*Port, error) {
		conn.Close()
		return nil, fmt.Errorf("attach to user-mode network: "+format, args...)
	}
	switch {
	case len(g.MAC) != 6 || g.MAC[0]&1 != 0:
		return fail("%s is no hardware address of one interface", g.MAC)
	case !n.o.Subnet.Contains(g.Addr) || g.Addr == n.o.Gateway:
		return fail("%s is no guest's address in %s", g.Addr, n.o.Subnet)
	}
	p := &Port{n: n, guest: g, conn: conn, out: make(chan []byte, queueLength), flows: make(chan struct{}, maxConns),
		filter: egress.NewFilter(n.o.Gateway), services: g.Services, open: map[*outbound]bool{}}
	p.filter.Set(g.Policy)
	p.ctx, p.stop = context.WithCancel(n.ctx)
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.ctx.Err() != nil {
		return fail("it has been closed")
	}
	if n.ports[g.Addr] != nil {
		return fail("%s is taken", g.Addr)
	}
	n.ports[g.Addr] = p
	n.work.Go(p.read)
	n.work.Go(p.write)
	return p, nil
}

// Close detaches the guest and ends its connections. Idempotent.
func (p *Port) Close() {
	p.stop()
	p.conn.Close()
	p.n.mu.Lock()
	defer p.n.mu.Unlock()
	if p.n.ports[p.guest.Addr] == p {
		delete(p.n.ports, p.guest.Addr)
	}
}

// Done is closed when the port has been.
func (p *Port) Done() <-chan struct{} { return p.ctx.Done() }

// Counters tells what has passed, and what has not.
func (p *Port) Counters() Counters {
	c := Counters{
		SentFrames: p.sentFrames.Load(), SentBytes: p.sentBytes.Load(),
		ReceivedFrames: p.gotFrames.Load(), ReceivedBytes: p.gotBytes.Load(), Dropped: map[Reason]uint64{}, Refused: map[Reason]uint64{},
	}
	for r := range reasons {
		if v := p.dropped[r].Load(); v > 0 {
			c.Dropped[r] = v
		}
		if v := p.refused[r].Load(); v > 0 {
			c.Refused[r] = v
		}
	}
	return c
}

// read takes the guest's frames until the stream ends.
func (p *Port) read() {
	defer p.Close()
	from := bufio.NewReaderSize(p.conn, 64<<10)
	var length [4]byte
	frame := make([]byte, maxFrame)
	for {
		if _, err := io.ReadFull(from, length[:]); err != nil {
			return
		}
		size := int64(binary.BigEndian.Uint32(length[:]))
		if size > maxFrame {
			// The monitor's streams end by breaking, not by lying; what is this long is skipped all the same.
			p.drop(Malformed)
			if _, err := io.CopyN(io.Discard, from, size); err != nil {
				return
			}
			continue
		}
		if _, err := io.ReadFull(from, frame[:size]); err != nil {
			return
		}
		if reason, ok := p.take(frame[:size]); !ok {
			p.drop(reason)
			continue
		}
		p.sentFrames.Add(1)
		p.sentBytes.Add(uint64(size))
	}
}

func (p *Port) drop(r Reason) { p.dropped[r].Add(1) }

// take checks a frame of the guest's and passes it on. b is the caller's again afterwards.
func (p *Port) take(b []byte) (why Reason, ok bool) {
	if len(b) < ethernetSize {
		return Malformed, false
	}
	if [6]byte(b[6:12]) != [6]byte(p.guest.MAC) {
		return ForgedMAC, false
	}
	if !p.filter.Spend(len(b)) {
		return Rate, false
	}
	switch binary.BigEndian.Uint16(b[12:14]) {
	case uint16(header.ARPProtocolNumber):
		return p.takeARP(b[ethernetSize:])
	case uint16(header.IPv4ProtocolNumber):
		return p.takeIPv4(b[ethernetSize:])
	}
	return OtherType, false
}

// takeARP answers for everybody on the network.
func (p *Port) takeARP(b []byte) (Reason, bool) {
	if len(b) < arpSize || [6]byte(b[:6]) != [6]byte{0, 1, 8, 0, 6, 4} {
		return Malformed, false
	}
	sender, target := netip.AddrFrom4([4]byte(b[14:18])), netip.AddrFrom4([4]byte(b[24:28]))
	if [6]byte(b[8:14]) != [6]byte(p.guest.MAC) || sender != p.guest.Addr && !sender.IsUnspecified() {
		return ForgedIP, false
	}
	if binary.BigEndian.Uint16(b[6:8]) != 1 { // nobody has asked
		return Unreachable, false
	}
	var answer net.HardwareAddr
	switch q := p.n.port(target); {
	case target == p.guest.Addr: // it tells that it is there, or asks whether it is alone: it is
		return 0, true
	case target == p.n.o.Gateway:
		answer = p.n.mac
	case q != nil && !p.n.o.Isolate:
		answer = q.guest.MAC
	default:
		return Unreachable, false
	}
	reply := make([]byte, 0, ethernetSize+arpSize)
	reply = append(append(reply, p.guest.MAC...), answer...)
	reply = append(reply, 8, 6, 0, 1, 8, 0, 6, 4, 0, 2)
	reply = append(append(reply, answer...), b[24:28]...)
	reply = append(append(reply, p.guest.MAC...), b[14:18]...)
	p.queue(reply, nil)
	return 0, true
}

// takeIPv4 passes a packet on to a neighbour or to the stack.
func (p *Port) takeIPv4(b []byte) (Reason, bool) {
	h := header.IPv4(b)
	if len(b) < header.IPv4MinimumSize || !h.IsValid(len(b)) {
		return Malformed, false
	}
	from, to := addrOf(h.SourceAddress()), addrOf(h.DestinationAddress())
	b = b[:h.TotalLength()] // the rest is an Ethernet frame's padding
	if from != p.guest.Addr {
		return ForgedIP, false
	}
	if why, ok := p.ask(b); !ok {
		return why, false
	}
	if p.n.o.Subnet.Contains(to) && to != p.n.o.Gateway {
		q := p.n.port(to)
		if q == nil || q == p || p.n.o.Isolate {
			return Unreachable, false
		}
		q.deliver(p.guest.MAC, b)
		return 0, true
	}
	if to != p.n.o.Gateway && nowhere(to) {
		return Unreachable, false
	}
	// The stack would answer an echo in anybody's name.
	if h.Protocol() == uint8(header.ICMPv4ProtocolNumber) && to != p.n.o.Gateway {
		return Unreachable, false
	}
	packet := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(b)})
	defer packet.DecRef()
	p.n.link.InjectInbound(ipv4.ProtocolNumber, packet)
	return 0, true
}

// ask has the guest's policy decide about a packet.
func (p *Port) ask(b []byte) (Reason, bool) {
	switch p.filter.Send(b, ethernetSize+len(b)) {
	case egress.Pass:
		return 0, true
	case egress.Fragment:
		return Fragment, false
	case egress.Short:
		return Malformed, false
	}
	return Denied, false
}

// deliver puts a packet from a hardware address into a frame for the guest.
func (p *Port) deliver(from net.HardwareAddr, packet []byte) {
	frame := make([]byte, 0, ethernetSize+len(packet))
	frame = append(append(frame, p.guest.MAC...), from...)
	p.queue(append(append(frame, 8, 0), packet...), packet)
}

// queue hands a frame to write, or drops it: nobody waits for a guest that does not read. packet is what of it the guest may
// answer, or nil.
func (p *Port) queue(frame, packet []byte) {
	if !p.filter.SpendIngress(len(frame)) {
		p.refused[Rate].Add(1)
		return
	}
	if packet != nil {
		p.filter.Receive(packet)
	}
	select {
	case p.out <- frame:
	default:
		p.refused[Full].Add(1)
	}
}

// write sends the guest its frames.
func (p *Port) write() {
	defer p.Close()
	var length [4]byte
	for {
		select {
		case <-p.ctx.Done():
			return
		case frame := <-p.out:
			binary.BigEndian.PutUint32(length[:], uint32(len(frame)))
			pieces := net.Buffers{length[:], frame}
			if _, err := pieces.WriteTo(p.conn); err != nil {
				if !errors.Is(err, net.ErrClosed) {
					p.n.o.Log.Debug("stream of a guest's interface", "guest", p.guest.Addr, "err", err)
				}
				return
			}
			p.gotFrames.Add(1)
			p.gotBytes.Add(uint64(len(frame)))
		}
	}
}
