package egress

import (
	"encoding/binary"
	"fmt"
	"maps"
	"net/netip"
	"sync"
	"time"
)

// Bounds of what a Filter remembers; who makes it remember more makes it forget something.
const (
	MaxOpened = 1024 // addresses that names have opened
	maxFlows  = 8192 // conversations
)

// How long a conversation may be silent. A TCP connection's end is not looked at: it is the guest's to be believed or not.
const (
	tcpFlow   = 5 * 24 * time.Hour
	otherFlow = 3 * time.Minute
)

// IP protocol numbers.
const (
	icmp = 1
	tcp  = 6
	udp  = 17
)

// Verdict on a packet.
type Verdict int

// Verdicts.
const (
	Pass     Verdict = iota
	Denied           // by a rule, or because none allows it
	Fragment         // its ports cannot be seen, or will not be for what follows
	Short            // it ends within the header of its upper layer
)

// Filter decides about the IPv4 packets of one endpoint. All methods may be called from any goroutine.
type Filter struct {
	gateway netip.Addr // whose resolver is always heard
	now     func() time.Time

	mu      sync.Mutex
	policy  Policy
	asks    bool
	opened  map[netip.Addr]opened
	flows   map[flow]conversation
	counts  map[uint64]*Count
	egress  bucket
	ingress bucket
}

type opened struct {
	until time.Time
	rules []Rule
}

// flow is a conversation as the guest sees it.
type flow struct {
	remote   netip.AddrPort
	local    uint16
	protocol uint8
}

// conversation was begun by others, or while a name was open.
type conversation struct {
	until time.Time
	rule  uint64 // of the name; 0: another began it
}

// NewFilter makes a filter that lets everything pass.
func NewFilter(gateway netip.Addr) *Filter {
	return &Filter{gateway: gateway, now: time.Now, opened: map[netip.Addr]opened{}, flows: map[flow]conversation{}, counts: map[uint64]*Count{}}
}

// Set replaces the policy: conversations that have begun are asked again, what names have opened is closed, and counters of rules
// that stay go on.
func (f *Filter) Set(p Policy) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.policy, f.asks = p, p.Asks()
	clear(f.opened)
	clear(f.flows)
	ids := p.IDs()
	maps.DeleteFunc(f.counts, func(id uint64, _ *Count) bool { return !ids[id] })
	for id := range ids {
		if f.counts[id] == nil {
			f.counts[id] = new(Count)
		}
	}
	f.egress, f.ingress = newBucket(p.Egress), newBucket(p.Ingress)
}

// Open lets the guest reach an address for so long, as far as the rules say; only their protocol, ports and ids matter. Nothing opens
// what a rule of the policy denies. An error when as many are open as may be.
func (f *Filter) Open(a netip.Addr, ttl time.Duration, rules []Rule) error {
	if len(rules) > MaxOpenRules {
		return fmt.Errorf("more than %d rules for one name", MaxOpenRules)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	now := f.now()
	maps.DeleteFunc(f.opened, func(_ netip.Addr, o opened) bool { return !o.until.After(now) })
	if _, there := f.opened[a]; !there && len(f.opened) >= MaxOpened {
		return fmt.Errorf("%d addresses are open", len(f.opened))
	}
	f.opened[a] = opened{now.Add(ttl), rules}
	return nil
}

// Count adds one to what a rule has decided about, if it is one of the policy's.
func (f *Filter) Count(id uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.count(id, 0)
}

func (f *Filter) count(id uint64, bytes int) {
	if c := f.counts[id]; c != nil {
		c.Packets++
		c.Bytes += uint64(bytes)
	}
}

// Counts are by the rules' ids.
func (f *Filter) Counts() map[uint64]Count {
	f.mu.Lock()
	defer f.mu.Unlock()
	all := map[uint64]Count{}
	for id, c := range f.counts {
		all[id] = *c
	}
	return all
}

// Spend tells whether a frame that the guest sends is within its rate, and takes it from that.
func (f *Filter) Spend(bytes int) bool { return f.spend(&f.egress, bytes) }

// SpendIngress is Spend for a frame that is to reach the guest.
func (f *Filter) SpendIngress(bytes int) bool { return f.spend(&f.ingress, bytes) }

func (f *Filter) spend(b *bucket, bytes int) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return !b.limited() || b.spend(f.now(), bytes)
}

// Send decides about a packet that the guest sends: a whole IPv4 header, whose lengths are right, and what follows. bytes is the
// frame's size, to be counted.
func (f *Filter) Send(packet []byte, bytes int) Verdict {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.asks {
		return Pass
	}
	p, verdict := parse(packet, false)
	if verdict != Pass {
		return verdict
	}
	if !p.fragmented && p.remote.Port() == 53 && p.remote.Addr() == f.gateway && (p.protocol == udp || p.protocol == tcp) {
		return Pass // or no name could ever be opened
	}
	if p.fragmented {
		return Fragment
	}
	verdict, id := f.ask(p)
	f.count(id, bytes)
	return verdict
}

