package guest

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/cradlevm/cradle/api"
	"golang.org/x/sys/unix"
)

// port is a virtio-serial port. Reading one while no host is connected returns zero bytes at once; port waits instead.
type port struct {
	fd    int
	epoll int
}

// openPort finds a port by its name and opens it.
func openPort(name string, timeout time.Duration) (io.ReadWriter, error) {
	var node string
	err := awaitDevice(timeout, func() (bool, error) {
		const class = "/sys/class/virtio-ports/"
		ports, _ := os.ReadDir(class)
		for _, p := range ports {
			got, err := os.ReadFile(class + p.Name() + "/name")
			if err == nil && strings.TrimSpace(string(got)) == name {
				node = "/dev/" + p.Name()
				return true, nil
			}
		}
		return false, nil
	})
	if err != nil {
		return nil, fmt.Errorf("virtio-serial port %s: %w", api.AgentPortName, err)
	}
	fd, err := unix.Open(node, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", node, err)
	}
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, err
	}
	// Edge-triggered: while no host is there the port is permanently hung up, but says so once per change only.
	ev := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLHUP | unix.EPOLLET&0xffffffff}
	if err := unix.EpollCtl(ep, unix.EPOLL_CTL_ADD, fd, &ev); err != nil {
		return nil, err
	}
	return &port{fd: fd, epoll: ep}, nil
}

// Read blocks in the kernel while a host is connected, and until one is.
func (p *port) Read(b []byte) (int, error) {
	for {
		n, err := unix.Read(p.fd, b)
		if n > 0 {
			return n, nil
		}
		if err != nil && err != unix.EINTR {
			return 0, fmt.Errorf("read agent port: %w", err)
		}
		if err == nil {
			var events [1]unix.EpollEvent
			if _, err := unix.EpollWait(p.epoll, events[:], -1); err != nil && err != unix.EINTR {
				return 0, fmt.Errorf("wait for the host: %w", err)
			}
		}
	}
}

// Write blocks while no host is connected.
func (p *port) Write(b []byte) (int, error) {
	done := 0
	for done < len(b) {
		n, err := unix.Write(p.fd, b[done:])
		if err != nil && err != unix.EINTR && err != unix.EAGAIN {
			return done, fmt.Errorf("write agent port: %w", err)
		}
		if n > 0 {
			done += n
		}
	}
	return done, nil
}
