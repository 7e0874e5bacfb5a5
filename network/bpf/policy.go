package bpf

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/cradlevm/cradle/network/egress"
)

type ruleValue struct {
	Action, Protocol byte
	Low, High        uint16
	_                uint16
	ID               uint64
}

type prefixKey struct {
	Length, Ifindex uint32
	Address         [16]byte
}

type rulesValue struct {
	Count uint64
	Rules [egress.MaxRules]ruleValue
}

type openedKey struct {
	Ifindex uint32
	Address [16]byte
}

type openedValue struct {
	Until uint64
	Count uint32
	_     uint32
	Rules [egress.MaxOpenRules]ruleValue
}

type flowKey struct {
	Ifindex               uint32
	Remote                [16]byte
	RemotePort, LocalPort uint16
	Protocol              byte
	_                     [3]byte
}

type conversationValue struct{ Until, Rule uint64 }

type decidedKey struct {
	Ifindex, _ uint32
	Rule       uint64
}

type rateValue struct {
	BytesPerSecond, ByteBurst, ByteTime       uint64
	PacketsPerSecond, PacketBurst, PacketTime uint64
}

func ruleOf(r egress.Rule) ruleValue {
	v := ruleValue{Action: 2, Protocol: r.Protocol, Low: r.Low, High: r.High, ID: r.ID}
	if r.Allow {
		v.Action = 1
	}
	if r.Low == 0 && r.High == 0 {
		v.High = 65535
	}
	return v
}

// key is the prefix in the tree of rules: IPv4 lies under ::ffff:0:0/96.
func key(ifindex int, p netip.Prefix) prefixKey {
	bits := p.Bits()
	if p.Addr().Is4() {
		bits += 96
	}
	return prefixKey{Length: uint32(32 + bits), Ifindex: uint32(ifindex), Address: p.Masked().Addr().As16()}
}

// CheckRules tells what the programs could not hold of a list of rules.
func CheckRules(list []egress.Rule) error {
	_, err := compile(0, list)
	return err
}

// compile gives each prefix all rules that cover it, in order: the longest prefix that holds an address then knows all
// that the policy says of that address.
func compile(ifindex int, list []egress.Rule) (map[prefixKey]rulesValue, error) {
	compiled := map[prefixKey]rulesValue{}
	for _, r := range list {
		if !r.Prefix.IsValid() {
			return nil, errors.New("a rule has no valid prefix")
		}
		if r.High < r.Low {
			return nil, fmt.Errorf("a rule for %s has ports %d to %d", r.Prefix, r.Low, r.High)
		}
		p := r.Prefix.Masked()
		k := key(ifindex, p)
		if _, done := compiled[k]; done {
			continue
		}
		var v rulesValue
		for _, other := range list {
			o := other.Prefix
			if o.Addr().Is4() != p.Addr().Is4() || o.Bits() > p.Bits() || !o.Contains(p.Addr()) {
				continue
			}
			if v.Count == egress.MaxRules {
				return nil, fmt.Errorf("more than %d rules speak of %s", egress.MaxRules, p)
			}
			v.Rules[v.Count] = ruleOf(other)
			v.Count++
		}
		compiled[k] = v
	}
	// A rule for ::/0 says nothing of IPv4, which lies below it in the tree.
	if k := key(ifindex, netip.PrefixFrom(netip.IPv4Unspecified(), 0)); len(list) > 0 {
		if _, there := compiled[k]; !there {
			compiled[k] = rulesValue{}
		}
	}
	return compiled, nil
}

// SetPolicy replaces a device's rules and rates. The rules decide once Assign has said Policy; conversations that began under earlier
// rules are asked again, and counters of rules that stay go on. Denying rules come into force first, so that nothing passes meanwhile that neither list allows,
// except where the lists differ in both.
func (g *Guards) SetPolicy(ifindex int, p egress.Policy) error {
	none := !p.Asks() && p.Egress == egress.Rate{} && p.Ingress == egress.Rate{} && len(p.Counted) == 0
	if none && g.isClean(ifindex) {
		return nil
	}
	g.setClean(ifindex, false)
	if err := g.setPolicy(ifindex, p); err != nil {
		return err
	}
	g.setClean(ifindex, none)
	return nil
}

// maxClean bounds what is remembered of devices, most of which are gone some day.
const maxClean = 4096

func (g *Guards) isClean(ifindex int) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.clean[ifindex]
}

func (g *Guards) setClean(ifindex int, clean bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if clean {
		if len(g.clean) >= maxClean {
			clear(g.clean)
		}
		g.clean[ifindex] = true
	} else {
		delete(g.clean, ifindex)
	}
}

