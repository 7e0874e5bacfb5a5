package vmtest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/cradlevm/cradle/vm"
	"github.com/cradlevm/cradle/vm/vmtest/guestapi"
	"golang.org/x/sys/unix"
)

// tap is a TAP device in a network namespace of its own, and a socket on it.
type tap struct {
	nic    vm.NIC
	socket int
}

// tapName is the device's name: there is one in each namespace.
const tapName = "cradletap0"

// newTAP makes a persistent TAP device in a new namespace; it goes with the test.
func newTAP(t *testing.T) *tap {
	t.Helper()
	p := &tap{nic: vm.NIC{TAP: tapName, NetNS: filepath.Join(t.TempDir(), "netns")}}
	made := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread's namespace is not to be anybody else's
		made <- p.make()
	}()
	if err := <-made; err != nil {
		t.Fatalf("make a TAP device: %v", err)
	}
	t.Cleanup(func() {
		unix.Close(p.socket)
		if err := unix.Unmount(p.nic.NetNS, 0); err != nil {
			t.Error(err)
		}
	})
	return p
}

// make makes namespace, device and socket on a thread that is thrown away.
func (p *tap) make() error {
	if err := os.WriteFile(p.nic.NetNS, nil, 0o600); err != nil {
		return err
	}
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return err
	}
	self := fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid())
	if err := unix.Mount(self, p.nic.NetNS, "", unix.MS_BIND, ""); err != nil {
		return err
	}
	tun, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(tun)
	req, err := unix.NewIfreq(p.nic.TAP)
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(tun, unix.TUNSETIFF, req); err != nil {
		return err
	}
	if err := unix.IoctlSetInt(tun, unix.TUNSETPERSIST, 1); err != nil {
		return err
	}
	const protocol = guestapi.FrameType>>8 | guestapi.FrameType&0xff<<8
	if p.socket, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol); err != nil {
		return err
	}
	if err := unix.IoctlIfreq(p.socket, unix.SIOCGIFINDEX, req); err != nil {
		return err
	}
	index := int(req.Uint32())
	req.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(p.socket, unix.SIOCSIFFLAGS, req); err != nil {
		return err
	}
	return unix.Bind(p.socket, &unix.SockaddrLinklayer{Protocol: protocol, Ifindex: index})
}

// receive waits for a frame of the guest's.
func (p *tap) receive(t *testing.T) []byte {
	t.Helper()
	ready := []unix.PollFd{{Fd: int32(p.socket), Events: unix.POLLIN}}
	b := make([]byte, 2048)
	for end := time.Now().Add(limit); ; {
		n, err := unix.Poll(ready, max(0, int(time.Until(end).Milliseconds())))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n == 0 {
			t.Fatalf("no frame from the guest (%v)", err)
		}
		n, from, err := unix.Recvfrom(p.socket, b, 0)
		if err != nil {
			t.Fatal(err)
		}
		if l, ok := from.(*unix.SockaddrLinklayer); ok && l.Pkttype == unix.PACKET_OUTGOING {
			continue // ours
		}
		return b[:n]
	}
}

func (p *tap) send(b []byte) error {
	_, err := unix.Write(p.socket, b)
	return err
}
