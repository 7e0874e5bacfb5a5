package front

import (
	"syscall"
	"unsafe"
)

// closeFile closes a descriptor; -1 is none.
func closeFile(fd int) {
	if fd >= 0 {
		syscall.RawSyscall(syscall.SYS_CLOSE, uintptr(fd), 0, 0)
	}
}

// exists tells whether there is something at a path, which ends with a zero byte, or whether that cannot be told.
func exists(path []byte) bool {
	here := -100 // AT_FDCWD; mode 0 asks for no more than that it is there
	_, _, errno := syscall.RawSyscall(syscall.SYS_FACCESSAT, uintptr(here), uintptr(unsafe.Pointer(&path[0])), 0)
	return errno != syscall.ENOENT
}

// write writes all of b.
func write(fd int, b []byte) syscall.Errno {
	for len(b) > 0 {
		n, _, errno := syscall.RawSyscall(syscall.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)))
		switch errno {
		case 0:
			b = b[n:]
		case syscall.EINTR:
		case syscall.EAGAIN: // somebody else has made it so
			files := [1]pollFile{{fd: int32(fd), events: pollOut}}
			await(files[:])
		default:
			return errno
		}
	}
	return 0
}

// say writes a text to where errors are told.
func say(text string) { write(stderr, unsafe.Slice(unsafe.StringData(text), len(text))) }

const (
	stdout = 1
	stderr = 2
)

// pollFile is a struct pollfd.
type pollFile struct {
	fd              int32
	events, revents int16
}

const (
	pollIn  = 1
	pollOut = 4
)

// await waits for one of the files. That there may be nothing is for the caller to find out.
func await(files []pollFile) {
	syscall.RawSyscall6(syscall.SYS_PPOLL, uintptr(unsafe.Pointer(&files[0])), uintptr(len(files)), 0, 0, 0, 0)
}

// digits writes a number in front of the end of room.
func digits(room *[20]byte, n int) []byte {
	at := len(room)
	for {
		at--
		room[at] = byte('0' + n%10)
		if n /= 10; n == 0 || at == 0 {
			return room[at:]
		}
	}
}
