package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// newSocketSuffix marks a socket that is not yet in its place.
const newSocketSuffix = "~"

// listen takes the socket systemd hands over, or makes one at path, for the owner and the group only. made is
// the path of a socket that is ours to remove again.
func listen(path string) (l *net.UnixListener, made string, err error) {
	if l, err := activated(os.Getenv, os.Getpid(), 3); l != nil || err != nil {
		return l, "", err
	}
	l, err = makeSocket(path)
	return l, path, err
}

func makeSocket(path string) (*net.UnixListener, error) {
	if err := clearSocket(path); err != nil {
		return nil, err
	}
	// Made under another name and moved, so that nobody connects before the permissions are right.
	fresh := path + newSocketSuffix
	if err := clearSocket(fresh); err != nil {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: fresh, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	err = os.Chmod(fresh, 0o660)
	if err == nil {
		err = os.Rename(fresh, path)
	}
	if err != nil {
		return nil, errors.Join(err, l.Close(), os.Remove(fresh))
	}
	return l, nil
}

// clearSocket removes a socket that a killed daemon left behind, and nothing else.
func clearSocket(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() != os.ModeSocket {
		return fmt.Errorf("%s is in the way: not a socket", path)
	}
	if conn, err := net.Dial("unix", path); err == nil {
		_ = conn.Close()
		return fmt.Errorf("somebody else listens on %s", path)
	}
	return os.Remove(path)
}

// activated is the listening socket systemd passes to a process it starts for it (sd_listen_fds), or nil.
func activated(getenv env, pid, first int) (*net.UnixListener, error) {
	if getenv("LISTEN_PID") != strconv.Itoa(pid) {
		return nil, nil
	}
	n, err := strconv.Atoi(getenv("LISTEN_FDS"))
	if err != nil || n != 1 {
		return nil, fmt.Errorf("systemd passed LISTEN_FDS=%q, cradle takes one socket", getenv("LISTEN_FDS"))
	}
	syscall.CloseOnExec(first)
	f := os.NewFile(uintptr(first), "systemd socket")
	defer f.Close()
	l, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("the socket from systemd: %w", err)
	}
	u, ok := l.(*net.UnixListener)
	if !ok {
		_ = l.Close()
		return nil, fmt.Errorf("the socket from systemd is %s, not a unix socket", l.Addr().Network())
	}
	u.SetUnlinkOnClose(false)
	return u, nil
}

// idleListener counts the connections that are open, hijacked ones included, and notices when there has been
// none for a while.
type idleListener struct {
	*net.UnixListener
	path    string // removed on Close, before the socket closes; empty for a socket that is not ours to remove
	timeout time.Duration
	busy    func() bool
	idle    chan struct{}

	mu     sync.Mutex
	open   int
	timer  *time.Timer
	closed bool
}

// newIdleListener wraps l. A timeout of 0 never idles.
func newIdleListener(l *net.UnixListener, path string, timeout time.Duration, busy func() bool) *idleListener {
	i := &idleListener{UnixListener: l, path: path, timeout: timeout, busy: busy, idle: make(chan struct{})}
	if timeout > 0 {
		// Locked, for check may run before the timer is assigned.
		i.mu.Lock()
		defer i.mu.Unlock()
		i.timer = time.AfterFunc(timeout, i.check)
	}
	return i
}

// Idle is closed when the time has come.
func (i *idleListener) Idle() <-chan struct{} { return i.idle }

// Accept is net.Listener's. Until the socket is closed, who comes after the decision to end is turned away.
func (i *idleListener) Accept() (net.Conn, error) {
	for {
		conn, err := i.AcceptUnix()
		if err != nil {
			return nil, err
		}
		if c := i.count(conn); c != nil {
			return c, nil
		}
		_ = conn.Close()
	}
}

func (i *idleListener) count(conn *net.UnixConn) net.Conn {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.closed {
		return nil
	}
	i.open++
	if i.timer != nil {
		i.timer.Stop()
	}
	return &countedConn{UnixConn: conn, gone: sync.OnceFunc(i.connGone)}
}

func (i *idleListener) connGone() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.open--
	if i.open == 0 && i.timer != nil {
		i.timer.Reset(i.timeout)
	}
}

// check runs when the timer fires. Once it has decided, no connection is accepted any more: who comes too late
// sees its connection close unanswered, and starts a new daemon.
func (i *idleListener) check() {
	busy := i.busy != nil && i.busy()
	i.mu.Lock()
	defer i.mu.Unlock()
	switch {
	case i.closed || i.open > 0:
	case busy:
		i.timer.Reset(i.timeout)
	default:
		i.closed = true
		close(i.idle)
	}
}

// Close removes the socket, so that the next client finds none rather than a dead one, then stops listening.
func (i *idleListener) Close() error {
	i.mu.Lock()
	i.closed = true
	if i.timer != nil {
		i.timer.Stop()
	}
	path := i.path
	i.path = ""
	i.mu.Unlock()
	if path != "" {
		_ = os.Remove(path)
	}
	return i.UnixListener.Close()
}

// countedConn tells its listener when it is closed. It embeds the unix connection, so half-closing and peer
// credentials work through it.
type countedConn struct {
	*net.UnixConn
	gone func()
}

func (c *countedConn) Close() error {
	defer c.gone()
	return c.UnixConn.Close()
}
