package network

import (
	"encoding/binary"
	"net/netip"
)

// DefaultPools are docker's: what networks without a subnet of their own get theirs from, with the size of each.
func DefaultPools() []Pool {
	pools := []Pool{}
	for i := 17; i < 32; i++ {
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{172, byte(i)}), 16)
		pools = append(pools, Pool{p, 16})
	}
	return append(pools, Pool{netip.MustParsePrefix("192.168.0.0/16"), 20})
}

// Pool is a range that subnets of Size bits are cut from.
type Pool struct {
	Prefix netip.Prefix
	Size   int
}

// cut returns the first subnet of the pools that overlaps with nothing.
func cut(pools []Pool, v4 bool, taken []netip.Prefix) (netip.Prefix, bool) {
	const bound = 1 << 16 // subnets looked at in a pool
	for _, pool := range pools {
		if pool.Prefix.Addr().Is4() != v4 {
			continue
		}
		p := netip.PrefixFrom(pool.Prefix.Masked().Addr(), pool.Size)
		for range bound {
			if !pool.Prefix.Contains(p.Addr()) {
				break
			}
			if !overlaps(p, taken) {
				return p, true
			}
			next := last(p).Next()
			if !next.IsValid() {
				break
			}
			p = netip.PrefixFrom(next, pool.Size)
		}
	}
	return netip.Prefix{}, false
}

func overlaps(p netip.Prefix, taken []netip.Prefix) bool {
	for _, t := range taken {
		if p.Overlaps(t) {
			return true
		}
	}
	return false
}

// leases are the addresses of one subnet that are not free.
type leases struct {
	subnet *Subnet
	used   map[netip.Addr]bool
	free   netip.Addr // none below it is free
}

func newLeases(s *Subnet) *leases {
	l := &leases{subnet: s, used: map[netip.Addr]bool{}, free: s.pool().Addr()}
	for _, a := range s.Aux {
		l.used[a] = true
	}
	if s.Gateway.IsValid() {
		l.used[s.Gateway] = true
	}
	l.used[s.Prefix.Addr()] = true // the network itself; of IPv6 the routers' anycast address
	if s.Prefix.Addr().Is4() {
		l.used[last(s.Prefix)] = true
	}
	return l
}

// pool is where addresses are given from.
func (s *Subnet) pool() netip.Prefix {
	if s.Range.IsValid() {
		return s.Range.Masked()
	}
	return s.Prefix
}

// take leases the lowest free address. It is false when there is none.
func (l *leases) take() (netip.Addr, bool) {
	pool := l.subnet.pool()
	for a := l.free; a.IsValid() && pool.Contains(a); a = a.Next() {
		if !l.used[a] {
			l.used[a] = true
			l.free = a.Next()
			return a, true
		}
	}
	return netip.Addr{}, false
}

// claim leases one address of the subnet. It is false when it is leased already.
func (l *leases) claim(a netip.Addr) bool {
	if l.used[a] {
		return false
	}
	l.used[a] = true
	return true
}

func (l *leases) release(a netip.Addr) {
	delete(l.used, a)
	if l.subnet.pool().Contains(a) && (!l.free.IsValid() || a.Less(l.free)) {
		l.free = a
	}
}

// hardwareAddr is docker's for an IPv4 address: no two endpoints of a network share it, and neighbours that remember an
// address are right about it when it comes back.
func hardwareAddr(a netip.Addr) [6]byte {
	m := [6]byte{0x02, 0x42}
	four := a.As4()
	copy(m[2:], four[:])
	return m
}

// localPool is where IPv6 subnets come from when nobody said: a unique local prefix (RFC 4193) that seed, something of this
// machine alone, makes improbable elsewhere.
func localPool(seed uint64) Pool {
	a := [16]byte{0xfd}
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], seed)
	copy(a[1:6], b[:])
	return Pool{netip.PrefixFrom(netip.AddrFrom16(a), 48), 64}
}
