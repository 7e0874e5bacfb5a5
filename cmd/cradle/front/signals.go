package front

import (
	"syscall"
	"unsafe"
)

// signals are those that come for a container. They are not handled but held, and read from a descriptor.
type signals struct {
	socket address
	fd     int    // a signalfd
	before uint64 // what was blocked before
	id     [128]byte
	size   int    // of the id; 0 until there is a container
	ends   int    // how many have asked for an end
	due    uint64 // those that are to be passed on
	kill   int    // a connection by which one is being passed on; 0 is none
}

// set is the set of one signal, as the kernel has it.
func set(n syscall.Signal) uint64 { return 1 << (n - 1) }

// setSize is that of a set, bytes.
const setSize = 8

// The two that the C libraries keep for themselves are left alone.
const libraries = 3 << (32 - 1)

// ours are this program's own business.
func ours() uint64 { return set(syscall.SIGCHLD) | set(syscall.SIGPIPE) | set(syscall.SIGURG) }

// hold keeps all signals back.
func (s *signals) hold() bool {
	all := ^uint64(libraries)
	const setMask = 2 // SIG_SETMASK
	_, _, errno := syscall.RawSyscall6(syscall.SYS_RT_SIGPROCMASK, setMask, uintptr(unsafe.Pointer(&all)), uintptr(unsafe.Pointer(&s.before)), setSize, 0, 0)
	if errno != 0 {
		return false
	}
	none := -1
	all &^= set(syscall.SIGPIPE) // a pipe without a reader is an error of the write
	fd, _, errno := syscall.RawSyscall6(syscall.SYS_SIGNALFD4, uintptr(none), uintptr(unsafe.Pointer(&all)), setSize, syscall.O_CLOEXEC|syscall.O_NONBLOCK, 0, 0)
	if s.fd = int(fd); errno != 0 {
		s.fd = -1
		return s.release()
	}
	return true
}

// release gives back the signals, those that have come included, and returns false.
func (s *signals) release() bool {
	closeFile(s.fd)
	const setMask = 2
	syscall.RawSyscall6(syscall.SYS_RT_SIGPROCMASK, setMask, uintptr(unsafe.Pointer(&s.before)), 0, setSize, 0, 0)
	return false
}

// forward has signals passed on to a container from now on.
func (s *signals) forward(id string) bool {
	s.size = copy(s.id[:], id)
	return s.size == len(id)
}

// await waits until there is something to read from fd, and passes signals on meanwhile. The third that asks for an end
// is the end of its patience, as it is with docker's own, whether the daemon answers or not.
func (s *signals) await(fd int) {
	for {
		s.pass()
		files := [3]pollFile{{fd: int32(fd), events: pollIn}, {fd: int32(s.fd), events: pollIn}, {fd: -1}}
		if s.kill != 0 {
			files[2] = pollFile{fd: int32(s.kill), events: pollIn}
		}
		await(files[:])
		if files[2].revents != 0 { // whatever comes of it: a container that has ended is no error
			closeFile(s.kill)
			s.kill = 0
		}
		if files[1].revents != 0 {
			s.take()
		}
		if files[0].revents != 0 {
			return
		}
	}
}

// take takes a signal that has come.
func (s *signals) take() {
	var info [128]byte // struct signalfd_siginfo, which begins with the number
	n, _, errno := syscall.RawSyscall(syscall.SYS_READ, uintptr(s.fd), uintptr(unsafe.Pointer(&info)), uintptr(len(info)))
	if errno != 0 || n != uintptr(len(info)) {
		return
	}
	number := syscall.Signal(*(*uint32)(unsafe.Pointer(&info)))
	s.due |= set(number) &^ ours()
	if number == syscall.SIGINT || number == syscall.SIGTERM {
		if s.ends++; s.ends == 3 {
			say("\ngot 3 SIGTERM/SIGINTs, forcefully exiting\n")
			for {
				syscall.RawSyscall(syscall.SYS_EXIT_GROUP, 1, 0, 0)
			}
		}
	}
}

// pass passes the next signal on, when the one before has been.
func (s *signals) pass() {
	if s.due == 0 || s.kill != 0 {
		return
	}
	n := syscall.Signal(1)
	for s.due&set(n) == 0 {
		n++
	}
	s.due &^= set(n)
	fd := s.socket.dial()
	if fd < 0 {
		return
	}
	s.kill = fd
	var room [512]byte
	r := request{fd: fd, buf: room[:]}
	r.text("POST /containers/")
	r.text(unsafe.String(&s.id[0], s.size))
	r.text("/kill?signal=")
	r.number(int(n))
	r.text(" HTTP/1.1\r\nHost: cradle\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
	r.send()
}
