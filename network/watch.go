package network

import (
	"encoding/binary"
	"errors"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// settle is how long changes are let gather before they are looked at: a reload of a firewall is many messages.
const settle = 200 * time.Millisecond

// rtnlgrpLink and nfnlgrpNFTables are the groups of netlink that tell of interfaces and of nftables.
const rtnlgrpLink, nfnlgrpNFTables = 1, 7

// watch listens for changes of interfaces and rules of ours by whomever, and has them repaired.
type watch struct {
	stop    chan struct{}
	poke    chan struct{} // there are changes
	sockets []*os.File
	running sync.WaitGroup

	mu   sync.Mutex
	seen changes
}

// changes are what is to be looked at. A host has many interfaces, of which few are ours, and rules of others' change, too.
type changes struct {
	links map[string]bool // interfaces, by name
	rules bool
	all   bool            // it is not known what has changed
	lost  map[string]bool // endpoints, to be looked for again
}

// startWatching is called with n.mu held. Without the kernel's messages there is a look every minute only.
func (n *kernel) startWatching() {
	if n.watching != nil {
		return
	}
	w := &watch{stop: make(chan struct{}), poke: make(chan struct{}, 1)}
	for protocol, group := range map[int]int{unix.NETLINK_ROUTE: rtnlgrpLink, unix.NETLINK_NETFILTER: nfnlgrpNFTables} {
		socket, err := subscribe(protocol, group)
		if err != nil {
			n.log.Warn("changes of the host's network are not told", "error", err)
			continue
		}
		w.sockets = append(w.sockets, socket)
		w.running.Go(func() { n.listen(w, socket) })
	}
	w.running.Go(func() { n.keepRepaired(w) })
	n.watching = w
}

// stopWatching must be called without n.mu.
func (n *kernel) stopWatching() {
	n.mu.Lock()
	w := n.watching
	n.watching = nil
	n.mu.Unlock()
	if w == nil {
		return
	}
	close(w.stop)
	for _, s := range w.sockets {
		s.Close()
	}
	w.running.Wait()
}

// poke has the watch look soon. It is called with n.mu held.
func (n *kernel) poke() {
	if n.watching != nil {
		n.watching.wake(changes{all: true})
	}
}

func (w *watch) wake(c changes) {
	w.mu.Lock()
	if w.seen.links == nil {
		w.seen.links = map[string]bool{}
	}
	for name := range c.links {
		w.seen.links[name] = true
	}
	w.seen.rules, w.seen.all = w.seen.rules || c.rules, w.seen.all || c.all
	w.mu.Unlock()
	select {
	case w.poke <- struct{}{}:
	default:
	}
}

func subscribe(protocol, group int) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, protocol)
	if err != nil {
		return nil, err
	}
	err = unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
	if err == nil {
		err = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, group)
	}
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), "netlink"), nil
}

// take is what has changed since the last time.
func (w *watch) take() changes {
	w.mu.Lock()
	defer w.mu.Unlock()
	c := w.seen
	w.seen = changes{}
	return c
}

// listen wakes the watch at every message that is about what is ours, whatever it says: what is the case is found by looking. That
// messages were lost is a message too.
func (n *kernel) listen(w *watch, socket *os.File) {
	buf := make([]byte, 1<<16)
	for {
		k, err := socket.Read(buf)
		if err != nil && !errors.Is(err, unix.ENOBUFS) {
			return // closed
		}
		c := changes{all: err != nil}
		if err == nil {
			c = n.changesIn(buf[:k])
		}
		if c.all || c.rules || len(c.links) > 0 {
			w.wake(c)
		}
	}
}

// changesIn are the changes of what is ours that messages of the kernel tell of. While a network waits for somebody else's
// interface to go, that may be any.
func (n *kernel) changesIn(b []byte) changes {
	c := changes{links: map[string]bool{}}
	messages, err := syscall.ParseNetlinkMessage(b)
	if err != nil {
		return changes{all: true}
	}
	for _, m := range messages {
		switch {
		case m.Header.Type>>8 == unix.NFNL_SUBSYS_NFTABLES && len(m.Data) >= nfgenmsg:
			c.rules = c.rules || attribute(m.Data[nfgenmsg:], tableName) == n.firewall.table
		case (m.Header.Type == unix.RTM_NEWLINK || m.Header.Type == unix.RTM_DELLINK) && len(m.Data) >= unix.SizeofIfInfomsg:
			attributes := m.Data[unix.SizeofIfInfomsg:]
			name := attribute(attributes, unix.IFLA_IFNAME)
			if strings.HasPrefix(name, n.links.tapPrefix) || attribute(attributes, unix.IFLA_IFALIAS) == n.links.alias {
				c.links[name] = true
			}
			c.all = c.all || n.waiting.Load()
		}
	}
	return c
}

// nfgenmsg is the size of what nftables' messages begin with, bytes; tableName is the attribute with the table's name in all that
// are about what is in a table.
const nfgenmsg, tableName = 4, 1

// attribute reads a string from a message's attributes; empty when it is not there.
func attribute(b []byte, kind uint16) string {
	for len(b) >= unix.SizeofNlAttr {
		size := int(binary.NativeEndian.Uint16(b))
		if size < unix.SizeofNlAttr || size > len(b) {
			return ""
		}
		if binary.NativeEndian.Uint16(b[2:])&0x3fff == kind {
			return strings.TrimRight(string(b[unix.SizeofNlAttr:size]), "\x00")
		}
		b = b[min((size+3)&^3, len(b)):]
	}
	return ""
}

func (n *kernel) keepRepaired(w *watch) {
	slow := time.NewTicker(time.Minute)
	defer slow.Stop()
	lost := map[string]bool{} // endpoints, and whether somebody was told
	complaint := ""           // the last one: what is in the way stays there for long
	for {
		thorough := false
		select {
		case <-w.stop:
			return
		case <-slow.C:
			thorough = true
		case <-w.poke:
			select {
			case <-w.stop:
				return
			case <-time.After(settle):
			}
		}
		var r Report
		c := w.take()
		c.lost = lost
		err := n.look(&r, c, thorough)
		if err == nil {
			complaint = ""
		} else if err.Error() != complaint {
			complaint = err.Error()
			n.log.Error("networks could not be repaired", "error", err)
		}
		if len(r.Made) > 0 {
			n.log.Warn("somebody has changed the host's network; ours is repaired", "made", r.Made)
		}
		for _, id := range r.Lost {
			if !lost[id] && n.lost != nil {
				lost[id] = n.lost(id)
			}
		}
	}
}
