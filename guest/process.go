package guest

import (
	"bytes"
	"context"
	"io"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cradlevm/cradle/api"
	"golang.org/x/sys/unix"
)

// process is a container's first process or an exec, from its start until it is deleted.
type process struct {
	io      *stdio
	journal *journal
	exited  chan struct{} // closed once status is set
	gone    chan struct{} // closed when the process is forgotten; nobody will read what is left
	forget  func()

	// oom reports how often the kernel has killed for memory in the container. Of its first process only: docker says it of
	// containers, whichever of their processes it was and however they end.
	oom func() uint64

	stdinTurn chan struct{} // holds a token while a MethodStdin is served
	stdinEnd  sync.Once

	mu     sync.Mutex
	pid    int
	pidfd  int
	status api.ExitStatus

	// left counts what is still to come for the journal: the ends of the output's streams, and the exit.
	left atomic.Int32

	outMu sync.Mutex
	turn  chan struct{} // closed to end the current MethodOutput; nil without one
}

func newProcess(s *stdio) *process {
	p := &process{
		io: s, journal: newJournal(), exited: make(chan struct{}), gone: make(chan struct{}),
		stdinTurn: make(chan struct{}, 1), pidfd: -1,
	}
	p.left.Store(1 + int32(len(s.outputs())))
	p.forget = sync.OnceFunc(func() {
		close(p.gone)
		p.endOutput(nil)
	})
	return p
}

// run has launch start the process, registers it with the reaper, and moves its output from then on.
func (p *process) run(r *reaper, start func() (pid, pidfd int, err error)) error {
	err := r.launch(func() (int, error) {
		pid, pidfd, err := start()
		p.mu.Lock()
		defer p.mu.Unlock()
		p.pid, p.pidfd = pid, pidfd
		return pid, err
	}, p.exit)
	p.io.closeChild()
	if err != nil {
		p.io.closeParent()
		return err
	}
	for i, f := range p.io.outputs() {
		go func() {
			makeWaitRoom()
			pump(f, api.Stdout+byte(i), p.journal, p.gone)
			p.ended()
		}()
	}
	return nil
}

// ended is called when one of those that are left has come. The journal is complete after the last one.
func (p *process) ended() {
	if p.left.Add(-1) == 0 {
		p.journal.close()
		p.io.closeParent()
	}
}

// exit is called by the reaper.
func (p *process) exit(ws unix.WaitStatus) {
	code := ws.ExitStatus()
	if ws.Signaled() {
		code = 128 + int(ws.Signal())
	}
	p.mu.Lock()
	p.status = api.ExitStatus{Code: code, UnixNanos: time.Now().UnixNano()}
	if p.oom != nil {
		p.status.OOMKilled = p.oom() > 0
	}
	if p.pidfd >= 0 {
		unix.Close(p.pidfd)
		p.pidfd = -1
	}
	p.mu.Unlock()
	close(p.exited)
	// The process's own exit ends its output, though a background process may still hold the pipe.
	for _, f := range p.io.outputs() {
		f.SetReadDeadline(time.Unix(1, 0))
	}
	p.ended()
}

// id is the process's id in the agent's PID namespace.
func (p *process) id() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.pid
}

func (p *process) running() bool {
	select {
	case <-p.exited:
		return false
	default:
		return true
	}
}

// exiting is PF_EXITING of the kernel's linux/sched.h.
const exiting = 4

// ending tells whether the process exits or has exited, be it that the reaper has not come to it yet. The first of a PID
// namespace is no zombie before all others there are gone, but takes no new ones meanwhile. proc is a descriptor of /proc.
func (p *process) ending(proc int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.pidfd < 0 {
		return true
	}
	fd, err := unix.Openat(proc, strconv.Itoa(p.pid)+"/stat", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err == unix.ENOENT
	}
	defer unix.Close(fd)
	var b [4096]byte
	n, _ := unix.Read(fd, b[:])
	// The name is in parentheses and may contain any byte; the flags are the seventh field after it.
	stat := b[:max(0, n)]
	f := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(f) < 7 {
		return false
	}
	flags, _ := strconv.ParseUint(string(f[6]), 10, 64)
	return flags&exiting != 0
}

// wait answers once the process has exited.
func (p *process) wait(ctx context.Context) (*api.ExitStatus, error) {
	select {
	case <-p.exited:
	case <-p.gone:
		return nil, api.Errorf(api.CodeNotFound, "the process has been deleted")
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	s := p.result()
	return &s, nil
}

// result is how the process ended; it has exited.
func (p *process) result() api.ExitStatus {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.status
}

// signal reaches this very process or none: the descriptor cannot come to mean another one.
func (p *process) signal(sig int) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.pidfd < 0 {
		return api.Errorf(api.CodeFailedPrecondition, "the process is not running")
	}
	err := unix.PidfdSendSignal(p.pidfd, unix.Signal(sig), nil, 0)
	if err == unix.ESRCH {
		return api.Errorf(api.CodeFailedPrecondition, "the process has exited")
	}
	return err
}

// resize sets the terminal's size.
func (p *process) resize(width, height uint16) error {
	if p.io.console == nil {
		return api.Errorf(api.CodeFailedPrecondition, "the process has no terminal")
	}
	raw, err := p.io.console.SyscallConn()
	if err != nil {
		return api.Errorf(api.CodeFailedPrecondition, "the terminal is closed")
	}
	ws := &unix.Winsize{Col: width, Row: height}
	var ioctlErr error
	if err := raw.Control(func(fd uintptr) { ioctlErr = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, ws) }); err != nil {
		return api.Errorf(api.CodeFailedPrecondition, "the terminal is closed")
	}
	return ioctlErr
}

// serveStdin feeds the process from a stream, after whoever does so already. The answer to the call has been given.
func (p *process) serveStdin(ctx context.Context, stream io.Reader) {
	select {
	case p.stdinTurn <- struct{}{}:
		defer func() { <-p.stdinTurn }()
	case <-p.exited:
		return
	case <-ctx.Done():
		return
	}
	// A session that ends must not leave a writer behind that is stuck in a full pipe.
	stop := context.AfterFunc(ctx, func() { p.io.stdin.SetWriteDeadline(time.Unix(1, 0)) })
	exited := make(chan struct{})
	go func() {
		select {
		case <-p.exited:
			p.io.stdin.SetWriteDeadline(time.Unix(1, 0))
		case <-exited:
		}
	}()
	ended, _ := p.io.feed(stream)
	close(exited)
	stop()
	if ended {
		p.stdinEnd.Do(p.io.endInput)
		return
	}
	if p.running() {
		p.io.stdin.SetWriteDeadline(time.Time{})
	}
}
