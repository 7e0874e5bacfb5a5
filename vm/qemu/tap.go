package qemu

import (
	"fmt"
	"os"
	"runtime"

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
	return onThread(func() (*os.File, error) {
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return nil, fmt.Errorf("enter %s: %w", path, err)
		}
		return f()
	})
}

// onThread calls f on a thread that ends afterwards: its namespace is nobody else's. That is never the process's first one, which
// would stay, and keep the namespace.
func onThread(f func() (*os.File, error)) (*os.File, error) {
	type result struct {
		file *os.File
		err  error
	}
	done := make(chan result, 1)
	go func() {
		runtime.LockOSThread()
		var r result
		if unix.Gettid() == unix.Getpid() {
			r.file, r.err = onThread(f) // elsewhere, this one being taken
			runtime.UnlockOSThread()
		} else {
			r.file, r.err = f()
		}
		done <- r
	}()
	r := <-done
	return r.file, r.err
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