func (g *Guards) setPolicy(ifindex int, p egress.Policy) error {
	compiled, err := compile(ifindex, p.Rules)
	if err != nil {
		return err
	}
	if err := g.setCounted(ifindex, p.IDs()); err != nil {
		return err
	}
	for k, v := range compiled {
		if err := g.rules.Put(k, v); err != nil {
			return fmt.Errorf("set policy: %w", err)
		}
	}
	var (
		old []prefixKey
		k   prefixKey
		v   rulesValue
	)
	for it := g.rules.Iterate(); it.Next(&k, &v); {
		if _, keep := compiled[k]; k.Ifindex == uint32(ifindex) && !keep {
			old = append(old, k)
		}
	}
	for _, k := range old {
		if err := g.rules.Delete(k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("remove old rule: %w", err)
		}
	}
	return errors.Join(g.clearOpened(ifindex), g.clearFlows(ifindex), g.setRates(ifindex, p.Egress, p.Ingress))
}

// Open lets a device's guest reach an address for so long, as far as the rules say; only their protocol, ports and ids matter.
// Nothing opens what a rule of SetPolicy denies.
func (g *Guards) Open(ifindex int, a netip.Addr, ttl time.Duration, list []egress.Rule) error {
	if len(list) > egress.MaxOpenRules {
		return fmt.Errorf("more than %d rules for one name", egress.MaxOpenRules)
	}
	now, err := monotonic()
	if err != nil {
		return err
	}
	v := openedValue{Until: uint64(now + ttl), Count: uint32(len(list))}
	for i, r := range list {
		v.Rules[i] = ruleOf(r)
	}
	g.setClean(ifindex, false)
	k := openedKey{Ifindex: uint32(ifindex), Address: a.As16()}
	var old openedValue
	if g.opened.Lookup(k, &old) == nil && old.Count == v.Count && slices.Equal(old.Rules[:], v.Rules[:]) && old.Until > v.Until {
		return nil
	}
	if err := g.opened.Put(k, v); err != nil {
		return fmt.Errorf("open %s: %w", a, err)
	}
	return nil
}

// Expire removes addresses whose time is over; they are closed already. It returns how many are open, per device.
func (g *Guards) Expire() (map[int]int, error) {
	now, err := monotonic()
	if err != nil {
		return nil, err
	}
	open := map[int]int{}
	var (
		old []openedKey
		k   openedKey
		v   openedValue
	)
	for it := g.opened.Iterate(); it.Next(&k, &v); {
		if v.Until <= uint64(now) {
			old = append(old, k)
		} else {
			open[int(k.Ifindex)]++
		}
	}
	for _, k := range old {
		if err := g.opened.Delete(k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return open, fmt.Errorf("close address: %w", err)
		}
	}
	return open, nil
}

func (g *Guards) clearOpened(ifindex int) error {
	var (
		old []openedKey
		k   openedKey
		v   openedValue
	)
	for it := g.opened.Iterate(); it.Next(&k, &v); {
		if k.Ifindex == uint32(ifindex) {
			old = append(old, k)
		}
	}
	for _, k := range old {
		if err := g.opened.Delete(k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("close address: %w", err)
		}
	}
	return nil
}

func (g *Guards) clearFlows(ifindex int) error {
	var (
		old []flowKey
		k   flowKey
		v   conversationValue
	)
	for it := g.flows.Iterate(); it.Next(&k, &v); {
		if k.Ifindex == uint32(ifindex) {
			old = append(old, k)
		}
	}
	for _, k := range old {
		if err := g.flows.Delete(k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("end conversation: %w", err)
		}
	}
	return nil
}

// setRates limits what a device's guest sends and what reaches it, from now on.
func (g *Guards) setRates(ifindex int, from, to egress.Rate) error {
	for d, r := range map[direction]egress.Rate{fromGuest: from, toGuest: to} {
		k := counterKey{uint32(ifindex), uint32(d)}
		if r.BytesPerSecond == 0 && r.PacketsPerSecond == 0 {
			if err := g.rates.Delete(k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
				return fmt.Errorf("lift rate limit: %w", err)
			}
			continue
		}
		burst := r.Burst
		if burst <= 0 {
			burst = egress.DefaultBurst
		}
		v := rateValue{BytesPerSecond: r.BytesPerSecond, ByteBurst: uint64(burst), PacketsPerSecond: r.PacketsPerSecond,
			PacketBurst: uint64(burst)}
		if err := g.rates.Put(k, v); err != nil {
			return fmt.Errorf("set rate limit: %w", err)
		}
	}
	return nil
}

// monotonic is the clock of bpf_ktime_get_ns.
func monotonic() (time.Duration, error) {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		return 0, fmt.Errorf("read monotonic clock: %w", err)
	}
	return time.Duration(ts.Nano()), nil
}
