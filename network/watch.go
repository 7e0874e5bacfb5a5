package network

import (
	"errors"
	"net"
	"os"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/cradlevm/cradle/network/dump"
)

// settle is how long changes are let gather before they are looked at: a reload of a firewall is many messages.
const settle = 200 * time.Millisecond

// rtnlgrpLink and nfnlgrpNFTables are the groups of netlink that tell of interfaces and of nftables.
const rtnlgrpLink, nfnlgrpNFTables = 1, 7

// watch listens for changes of interfaces and rules by whomever, and has them repaired.
type watch struct {
	stop    chan struct{}
	poke    chan struct{}
	sockets []*os.File
	running sync.WaitGroup
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
		w.running.Go(func() { w.listen(socket) })
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
		n.watching.wake()
	}
}

func (w *watch) wake() {
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

// listen wakes the watch at every message, whatever it says: what is the case is found by looking. That messages were lost
// is a message too.
func (w *watch) listen(socket *os.File) {
	buf := make([]byte, 1<<16)
	for {
		_, err := socket.Read(buf)
		if err != nil && !errors.Is(err, unix.ENOBUFS) {
			return // closed
		}
		w.wake()
	}
}

func (n *kernel) keepRepaired(w *watch) {
	slow := time.NewTicker(time.Minute)
	defer slow.Stop()
	told := map[string]bool{} // endpoints that were lost
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
		err := n.look(&r, thorough)
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
			if !told[id] && n.lost != nil {
				told[id] = n.lost(id)
			}
		}
	}
}

// look repairs what is wrong. Most changes are our own, and nobody is to wait for a look at them: it is had without the lock.
func (n *kernel) look(r *Report, thorough bool) error {
	n.mu.Lock()
	h := n.hostState()
	n.mu.Unlock()
	intact := len(h.networks) == 0 || n.firewall.intact(h)
	all, err := dump.Whole(netlink.LinkList)
	if err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	byName := map[string]netlink.Link{}
	for _, l := range all {
		byName[l.Attrs().Name] = l
	}
	if thorough || !intact || !n.linked(byName) {
		err = n.repair(r, thorough)
	}
	if !intact && !thorough {
		err = errors.Join(err, n.repairFirewall(r))
	}
	r.Lost = nil
	for _, e := range n.endpoints {
		if byName[e.TAP] == nil && !linkExists(e.TAP) { // nor was it made after the list
			r.Lost = append(r.Lost, e.ID)
		}
	}
	return err
}

// linked tells whether all bridges are up, and all TAPs on theirs.
func (n *kernel) linked(byName map[string]netlink.Link) bool {
	for _, k := range n.networks {
		if len(k.Subnets) == 0 {
			continue
		}
		b := byName[k.Bridge]
		if b == nil || b.Attrs().Alias != n.links.alias || b.Attrs().Flags&net.FlagUp == 0 {
			return false
		}
	}
	for _, e := range n.endpoints {
		k, tap := n.networks[e.Network], byName[e.TAP]
		if tap != nil && !connected(&k.Network, tap, byName[k.Bridge]) {
			return false
		}
	}
	return true
}
