package main

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"

	"github.com/cradlevm/cradle/api/wire"
	"github.com/cradlevm/cradle/vm/vmtest/guestapi"
	"golang.org/x/sys/unix"
)

// nics are the interfaces that have a hardware address.
func nics() ([]guestapi.NIC, error) {
	all, err := net.Interfaces()
	found := []guestapi.NIC{}
	for _, i := range all {
		if len(i.HardwareAddr) > 0 {
			found = append(found, guestapi.NIC{Name: i.Name, MAC: i.HardwareAddr.String()})
		}
	}
	return found, err
}

func byMAC(mac string) (*net.Interface, error) {
	all, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	for _, i := range all {
		if i.HardwareAddr.String() == mac {
			return &i, nil
		}
	}
	return nil, fmt.Errorf("no interface %s", mac)
}

// network does what the methods about networks ask for.
func network(c *wire.Call) (any, error) {
	switch c.Method {
	case guestapi.MethodSendFrame, guestapi.MethodReceiveFrame:
		var f guestapi.Frame
		if err := c.Params(&f); err != nil {
			return nil, err
		}
		return exchange(c, f)
	case guestapi.MethodAddress:
		var a guestapi.Address
		if err := c.Params(&a); err != nil {
			return nil, err
		}
		i, err := byMAC(a.MAC)
		if err != nil {
			return nil, err
		}
		return nil, setUp(i.Name, a.Prefix)
	case guestapi.MethodServe:
		var p guestapi.Print
		if err := c.Params(&p); err != nil {
			return nil, err
		}
		return nil, serve(p.Text)
	default:
		var p guestapi.Print
		if err := c.Params(&p); err != nil {
			return nil, err
		}
		conn, err := net.DialTimeout("tcp", p.Text, 20*time.Second)
		if err != nil {
			return nil, err
		}
		defer conn.Close()
		b, err := io.ReadAll(io.LimitReader(conn, 64<<10))
		return guestapi.Print{Text: string(b)}, err
	}
}

// serve tells everybody who connects that it is the guest that they have come to.
func serve(address string) error {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			io.WriteString(conn, guestapi.Served)
			conn.Close()
		}
	}()
	return nil
}

// setUp gives an interface an address, if one is given, and brings it up.
func setUp(name string, prefix netip.Prefix) error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	if prefix.IsValid() {
		for request, address := range map[uint][]byte{
			unix.SIOCSIFADDR:    prefix.Addr().AsSlice(),
			unix.SIOCSIFNETMASK: net.CIDRMask(prefix.Bits(), 32),
		} {
			req, err := unix.NewIfreq(name)
			if err != nil {
				return err
			}
			if err := req.SetInet4Addr(address); err != nil {
				return err
			}
			if err := unix.IoctlIfreq(s, request, req); err != nil {
				return fmt.Errorf("address of %s: %w", name, err)
			}
		}
	}
	req, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, req)
}

// exchange sends a frame, or waits for one of FrameType.
func exchange(c *wire.Call, f guestapi.Frame) (any, error) {
	i, err := byMAC(f.MAC)
	if err != nil {
		return nil, err
	}
	if err := setUp(i.Name, netip.Prefix{}); err != nil {
		return nil, err
	}
	const protocol = guestapi.FrameType>>8 | guestapi.FrameType&0xff<<8 // in network order
	s, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return nil, err
	}
	defer unix.Close(s)
	if err := unix.Bind(s, &unix.SockaddrLinklayer{Protocol: protocol, Ifindex: i.Index}); err != nil {
		return nil, err
	}
	if c.Method == guestapi.MethodSendFrame {
		for range 1 + f.Again {
			if _, err := unix.Write(s, f.Data); err != nil {
				return nil, err
			}
		}
		return nil, nil
	}
	if err := unix.SetsockoptTimeval(s, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 20}); err != nil {
		return nil, err
	}
	f.Data = make([]byte, 2048)
	n, err := unix.Read(s, f.Data)
	f.Data = f.Data[:max(n, 0)]
	return f, err
}
