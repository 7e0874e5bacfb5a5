package guest

import (
	"errors"
	"io"
	"os"

	"github.com/cradlevm/cradle/api"
	"golang.org/x/sys/unix"
)

// stdio is a process's standard streams: the ends the agent keeps, and the ends the child gets.
type stdio struct {
	child   [3]int
	opened  []int    // what closeChild closes
	stdin   *os.File // nil: the child reads /dev/null
	out     *os.File // stdout, or the terminal
	err     *os.File // nil with a terminal
	console *os.File // the terminal's master, nil without one
}

// pipes makes the streams of a process without a terminal.
func pipes(stdinOpen bool) (s *stdio, err error) {
	s = &stdio{}
	defer func() {
		if err != nil {
			s.closeChild()
			s.closeParent()
		}
	}()
	if stdinOpen {
		r, w, err := pipe()
		if err != nil {
			return s, err
		}
		s.child[0], s.stdin = r, parentEnd(w)
	} else {
		fd, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return s, err
		}
		s.child[0] = fd
	}
	s.opened = append(s.opened, s.child[0])
	for i, end := range []**os.File{&s.out, &s.err} {
		r, w, err := pipe()
		if err != nil {
			return s, err
		}
		s.child[i+1], *end = w, parentEnd(r)
		s.opened = append(s.opened, w)
	}
	return s, nil
}

func pipe() (r, w int, err error) {
	var p [2]int
	err = unix.Pipe2(p[:], unix.O_CLOEXEC)
	return p[0], p[1], err
}

// parentEnd makes fd a file that Go's poller waits on, so that a blocked reader costs no thread.
func parentEnd(fd int) *os.File {
	unix.SetNonblock(fd, true)
	return os.NewFile(uintptr(fd), "stdio")
}

// terminal opens a new terminal in the devpts of the calling thread's root. Nothing in the container can take part:
// what /dev/pts/ptmx names is checked, and the slave comes from the master, not from a path.
func terminal(stdinOpen bool, size *unix.Winsize) (*stdio, error) {
	fd, err := unix.Open("/dev/pts/ptmx", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOCTTY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, api.Errorf(api.CodeInvalid, "a terminal needs devpts at /dev/pts: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != unix.Mkdev(5, 2) {
		unix.Close(fd)
		return nil, api.Errorf(api.CodeInvalid, "/dev/pts/ptmx is not a terminal multiplexer")
	}
	slave, err := openSlave(fd)
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	if size != nil {
		unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, size)
	}
	master := os.NewFile(uintptr(fd), "terminal")
	s := &stdio{child: [3]int{slave, slave, slave}, opened: []int{slave}, out: master, console: master}
	if stdinOpen {
		s.stdin = master
	}
	return s, nil
}

func openSlave(master int) (int, error) {
	if err := unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 0); err != nil {
		return -1, err
	}
	fd, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(master), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		return -1, errno
	}
	return int(fd), nil
}

// closeChild closes the ends that only the child should have.
func (s *stdio) closeChild() {
	for _, fd := range s.opened {
		unix.Close(fd)
	}
	s.opened = nil
}

func (s *stdio) closeParent() {
	for _, f := range []*os.File{s.stdin, s.out, s.err} {
		if f != nil {
			f.Close() // a second close of the terminal is an error, and no harm
		}
	}
}

// outputs are stdout, or the terminal, and stderr, if it is another one.
func (s *stdio) outputs() []*os.File {
	if s.err == nil {
		return []*os.File{s.out}
	}
	return []*os.File{s.out, s.err}
}

// pump moves what the process writes to a stream into its journal until the other ends are closed or, once a read deadline
// has passed, nothing is left.
func pump(f *os.File, stream byte, j *journal, give <-chan struct{}) {
	buf := make([]byte, 2<<10)
	for {
		n, err := f.Read(buf)
		if n > 0 && !j.write(stream, buf[:n], give) {
			return
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			drain(f, stream, j, give)
			return
		}
		if err != nil {
			return // EOF, or EIO from a terminal that nobody holds open
		}
		if n == len(buf) && n < api.MaxOutputChunk {
			buf = make([]byte, min(4*n, api.MaxOutputChunk))
		}
	}
}

// drain takes what lies in the pipe now, and no more: what was written before the exit is in there.
func drain(f *os.File, stream byte, j *journal, give <-chan struct{}) {
	raw, err := f.SyscallConn()
	if err != nil {
		return
	}
	left := 64 << 10
	raw.Control(func(fd uintptr) {
		if n, err := unix.FcntlInt(fd, unix.F_GETPIPE_SZ, 0); err == nil {
			left = n
		}
	})
	buf := make([]byte, api.MaxOutputChunk)
	for left > 0 {
		n := 0
		raw.Control(func(fd uintptr) {
			n, err = unix.Read(int(fd), buf)
		})
		if err == unix.EINTR {
			continue
		}
		if n <= 0 || !j.write(stream, buf[:n], give) {
			return
		}
		left -= n
	}
}

// feed copies what the host sends into the process's standard input until the host ends it. It reports whether
// the end was reached, as opposed to a stream that broke or a process that no longer reads.
func (s *stdio) feed(from io.Reader) (ended bool, err error) {
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			if _, err := s.stdin.Write(buf[:n]); err != nil {
				return false, err
			}
		}
		if err == io.EOF {
			return true, nil
		}
		if err != nil {
			return false, err
		}
	}
}

// endInput closes the standard input; a terminal gets its end-of-file character instead.
func (s *stdio) endInput() {
	if s.console == nil {
		s.stdin.Close()
		return
	}
	eof := byte(4)
	raw, err := s.console.SyscallConn()
	if err != nil {
		return
	}
	raw.Control(func(fd uintptr) {
		if t, err := unix.IoctlGetTermios(int(fd), unix.TCGETS); err == nil {
			eof = t.Cc[unix.VEOF]
		}
	})
	s.console.Write([]byte{eof})
}
