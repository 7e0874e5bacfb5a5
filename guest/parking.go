package guest

import (
	"fmt"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"
)

// parking is a network namespace in which interfaces are that nobody uses: a machine has more of them than its
// container has networks.
type parking struct {
	home, there int        // namespaces: the machine's, and this one
	nl          *rtnetlink // of this one, which it belongs to for ever
}

// newParking makes the namespace. The thread that does so ends, and is nobody else's.
func newParking() (*parking, error) {
	type result struct {
		p   *parking
		err error
	}
	made := make(chan result)
	go func() {
		runtime.LockOSThread() // never unlocked
		p, err := openParking()
		made <- result{p, err}
	}()
	r := <-made
	return r.p, r.err
}

func openParking() (*parking, error) {
	const self = "/proc/thread-self/ns/net"
	home, err := unix.Open(self, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open the network namespace: %w", err)
	}
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		unix.Close(home)
		return nil, fmt.Errorf("make a network namespace: %w", err)
	}
	there, err := unix.Open(self, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		unix.Close(home)
		return nil, fmt.Errorf("open the parked interfaces' namespace: %w", err)
	}
	nl, err := openNetlink()
	if err != nil {
		unix.Close(home)
		unix.Close(there)
		return nil, err
	}
	return &parking{home: home, there: there, nl: nl}, nil
}

// parkedName is what the interface in a slot is called while it is parked.
func parkedName(slot int) string { return "slot" + strconv.Itoa(slot) }

// put parks an interface of the machine's namespace, which nl is of. It is down then and has no addresses.
func (p *parking) put(nl *rtnetlink, name string, slot int) error {
	index, err := interfaceIndex(nl.fd, name)
	if err != nil {
		return err
	}
	return nl.link(index, false, p.move(p.there, parkedName(slot)))
}

// take moves the interface in a slot to the machine's namespace, with a name and attributes.
func (p *parking) take(slot int, name string, attributes []byte) error {
	index, err := interfaceIndex(p.nl.fd, parkedName(slot))
	if err != nil {
		return err
	}
	if err := p.nl.link(index, false, attributes); err != nil {
		return err
	}
	return p.nl.link(index, false, p.move(p.home, name))
}

// move are the attributes that move an interface.
func (p *parking) move(to int, name string) []byte {
	attributes := attribute32(nil, unix.IFLA_NET_NS_FD, uint32(to))
	return attribute(attributes, unix.IFLA_IFNAME, append([]byte(name), 0))
}

// interfaceIndex is the kernel's number of an interface in the namespace that a socket is of.
func interfaceIndex(socket int, name string) (int, error) {
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return 0, err
	}
	if err := unix.IoctlIfreq(socket, unix.SIOCGIFINDEX, ifr); err != nil {
		return 0, fmt.Errorf("find interface %s: %w", name, err)
	}
	return int(ifr.Uint32()), nil
}
