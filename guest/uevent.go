package guest

import (
	"errors"
	"time"

	"golang.org/x/sys/unix"
)

var errTimeout = errors.New("timed out")

// awaitDevice calls found until it reports true: once at first, then after each of the kernel's uevents. The socket
// is open before the first look, so no device can appear unseen in between.
func awaitDevice(timeout time.Duration, found func() (bool, error)) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1}); err != nil {
		return err
	}
	deadline := time.Now().Add(timeout)
	buf := make([]byte, 4096)
	for {
		if ok, err := found(); ok || err != nil {
			return err
		}
		left := time.Until(deadline)
		if left <= 0 {
			return errTimeout
		}
		tv := unix.NsecToTimeval(int64(left) + 1000)
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
			return err
		}
		// Whatever the event says (or that some were lost, ENOBUFS), the answer is to look again.
		_, _, err := unix.Recvfrom(fd, buf, 0)
		if err != nil && err != unix.EAGAIN && err != unix.EINTR && err != unix.ENOBUFS {
			return err
		}
	}
}
