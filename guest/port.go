package guest

import (
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/cradlevm/cradle/api"
	"golang.org/x/sys/unix"
)

// port is a virtio-serial port. Go's poller waits on it, so that whoever waits for the host holds neither a thread nor the
// processor that the Go runtime counts: a guest has one, and what else the agent does would wait until the runtime's monitor
// takes it back.
type port struct {
	file *os.File
	conn syscall.RawConn
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
	fd, err := unix.Open(node, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", node, err)
	}
	return newPort(os.NewFile(uintptr(fd), node))
}

func newPort(f *os.File) (*port, error) {
	conn, err := f.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", f.Name(), err)
	}
	return &port{f, conn}, nil
}

// Read waits while a host is connected and says nothing, and until one is: a read returns zero bytes at once then, and the
// poller, which is edge-triggered, tells of the host that comes.
func (p *port) Read(b []byte) (n int, err error) {
	wait := p.conn.Read(func(fd uintptr) bool {
		n, err = retry(unix.Read, fd, b)
		return n > 0 || err != nil && err != unix.EAGAIN
	})
	if wait != nil {
		err = wait
	}
	if err != nil {
		return 0, fmt.Errorf("read agent port: %w", err)
	}
	return n, nil
}

// Write waits while no host is connected.
func (p *port) Write(b []byte) (done int, err error) {
	wait := p.conn.Write(func(fd uintptr) bool {
		for done < len(b) {
			var n int
			if n, err = retry(unix.Write, fd, b[done:]); err != nil {
				return err != unix.EAGAIN
			}
			done += n
		}
		return true
	})
	if wait != nil {
		err = wait
	}
	if err != nil {
		return done, fmt.Errorf("write agent port: %w", err)
	}
	return done, nil
}

// retry does a system call on a descriptor until no signal interrupts it. An error comes with no bytes.
func retry(call func(fd int, b []byte) (int, error), fd uintptr, b []byte) (int, error) {
	for {
		if n, err := call(int(fd), b); err != unix.EINTR {
			return max(0, n), err
		}
	}
}
