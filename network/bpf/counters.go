package bpf

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"

	"github.com/cradlevm/cradle/network/egress"
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

// setCounted has what rules of these ids decide about counted for a device, from zero or from what they have counted so far, and
// nothing else.
func (g *Guards) setCounted(ifindex int, ids map[uint64]bool) error {
	var old []decidedKey
	err := g.eachDecided(ifindex, func(k decidedKey, _ []egress.Count) { old = append(old, k) })
	if err != nil {
		return err
	}
	for _, k := range old {
		if ids[k.Rule] {
			continue
		}
		if err := g.decided.Delete(k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("remove a rule's counter: %w", err)
		}
	}
	zeros := make([]egress.Count, ebpf.MustPossibleCPU())
	for id := range ids {
		err := g.decided.Update(decidedKey{Ifindex: uint32(ifindex), Rule: id}, zeros, ebpf.UpdateNoExist)
		if err != nil && !errors.Is(err, ebpf.ErrKeyExist) {
			return fmt.Errorf("make a rule's counter: %w", err)
		}
	}
	return nil
}

func (g *Guards) eachDecided(ifindex int, do func(decidedKey, []egress.Count)) error {
	var (
		k      decidedKey
		perCPU []egress.Count
	)
	it := g.decided.Iterate()
	for it.Next(&k, &perCPU) {
		if k.Ifindex == uint32(ifindex) {
			do(k, perCPU)
		}
	}
	if err := it.Err(); err != nil {
		return fmt.Errorf("read counters of rules: %w", err)
	}
	return nil
}

// Decided is what a device's rules have decided about, by their ids.
func (g *Guards) Decided(ifindex int) (map[uint64]egress.Count, error) {
	all := map[uint64]egress.Count{}
	err := g.eachDecided(ifindex, func(k decidedKey, perCPU []egress.Count) {
		var sum egress.Count
		for _, c := range perCPU {
			sum.Packets += c.Packets
			sum.Bytes += c.Bytes
		}
		all[k.Rule] = sum
	})
	return all, err
}

// Count adds one to what a rule of a device's has decided about, if it is counted. The programs must not know the rule, and
// nobody else may count for it at the same time.
func (g *Guards) Count(ifindex int, rule uint64) error {
	k := decidedKey{Ifindex: uint32(ifindex), Rule: rule}
	var perCPU []egress.Count
	err := g.decided.Lookup(k, &perCPU)
	if err == nil {
		perCPU[0].Packets++
		err = g.decided.Update(k, perCPU, ebpf.UpdateExist)
	}
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("count for a rule: %w", err)
	}
	return nil
}
