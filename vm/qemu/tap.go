package qemu

import (
	"fmt"
	"os"

	"github.com/cradlevm/cradle/vm"
	"golang.org/x/sys/unix"
)

// openTAP attaches to an existing TAP device, in the network namespace that it is in.
func openTAP(n vm.NIC) (*os.File, error) {
	f, err := inNetNS(n.NetNS, func() (*os.File, error) { return attachTAP(n.TAP) })
	if err != nil {
		return nil, fmt.Errorf("%w: NICs: TAP %s: %w", vm.ErrInvalid, n.TAP, err)
	}
	return f, nil
}

// inNetNS calls f in the network namespace at path, "" for the process's own.
func inNetNS(path string, f func() (*os.File, error)) (*os.File, error) {
	if path == "" {
		return f()
	}
	ns, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	return in(ns, f)
}

func attachTAP(name string) (_ *os.File, err error) {
	// Attaching to what is not there would make it.
	if err := exists(name); err != nil {
		return nil, err
	}
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open /dev/net/tun: %w", err)
	}
	defer func() {
		if err != nil {
			unix.Close(fd)
		}
	}()
	req, err := unix.NewIfreq(name)
	if err != nil {
		return nil, err
	}
	req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		return nil, fmt.Errorf("attach: %w", err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// exists looks for a network device in the calling thread's namespace.
func exists(name string) error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	req, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	return unix.IoctlIfreq(s, unix.SIOCGIFINDEX, req)
}
