package dockerapi

import (
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// watchHangup calls onHangup once the client has closed its connection altogether. A client that has only ended
// its input (half-close) is still there: reading cannot tell the two apart, poll can. stop ends the watch.
//
// On TCP a closed peer looks half-closed until it resets, which keep-alive probes make it do.
func watchHangup(conn net.Conn, onHangup func()) (stop func()) {
	if t, ok := conn.(interface{ NetConn() net.Conn }); ok { // TLS
		conn = t.NetConn()
	}
	filer, ok := conn.(interface{ File() (*os.File, error) })
	if !ok {
		return func() {}
	}
	// A second descriptor has a poll registration of its own, so that this waits beside the connection's readers
	// and writers and costs no reads.
	f, err := filer.File()
	if err != nil {
		return func() {}
	}
	raw, err := f.SyscallConn()
	if err != nil {
		_ = f.Close()
		return func() {}
	}
	go func() {
		gone := false
		_ = raw.Read(func(fd uintptr) bool {
			fds := []unix.PollFd{{Fd: int32(fd)}} // POLLHUP and POLLERR are always asked for
			n, err := unix.Poll(fds, 0)
			gone = err == nil && n > 0 && fds[0].Revents&(unix.POLLHUP|unix.POLLERR) != 0
			return gone
		})
		if gone {
			onHangup()
		}
	}()
	return func() { _ = f.Close() }
}
