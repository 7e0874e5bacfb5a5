package bpf

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
)

// reasons are tap.c's, in its order; the first is none.
var reasons = [...]string{
	"", "unassigned", "runt", "vlan", "ethertype", "source-mac", "source-ipv4", "source-ipv6", "arp", "ndp", "router", "dhcp",
	"icmpv6", "multicast-report", "ip-options", "extension-header", "fragment", "checksum", "metadata", "policy", "rate", "reflection",
}

type counterKey struct{ Ifindex, Direction uint32 }

// countersValue is struct counters of tap.c.
type countersValue struct {
	Packets, Bytes uint64
	Dropped        [len(reasons)]uint64
}

// Counters of one direction.
type Counters struct {
	Packets uint64            `json:"packets"` // passed
	Bytes   uint64            `json:"bytes"`   // of those
	Dropped map[string]uint64 `json:"dropped"` // frames by reason; no zeros
}

// Drops is how many frames were dropped, for whatever reason.
func (c Counters) Drops() uint64 {
	var n uint64
	for _, d := range c.Dropped {
		n += d
	}
	return n
}

// Counters returns what a device's guest has sent, and what has reached it. ErrUnknown when nothing is counted for it.
func (g *Guards) Counters(ifindex int) (from, to Counters, err error) {
	for d, c := range map[direction]*Counters{fromGuest: &from, toGuest: &to} {
		var perCPU []countersValue
		err := g.counters.Lookup(counterKey{uint32(ifindex), uint32(d)}, &perCPU)
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			return Counters{}, Counters{}, ErrUnknown
		}
		if err != nil {
			return Counters{}, Counters{}, fmt.Errorf("read counters: %w", err)
		}
		c.Dropped = map[string]uint64{}
		for _, v := range perCPU {
			c.Packets += v.Packets
			c.Bytes += v.Bytes
			for r, n := range v.Dropped {
				if n > 0 {
					c.Dropped[reasons[r]] += n
				}
			}
		}
	}
	return from, to, nil
}
