package user

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/channel"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
)

// patience bounds every wait of the tests.
const patience = 10 * time.Second

var (
	subnet  = netip.MustParsePrefix("10.9.0.0/24")
	gateway = netip.MustParseAddr("10.9.0.1")
)

func newNetwork(t *testing.T, change func(*Options)) *Network {
	t.Helper()
	o := Options{Subnet: subnet, Gateway: gateway, Log: slog.New(slog.DiscardHandler)}
	if change != nil {
		change(&o)
	}
	n, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.Close)
	return n
}

// machine is a guest: a stack of its own, and the frames that it sends and gets.
type machine struct {
	t      *testing.T
	guest  Guest
	port   *Port
	conn   net.Conn
	link   *channel.Endpoint
	st     *stack.Stack
	writes sync.Mutex
	arp    chan []byte // answers to its questions

	mu         sync.Mutex
	heard      int // frames received
	neighbours map[netip.Addr]net.HardwareAddr
}

func newMachine(t *testing.T, n *Network, addr string, host bool) *machine {
	t.Helper()
	ours, theirs := net.Pipe()
	a := netip.MustParseAddr(addr)
	m := &machine{t: t, guest: Guest{MAC: macOf(a.Next()), Addr: a, Host: host}, conn: ours, link: channel.New(64, MaxMTU, ""),
		arp: make(chan []byte, 8), neighbours: map[netip.Addr]net.HardwareAddr{},
		st: stack.New(stack.Options{
			NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol},
			TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4},
		})}
	m.st.CreateNIC(nicID, m.link)
	m.st.AddProtocolAddress(nicID, tcpip.ProtocolAddress{Protocol: ipv4.ProtocolNumber,
		AddressWithPrefix: tcpip.AddressWithPrefix{Address: tcpip.AddrFrom4(a.As4()), PrefixLen: 24}}, stack.AddressProperties{})
	m.st.SetRouteTable([]tcpip.Route{{Destination: header.IPv4EmptySubnet, NIC: nicID}})
	port, err := n.Attach(m.guest, theirs)
	if err != nil {
		t.Fatal(err)
	}
	m.port = port
	ctx, cancel := context.WithCancel(context.Background())
	var work sync.WaitGroup
	work.Go(m.receive)
	t.Cleanup(func() {
		cancel()
		ours.Close()
		work.Wait()
		m.st.Destroy()
	})
	m.resolve(gateway)
	work.Go(func() { m.transmit(ctx) })
	return m
}

// send sends one frame.
func (m *machine) send(frame []byte) {
	m.writes.Lock()
	defer m.writes.Unlock()
	m.conn.SetWriteDeadline(time.Now().Add(patience))
	m.conn.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(frame))), frame...))
}

func (m *machine) receive() {
	for {
		var length [4]byte
		if _, err := io.ReadFull(m.conn, length[:]); err != nil {
			return
		}
		b := make([]byte, binary.BigEndian.Uint32(length[:]))
		if _, err := io.ReadFull(m.conn, b); err != nil {
			return
		}
		if !bytes.Equal(b[:6], m.guest.MAC) {
			m.t.Errorf("a frame for %x came to %s", b[:6], m.guest.MAC)
		}
		m.mu.Lock()
		m.heard++
		m.mu.Unlock()
		if b[13] == 6 {
			m.arp <- b
			continue
		}
		packet := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(b[ethernetSize:])})
		m.link.InjectInbound(ipv4.ProtocolNumber, packet)
		packet.DecRef()
	}
}

// transmit puts the stack's packets into frames.
func (m *machine) transmit(ctx context.Context) {
	for {
		packet := m.link.ReadContext(ctx)
		if packet == nil {
			return
		}
		b := packet.ToView().ToSlice()
		packet.DecRef()
		to := addrOf(header.IPv4(b).DestinationAddress())
		m.mu.Lock()
		mac := m.neighbours[to]
		if mac == nil {
			mac = m.neighbours[gateway]
		}
		m.mu.Unlock()
		m.send(m.frame(mac, 0x0800, b))
	}
}

func (m *machine) frame(to net.HardwareAddr, kind uint16, body []byte) []byte {
	f := append(append([]byte{}, to...), m.guest.MAC...)
	return append(binary.BigEndian.AppendUint16(f, kind), body...)
}

// arpPacket is a question or an answer.
func arpPacket(op byte, mac net.HardwareAddr, sender, target netip.Addr) []byte {
	b := []byte{0, 1, 8, 0, 6, 4, 0, op}
	b = append(append(b, mac...), sender.AsSlice()...)
	return append(append(b, 0, 0, 0, 0, 0, 0), target.AsSlice()...)
}

// resolve asks for an address, which must be answered.
func (m *machine) resolve(a netip.Addr) {
	m.t.Helper()
	m.send(m.frame(bytes.Repeat([]byte{0xff}, 6), 0x0806, arpPacket(1, m.guest.MAC, m.guest.Addr, a)))
	select {
	case b := <-m.arp:
		if b[21] != 2 || netip.AddrFrom4([4]byte(b[28:32])) != a || !bytes.Equal(b[6:12], b[22:28]) {
			m.t.Fatalf("answer %x to the question for %s", b, a)
		}
		m.mu.Lock()
		m.neighbours[a] = bytes.Clone(b[22:28])
		m.mu.Unlock()
	case <-time.After(patience):
		m.t.Fatalf("nobody answers for %s", a)
	}
}

// frames tells how many have been received.
func (m *machine) frames() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.heard
}

// dial opens a connection from the guest.
func (m *machine) dial(to string) (*gonet.TCPConn, error) { return m.dialWithin(to, patience) }

func (m *machine) dialWithin(to string, limit time.Duration) (*gonet.TCPConn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	c, err := gonet.DialContextTCP(ctx, m.st, full(netip.MustParseAddrPort(to)), ipv4.ProtocolNumber)
	if err == nil {
		c.SetDeadline(time.Now().Add(patience))
	}
	return c, err
}

// capitals is what services answer.
func capitals(b []byte) []byte { return bytes.ToUpper(b) }

func (m *machine) serveTCP(port uint16) {
	m.t.Helper()
	l, err := gonet.ListenTCP(m.st, full(netip.AddrPortFrom(m.guest.Addr, port)), ipv4.ProtocolNumber)
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { l.Close() })
	go serveEcho(l)
}

func serveEcho(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			b, _ := io.ReadAll(c)
			c.Write(capitals(b))
		}()
	}
}

// ask sends text over a connection, ends that direction, and returns what comes back.
func ask(c halfCloser, text string) (string, error) {
	defer c.Close()
	if _, err := io.WriteString(c, text); err != nil {
		return "", err
	}
	if err := c.CloseWrite(); err != nil {
		return "", err
	}
	b, err := io.ReadAll(c)
	return string(b), err
}

// await polls until f holds.
func await(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !f(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not in %v: %s", patience, what)
		}
	}
}
