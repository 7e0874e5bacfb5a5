package network

import (
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// maxFree is how many TAPs without a machine are kept for the next ones.
const maxFree = 32

// spares are TAPs that wait for a machine. To delete a TAP takes the kernel tens of milliseconds in which no other interface of
// the host can be changed; a TAP whose machine has gone is therefore cleaned and used again.
//
// # Why nothing of an earlier guest reaches a later one
//
// Frames on their way to a guest wait in two places: in the queue of the descriptor that the monitor had open, which the
// kernel frees with it, and in the device's queueing discipline, which is emptied when the device is taken down. Ours is
// the only other descriptor there ever is, since a TAP has one queue: that it can be opened shows that the monitor's is
// closed. A TAP that cannot be opened is deleted. What a monitor could have set on the device by its descriptor (filters,
// programs, header's form, owner, hardware address) is set back; its place on a bridge, with the bridge's entries for it,
// goes when it leaves the bridge; its guard's entry, rules, opened addresses, conversations, rates and counters are
// removed, so that it passes nothing, like a new one. It gets a new name, so that whoever names the old one, late
// or twice, does not touch what is another machine's by then.
type spares struct {
	links *links
	log   *slog.Logger
	ahead int // how many are made before they are asked for

	step sync.Mutex // held while one TAP is worked at: without it, every TAP is in one of the lists

	mu      sync.Mutex
	free    []string
	left    []string // by their machines, to be cleaned
	working bool
	closed  bool
	worker  sync.WaitGroup
}

// take returns a TAP that passes nothing, if there is one.
func (s *spares) take() (string, bool) {
	for {
		s.mu.Lock()
		if len(s.free) == 0 {
			s.work()
			s.mu.Unlock()
			return "", false
		}
		name := s.free[len(s.free)-1]
		s.free = s.free[:len(s.free)-1]
		s.work()
		s.mu.Unlock()
		if linkExists(name) { // nobody has deleted it meanwhile
			return name, true
		}
	}
}

// put takes a TAP, down and on no bridge, whose machine has gone.
func (s *spares) put(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.left = append(s.left, name)
	s.work()
}

// work has the worker look whether there is something to do. It is called with s.mu held.
func (s *spares) work() {
	if s.working || s.closed || (len(s.left) == 0 && len(s.free) >= s.ahead) {
		return
	}
	s.working = true
	s.worker.Go(func() {
		for s.one() {
		}
	})
}

// one does one thing that there is to do.
func (s *spares) one() bool {
	s.step.Lock()
	defer s.step.Unlock()
	s.mu.Lock()
	var name string
	ahead := false
	switch {
	case s.closed:
	case len(s.left) > 0:
		name, s.left = s.left[0], s.left[1:]
	default:
		ahead = len(s.free) < s.ahead
	}
	full := len(s.free) >= maxFree
	s.working = name != "" || ahead
	working := s.working
	s.mu.Unlock()
	if !working {
		return false
	}
	var err error
	switch {
	case ahead:
		name, err = s.links.makeTAP()
	case full:
		name, err = "", s.links.removeTAP(name)
	default:
		var clean string
		if clean, err = s.links.cleanTAP(name); err != nil {
			err = errors.Join(err, s.links.removeTAP(name))
			if clean != "" {
				err = errors.Join(err, s.links.removeTAP(clean))
			}
			clean = ""
		}
		name = clean
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		s.log.Warn("a TAP is not kept for the next machine", "error", err)
		if ahead { // it would be tried again and again
			s.working = false
			return false
		}
		return true
	}
	if name != "" {
		s.free = append(s.free, name)
	}
	return true
}

// hold keeps the worker from working until release is called, and returns the TAPs that are its own.
func (s *spares) hold() (names []string, release func()) {
	s.step.Lock()
	s.mu.Lock()
	defer s.mu.Unlock()
	return append(append(names, s.free...), s.left...), s.step.Unlock
}

// close ends the work, and returns the TAPs that are nobody's.
func (s *spares) close() []string {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.worker.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	all := append(s.free, s.left...)
	s.free, s.left = nil, nil
	return all
}

// cleanTAP makes a TAP that a machine has left like a new one. The name that it returns is the TAP's then; with an error,
// when there is one, the TAP may have either name.
func (l *links) cleanTAP(name string) (string, error) {
	tap, err := netlink.LinkByName(name)
	if notFound(err) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("clean TAP %s: %w", name, err)
	}
	fresh := l.newTAPName()
	mac := make([]byte, 6)
	rand.Read(mac)
	mac[0] = mac[0]&^1 | 2 // one address, of nobody's making
	for _, do := range []func() error{
		func() error { return l.disconnect(name) },
		func() error { return forgetMonitor(name) },
		func() error { return netlink.LinkSetHardwareAddr(tap, mac) },
		func() error { return l.guards.Forget(tap.Attrs().Index) },
		func() error { return netlink.LinkSetName(tap, fresh) },
		func() error { return l.prepareTAP(fresh) },
	} {
		if err := do(); err != nil {
			return fresh, fmt.Errorf("clean TAP %s: %w", name, err)
		}
	}
	return fresh, nil
}

// forgetMonitor sets back what can be set by a TAP's descriptor and stays with the device. EBUSY: somebody has it open.
func forgetMonitor(name string) error {
	fd, err := openTAP(name, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	const header, unlimited, root, none = 10, 1<<31 - 1, 0, -1
	var filter [4]byte // struct tun_filter: no flags, no addresses, which is no filter
	for _, set := range []struct {
		name string
		do   func() error
	}{
		{"TUNSETPERSIST", func() error { return unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 1) }},
		{"TUNSETOFFLOAD", func() error { return unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, 0) }},
		{"TUNSETVNETHDRSZ", func() error { return unix.IoctlSetPointerInt(fd, unix.TUNSETVNETHDRSZ, header) }},
		{"TUNSETVNETLE", func() error { return unix.IoctlSetPointerInt(fd, unix.TUNSETVNETLE, 0) }},
		{"TUNSETSNDBUF", func() error { return unix.IoctlSetPointerInt(fd, unix.TUNSETSNDBUF, unlimited) }},
		{"TUNSETOWNER", func() error { return unix.IoctlSetInt(fd, unix.TUNSETOWNER, root) }},
		{"TUNSETGROUP", func() error { return unix.IoctlSetInt(fd, unix.TUNSETGROUP, root) }},
		{"TUNDETACHFILTER", func() error { return ioctlPointer(fd, unix.TUNDETACHFILTER, make([]byte, 16)) }},
		{"TUNSETTXFILTER", func() error { return ioctlPointer(fd, unix.TUNSETTXFILTER, filter[:]) }},
		{"TUNSETFILTEREBPF", func() error { return unix.IoctlSetPointerInt(fd, unix.TUNSETFILTEREBPF, none) }},
		{"TUNSETSTEERINGEBPF", func() error { return unix.IoctlSetPointerInt(fd, unix.TUNSETSTEERINGEBPF, none) }},
	} {
		if err := set.do(); err != nil {
			return os.NewSyscallError(set.name, err)
		}
	}
	return nil
}

func ioctlPointer(fd int, request uint, arg []byte) error {
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), uintptr(request), uintptr(unsafe.Pointer(&arg[0]))); e != 0 {
		return e
	}
	return nil
}
