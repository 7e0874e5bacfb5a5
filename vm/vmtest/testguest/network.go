package main

import (
	"fmt"
	"net"

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

// network does what the methods about frames ask for.
func network(c *wire.Call) (any, error) {
	var f guestapi.Frame
	if err := c.Params(&f); err != nil {
		return nil, err
	}
	return exchange(c, f)
}

// setUp brings an interface up.
func setUp(name string) error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
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
	if err := setUp(i.Name); err != nil {
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
