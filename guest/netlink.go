package guest

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"
)

// rtnetlink is one socket for route netlink (rtnetlink(7)): requests that are acknowledged, one after the other.
type rtnetlink struct {
	fd  int
	seq uint32
}

func openNetlink() (*rtnetlink, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open rtnetlink: %w", err)
	}
	return &rtnetlink{fd: fd}, nil
}

func (n *rtnetlink) close() { unix.Close(n.fd) }

// attribute appends an rtattr to a message and pads it.
func attribute(message []byte, kind uint16, value []byte) []byte {
	message = binary.NativeEndian.AppendUint16(message, uint16(unix.SizeofRtAttr+len(value)))
	message = binary.NativeEndian.AppendUint16(message, kind)
	message = append(message, value...)
	for len(message)%unix.NLMSG_ALIGNTO != 0 {
		message = append(message, 0)
	}
	return message
}

func attribute32(message []byte, kind uint16, value uint32) []byte {
	return attribute(message, kind, binary.NativeEndian.AppendUint32(nil, value))
}

// do sends one request, whose body begins with the fixed header of its kind, and returns what the kernel answers.
func (n *rtnetlink) do(kind, flags uint16, body []byte) error {
	n.seq++
	m := binary.NativeEndian.AppendUint32(nil, uint32(unix.SizeofNlMsghdr+len(body)))
	m = binary.NativeEndian.AppendUint16(m, kind)
	m = binary.NativeEndian.AppendUint16(m, flags|unix.NLM_F_REQUEST|unix.NLM_F_ACK)
	m = binary.NativeEndian.AppendUint32(m, n.seq)
	m = binary.NativeEndian.AppendUint32(m, 0)
	m = append(m, body...)
	if err := unix.Sendto(n.fd, m, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	buf := make([]byte, 4096)
	for {
		got, _, err := unix.Recvfrom(n.fd, buf, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		answer := buf[:got]
		if got < unix.SizeofNlMsghdr+4 {
			return fmt.Errorf("rtnetlink answers %d bytes", got)
		}
		if binary.NativeEndian.Uint32(answer[8:]) != n.seq || binary.NativeEndian.Uint16(answer[4:]) != unix.NLMSG_ERROR {
			continue
		}
		if errno := -int32(binary.NativeEndian.Uint32(answer[unix.SizeofNlMsghdr:])); errno != 0 {
			return unix.Errno(errno)
		}
		return nil
	}
}

// link changes an interface: its flags (up or not), and what attributes, made by attribute, say.
func (n *rtnetlink) link(index int, up bool, attributes []byte) error {
	var flags uint32
	if up {
		flags = unix.IFF_UP
	}
	body := make([]byte, 4, unix.SizeofIfInfomsg+len(attributes))
	body = binary.NativeEndian.AppendUint32(body, uint32(index))
	body = binary.NativeEndian.AppendUint32(body, flags)
	body = binary.NativeEndian.AppendUint32(body, unix.IFF_UP)
	return n.do(unix.RTM_NEWLINK, 0, append(body, attributes...))
}