// ask decides, and tells which rule does.
func (f *Filter) ask(p packet) (Verdict, uint64) {
	denied, id, spoken := false, uint64(0), false
	for _, r := range f.policy.Rules {
		if r.Prefix.Contains(p.remote.Addr()) && r.matches(p.protocol, p.remote.Port()) {
			denied, id, spoken = !r.Allow, r.ID, true
			break
		}
	}
	switch {
	case spoken && !denied:
		return Pass, id
	case !spoken && !f.policy.Deny:
		return Pass, DefaultAllow
	}
	now := f.now()
	if c, there := f.flows[p.flow]; there && c.until.After(now) {
		return Pass, c.rule
	}
	if denied {
		return Denied, id
	}
	if o := f.opened[p.remote.Addr()]; o.until.After(now) {
		for _, r := range o.rules {
			if r.matches(p.protocol, p.remote.Port()) {
				if p.begins {
					f.remember(p, r.ID, now) // the conversation may outlast the name
				}
				return Pass, r.ID
			}
		}
	}
	return Denied, DefaultDeny
}

// matches is about what is not the address.
func (r Rule) matches(protocol uint8, port uint16) bool {
	if r.Protocol != 0 && r.Protocol != protocol {
		return false
	}
	if r.Low == 0 && (r.High == 0 || r.High == 65535) {
		return true
	}
	return (protocol == tcp || protocol == udp) && port >= r.Low && port <= r.High
}

// Receive lets the guest answer a packet that is about to reach it, when it is one that begins a conversation.
func (f *Filter) Receive(b []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.asks {
		return
	}
	p, verdict := parse(b, true)
	if verdict != Pass || p.later || !p.begins || p.protocol == icmp && !p.echo {
		return
	}
	f.remember(p, 0, f.now())
}

// remember lets a conversation go on; one that there is already stays that of the rule it began with.
func (f *Filter) remember(p packet, rule uint64, now time.Time) {
	c := conversation{now.Add(otherFlow), rule}
	if p.protocol == tcp {
		c.until = now.Add(tcpFlow)
	}
	if old, there := f.flows[p.flow]; there && old.until.After(now) {
		c.rule = old.rule
	} else if !there && len(f.flows) >= maxFlows {
		for any := range f.flows { // whichever comes first
			delete(f.flows, any)
			break
		}
	}
	f.flows[p.flow] = c
}

// Allows tells whether the guest may go on with a conversation with another side, by rules alone.
func (f *Filter) Allows(protocol uint8, remote netip.AddrPort) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.asks {
		return true
	}
	verdict, _ := f.ask(packet{flow: flow{remote: remote, protocol: protocol}})
	return verdict == Pass
}

// packet is what is asked about.
type packet struct {
	flow
	fragmented bool // any fragment
	later      bool // a fragment without the upper layer's header
	begins     bool // may begin a conversation: TCP with SYN and no ACK, all else
	echo       bool // ICMP's request
}

// parse reads a packet whose IPv4 header is whole; received ones have the remote side as their source.
func parse(b []byte, received bool) (p packet, v Verdict) {
	if len(b) < 20 || int(b[0]&15)*4 > len(b) {
		return p, Short
	}
	address := b[16:20]
	if received {
		address = b[12:16]
	}
	remote := netip.AddrFrom4([4]byte(address))
	part := binary.BigEndian.Uint16(b[6:8])
	p.protocol, p.begins = b[9], true
	p.fragmented, p.later = part&0x3fff != 0, part&0x1fff != 0
	p.remote = netip.AddrPortFrom(remote, 0)
	upper := b[int(b[0]&15)*4:]
	short := Short
	if p.fragmented {
		short = Fragment
	}
	if p.later || p.protocol != tcp && p.protocol != udp {
		p.echo = p.protocol == icmp && len(upper) > 0 && upper[0] == 8
		if p.fragmented && !p.later && len(upper) < 8 {
			return p, Fragment
		}
		return p, Pass
	}
	if len(upper) < 4 || p.protocol == tcp && len(upper) < 14 {
		return p, short
	}
	source, destination := binary.BigEndian.Uint16(upper), binary.BigEndian.Uint16(upper[2:])
	if received {
		source, destination = destination, source
	}
	p.local, p.remote = source, netip.AddrPortFrom(remote, destination)
	p.begins = p.protocol != tcp || upper[13]&0x12 == 0x02
	return p, Pass
}
