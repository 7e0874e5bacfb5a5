package nettest

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"
	"unsafe"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// vnetHeader is the size of the header in front of each frame of a TAP made with IFF_VNET_HDR.
const vnetHeader = 10

// Guest stands for a virtual machine: it holds the far end of a TAP, as a monitor does, and has a network stack of its own
// in another network namespace, joined to it by copying frames.
type Guest struct {
	t    testing.TB
	tap  *os.File // the host's TAP, as its monitor sees it
	wire *os.File // the guest's interface
	ns   netns.NsHandle

	mu   sync.Mutex
	seen func(frame []byte) // of frames to the guest
}

// NewGuest takes the far end of the TAP. The test's end gives it back.
func NewGuest(t testing.TB, tap string) *Guest {
	t.Helper()
	g := &Guest{t: t}
	var err error
	if g.tap, err = openTAP(tap, unix.IFF_TAP|unix.IFF_NO_PI|unix.IFF_VNET_HDR); err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() { // the thread is not unlocked: it ends with the goroutine, and its namespace does not leak into others
		runtime.LockOSThread()
		done <- g.enter()
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	var pumps sync.WaitGroup
	pumps.Go(g.toGuest)
	pumps.Go(g.fromGuest)
	t.Cleanup(func() {
		g.tap.Close()
		g.wire.Close()
		pumps.Wait()
		g.ns.Close()
	})
	return g
}

func (g *Guest) enter() error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return err
	}
	var err error
	if g.ns, err = netns.Get(); err != nil {
		return err
	}
	if g.wire, err = openTAP("eth0", unix.IFF_TAP|unix.IFF_NO_PI); err != nil {
		return err
	}
	// A virtio device does not take the checksums that are missing from its frames as a fault; here they must be there.
	return withoutOffload("eth0")
}

func openTAP(name string, flags uint16) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	ifr, err := unix.NewIfreq(name)
	if err == nil {
		ifr.SetUint16(flags)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr)
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("open TAP %s: %w", name, err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// withoutOffload switches off checksums that are left to the device.
func withoutOffload(name string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	const setTXChecksum = 0x17
	value := struct{ cmd, data uint32 }{setTXChecksum, 0}
	ifr := struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte
	}{data: unsafe.Pointer(&value)}
	copy(ifr.name[:], name)
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&ifr))); e != 0 {
		return fmt.Errorf("switch off checksum offload of %s: %w", name, e)
	}
	return nil
}

func (g *Guest) toGuest() {
	buf := make([]byte, 1<<17)
	for {
		n, err := g.tap.Read(buf)
		if err != nil {
			return
		}
		if n < vnetHeader {
			continue
		}
		frame := completed(buf[:vnetHeader], buf[vnetHeader:n])
		g.mu.Lock()
		if g.seen != nil {
			g.seen(frame)
		}
		g.mu.Unlock()
		g.wire.Write(frame) // refused while the interface is down
	}
}

// completed writes the checksum that a frame's header says is missing.
func completed(header, frame []byte) []byte {
	if header[0]&1 == 0 {
		return frame
	}
	start := int(header[6]) | int(header[7])<<8
	at := start + (int(header[8]) | int(header[9])<<8)
	if at+2 > len(frame) {
		return frame
	}
	sum := checksum(0, frame[start:])
	frame[at], frame[at+1] = byte(sum>>8), byte(sum)
	return frame
}

func (g *Guest) fromGuest() {
	buf := make([]byte, 1<<17)
	for {
		n, err := g.wire.Read(buf[vnetHeader:])
		if err != nil {
			return
		}
		clear(buf[:vnetHeader])
		g.tap.Write(buf[:vnetHeader+n]) // refused while the TAP is down
	}
}

// Watch has every frame that reaches the guest shown to f.
func (g *Guest) Watch(f func(frame []byte)) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.seen = f
}

// Send sends a frame past the guest's stack, as a hostile one would. An error is the kernel's refusal.
func (g *Guest) Send(frame []byte) error {
	return g.SendOffloaded(make([]byte, vnetHeader), frame)
}

// SendOffloaded is Send with a virtio_net_hdr of 10 bytes.
func (g *Guest) SendOffloaded(header, frame []byte) error {
	_, err := g.tap.Write(append(append([]byte{}, header...), frame...))
	return err
}

// Configure gives the guest's interface what an agent would.
func (g *Guest) Configure(mac string, mtu int, addresses []netip.Prefix, gateways []netip.Addr) {
	g.t.Helper()
	g.Do(func() error {
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		hw, err := net.ParseMAC(mac)
		if err != nil {
			return err
		}
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		for _, err := range []error{netlink.LinkSetUp(lo), netlink.LinkSetHardwareAddr(link, hw), netlink.LinkSetMTU(link, mtu), netlink.LinkSetUp(link)} {
			if err != nil {
				return err
			}
		}
		for _, a := range addresses {
			if !a.IsValid() {
				continue
			}
			address := &netlink.Addr{IPNet: &net.IPNet{IP: a.Addr().AsSlice(), Mask: net.CIDRMask(a.Bits(), a.Addr().BitLen())}}
			if a.Addr().Is6() {
				address.Flags = unix.IFA_F_NODAD
			}
			if err := netlink.AddrReplace(link, address); err != nil {
				return err
			}
		}
		for _, a := range gateways {
			if !a.IsValid() {
				continue
			}
			if err := netlink.RouteReplace(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: a.AsSlice()}); err != nil {
				return err
			}
		}
		return settled(link)
	})
}

// settled waits until addresses can be used, which for IPv6 the kernel sees to a little later.
func settled(link netlink.Link) error {
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		addresses, err := netlink.AddrList(link, unix.AF_INET6)
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(addresses, func(a netlink.Addr) bool { return a.IP.IsGlobalUnicast() && a.Flags&unix.IFA_F_TENTATIVE != 0 }) {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("addresses stay tentative: %v", addresses)
		}
	}
}

// Do runs f in the guest's network. Sockets that it opens stay there.
func (g *Guest) Do(f func() error) {
	g.t.Helper()
	if err := g.Try(f); err != nil {
		g.t.Fatalf("in the guest: %v", err)
	}
}

// Try is Do for what may fail.
func (g *Guest) Try(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		if err := netns.Set(g.ns); err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	return <-done
}
