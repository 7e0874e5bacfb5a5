// Command testguest is the /init of the conformance suite's guests: it speaks api/wire on the agent's port and
// does what package guestapi lists.
package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/cradlevm/cradle/api"
	"github.com/cradlevm/cradle/api/wire"
	"github.com/cradlevm/cradle/vm/vmtest/guestapi"
	"golang.org/x/sys/unix"
)

func main() {
	err := run()
	// The end of PID 1 is a kernel panic, whose message must name the reason.
	fmt.Println("testguest:", err)
	os.Exit(1)
}

func run() error {
	for _, m := range []struct{ what, dir string }{{"devtmpfs", "/dev"}, {"proc", "/proc"}, {"sysfs", "/sys"}} {
		if err := unix.Mount(m.what, m.dir, m.what, 0, ""); err != nil && err != unix.EBUSY {
			return fmt.Errorf("mount %s: %w", m.dir, err)
		}
	}
	if cmdline, _ := os.ReadFile("/proc/cmdline"); strings.Contains(string(cmdline), guestapi.Silent) {
		for { // not select{}, which the Go runtime calls a deadlock
			time.Sleep(time.Hour)
		}
	}
	p, err := openPort(api.AgentPortName)
	if err != nil {
		return err
	}
	l := wire.Listen(p)
	ready := uptime()
	held := &held{}
	held.kept.Store(&guestapi.Print{})
	for {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		go wire.Serve(conn, func(c *wire.Call) { handle(c, ready, held) })
	}
}

// port is a virtio-serial port whose reads block while no host is connected (the kernel's return 0 then).
type port struct{ *os.File }

func (p port) Read(b []byte) (int, error) {
	for {
		n, err := p.File.Read(b)
		if n > 0 || err != io.EOF {
			return n, err
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func openPort(name string) (io.ReadWriter, error) {
	for range 2000 {
		names, err := filepath.Glob("/sys/class/virtio-ports/*/name")
		if err != nil {
			return nil, err
		}
		for _, n := range names {
			if b, err := os.ReadFile(n); err == nil && strings.TrimSpace(string(b)) == name {
				f, err := os.OpenFile(filepath.Join("/dev", filepath.Base(filepath.Dir(n))), os.O_RDWR, 0)
				return port{f}, err
			}
		}
		time.Sleep(5 * time.Millisecond)
	}
	return nil, fmt.Errorf("no virtio-serial port %s", name)
}

func uptime() int64 {
	var ts unix.Timespec
	unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts)
	return ts.Nano()
}

// held is what the guest keeps from one call to the next.
type held struct {
	kept    atomic.Pointer[guestapi.Print]
	filling filling
}

func handle(c *wire.Call, ready int64, h *held) {
	result, err := answer(c, ready, h)
	if err != nil {
		c.Fail(err)
		return
	}
	c.Reply(result)
	after(c)
}

// print writes lines to the console by way of the kernel's log, at a level that "quiet" lets through: a console
// whose interrupt the kernel has not found prints the log, but is no terminal.
func print(text string) error {
	f, err := os.OpenFile("/dev/kmsg", os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	for line := range strings.Lines(text) {
		if _, err := f.WriteString("<3>" + line); err != nil {
			return err
		}
	}
	return nil
}

// answer does what can be done before the reply.
func answer(c *wire.Call, ready int64, h *held) (any, error) {
	switch c.Method {
	case api.MethodPing:
		var u unix.Utsname
		if err := unix.Uname(&u); err != nil {
			return nil, err
		}
		return api.PingResult{Protocol: api.ProtocolVersion, Kernel: unix.ByteSliceToString(u.Release[:]), UptimeNanos: uptime(), ReadyNanos: ready}, nil
	case guestapi.MethodInfo:
		return info()
	case guestapi.MethodDisks:
		return disks()
	case guestapi.MethodAwait:
		var p guestapi.Await
		if err := c.Params(&p); err != nil {
			return nil, err
		}
		return nil, await(c, p)
	case guestapi.MethodRead, guestapi.MethodWrite, guestapi.MethodDiscard:
		var e guestapi.Extent
		if err := c.Params(&e); err != nil {
			return nil, err
		}
		return access(c.Method, e)
	case guestapi.MethodPrint:
		var p guestapi.Print
		if err := c.Params(&p); err != nil {
			return nil, err
		}
		return nil, print(p.Text)
	case guestapi.MethodKeep:
		var p guestapi.Print
		if err := c.Params(&p); err != nil {
			return nil, err
		}
		return h.kept.Swap(&p), nil
	case guestapi.MethodCount:
		return counter()(), nil
	case guestapi.MethodChurn:
		seen, err := churn()
		if err != nil {
			return nil, err
		}
		return seen(), nil
	case guestapi.MethodProcessors:
		return processors()
	case guestapi.MethodFill:
		var bytes int64
		if err := c.Params(&bytes); err != nil {
			return nil, err
		}
		return nil, h.filling.hold(bytes)
	case guestapi.MethodNICs:
		return nics()
	case guestapi.MethodSendFrame, guestapi.MethodReceiveFrame:
		return network(c)
	case guestapi.MethodEcho, guestapi.MethodPanic, guestapi.MethodPowerOff, guestapi.MethodReset:
		return nil, nil
	}
	return nil, api.Errorf(api.CodeUnsupported, "no method %q", c.Method)
}

// after does what comes after the reply.
func after(c *wire.Call) {
	switch c.Method {
	case guestapi.MethodEcho:
		io.Copy(c.Stream, c.Stream)
	case guestapi.MethodPanic:
		c.Stream.Close()
		time.Sleep(20 * time.Millisecond) // let the reply out
		print("testguest: about to panic\n")
		os.Exit(1)
	case guestapi.MethodPowerOff:
		unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	case guestapi.MethodReset:
		unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	}
}
