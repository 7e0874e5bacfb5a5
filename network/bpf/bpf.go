// Package bpf guards TAP devices: two small programs (tap.c) on each, one for the frames that a guest sends and one for
// those that reach it, see every frame before the host's network stack does and drop what is not known to be right.
//
// # What passes
//
// Only frames from the MAC address the endpoint was given; IPv4, IPv6 and ARP only; from its own addresses only; ARP and
// neighbour discovery that tell of nobody else. No DHCP, no router advertisements, no VLAN tags, no IPv4 options,
// no IPv6 extension headers but one fragment header. What is dropped is counted by its reason, per TAP.
//
// # Who holds the programs
//
// The net device does. Programs are attached without a link (as filters of clsact; by TCX where there is none), so that they
// last as long as the device and not as long as a process or a file in a bpffs: a guest whose daemon was killed stays
// guarded. A new process finds the maps through the programs on the devices (Adopt). Because of that a TAP may run the
// programs of an older version with that version's maps; Guard puts the newer ones in their place.
//
// The object file is in the repository, and `make bpf` makes the same bytes from tap.c; a test compares.
package bpf

import (
	"bytes"
	_ "embed"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/rlimit"

	"github.com/cradlevm/cradle/network/egress"
)

//go:embed tap.o
var object []byte

// ErrUnknown is a device that is not guarded by these programs. To be found with errors.Is.
var ErrUnknown = errors.New("not a guarded device")

// Endpoint is what the guest behind a TAP is allowed to be.
type Endpoint struct {
	MAC       net.HardwareAddr // 6 bytes
	IPv4      netip.Addr       // the zero Addr: none
	IPv6      netip.Addr       // the zero Addr: none; then link-local addresses are refused too
	Gateway4  netip.Addr       // our resolver, which policies always let through
	Gateway6  netip.Addr
	LinkLocal netip.Addr // the zero Addr: derived from MAC (EUI-64) when there is an IPv6

	Metadata bool // may reach 169.254.0.0/16 and fd00:ec2::254
	Policy   bool // the rules of SetPolicy decide, but not about ARP and neighbour discovery
	Deny     bool // what no rule speaks of is denied
}

// endpointValue is struct endpoint of tap.c.
type endpointValue struct {
	MAC       [6]byte
	Flags     uint16
	IPv4      [4]byte
	Gateway4  [4]byte
	IPv6      [16]byte
	LinkLocal [16]byte
	Gateway6  [16]byte
}

const (
	flagMetadata = 1 << iota
	flagPolicy
	flagDeny
)

func (e Endpoint) value() (endpointValue, error) {
	var v endpointValue
	if len(e.MAC) != 6 {
		return v, fmt.Errorf("endpoint's MAC address %q has not 6 bytes", e.MAC)
	}
	copy(v.MAC[:], e.MAC)
	if e.IPv4.IsValid() {
		v.IPv4 = e.IPv4.Unmap().As4()
	}
	if e.Gateway4.IsValid() {
		v.Gateway4 = e.Gateway4.Unmap().As4()
	}
	if e.IPv6.IsValid() {
		v.IPv6 = e.IPv6.As16()
		local := e.LinkLocal
		if !local.IsValid() {
			local = LinkLocal(e.MAC)
		}
		v.LinkLocal = local.As16()
	}
	if e.Gateway6.IsValid() {
		v.Gateway6 = e.Gateway6.As16()
	}
	for _, f := range []struct {
		on   bool
		flag uint16
	}{{e.Metadata, flagMetadata}, {e.Policy, flagPolicy}, {e.Deny, flagDeny}} {
		if f.on {
			v.Flags |= f.flag
		}
	}
	return v, nil
}

// LinkLocal is the address that a guest's kernel derives from its 6-byte hardware address (EUI-64).
func LinkLocal(mac net.HardwareAddr) netip.Addr {
	a := [16]byte{0: 0xfe, 1: 0x80, 11: 0xff, 12: 0xfe}
	copy(a[8:11], mac[:3])
	copy(a[13:], mac[3:6])
	a[8] ^= 2
	return netip.AddrFrom16(a)
}

// Guards are the programs and the maps behind them. Close gives up this process's hold on them only. All methods may be
// called from any goroutine.
type Guards struct {
	from, to  *ebpf.Program
	endpoints *ebpf.Map
	counters  *ebpf.Map
	rules     *ebpf.Map
	opened    *ebpf.Map
	flows     *ebpf.Map
	rates     *ebpf.Map
	decided   *ebpf.Map

	mu    sync.Mutex
	clean map[int]bool // devices of which no map of policies knows: to look through those takes a call for each entry
}

// Load puts the programs into the kernel, with empty maps. It takes CAP_BPF and CAP_NET_ADMIN, or root.
func Load() (*Guards, error) { return load(func(*ebpf.CollectionSpec) {}) }

// load is Load of programs and maps that adjust has changed.
func load(adjust func(*ebpf.CollectionSpec)) (*Guards, error) {
	if err := rlimit.RemoveMemlock(); err != nil {
		return nil, fmt.Errorf("raise the limit of locked memory: %w", err)
	}
	spec, err := ebpf.LoadCollectionSpecFromReader(bytes.NewReader(object))
	if err != nil {
		return nil, fmt.Errorf("read TAP programs: %w", err)
	}
	adjust(spec)
	var o struct {
		From      *ebpf.Program `ebpf:"from_guest"`
		To        *ebpf.Program `ebpf:"to_guest"`
		Endpoints *ebpf.Map     `ebpf:"endpoints"`
		Counters  *ebpf.Map     `ebpf:"counters"`
		Rules     *ebpf.Map     `ebpf:"rules"`
		Opened    *ebpf.Map     `ebpf:"opened"`
		Flows     *ebpf.Map     `ebpf:"flows"`
		Rates     *ebpf.Map     `ebpf:"rates"`
		Decided   *ebpf.Map     `ebpf:"decided"`
	}
	if err := spec.LoadAndAssign(&o, nil); err != nil {
		var verifier *ebpf.VerifierError
		if errors.As(err, &verifier) {
			return nil, fmt.Errorf("load TAP programs: %+v", verifier)
		}
		return nil, fmt.Errorf("load TAP programs: %w", err)
	}
	return &Guards{from: o.From, to: o.To, endpoints: o.Endpoints, counters: o.Counters, rules: o.Rules, opened: o.Opened,
		flows: o.Flows, rates: o.Rates, decided: o.Decided, clean: map[int]bool{}}, nil
}

// Adopt returns the guards that an earlier process has put on one of these devices, if they are of this very version;
// otherwise it is Load.
func Adopt(ifindexes []int) (*Guards, error) {
	fresh, err := Load()
	if err != nil {
		return nil, err
	}
	return fresh.orThoseOn(ifindexes), nil
}

// fewFlows bounds the conversations under policies that AdoptFew's maps remember. It is the one map that takes its memory at
// once (100 bytes each).
const fewFlows = 1024

// AdoptFew is Adopt for a network namespace that will have a handful of guarded devices. Maps are per namespace, because
// interface indexes are.
func AdoptFew(ifindexes []int) (*Guards, error) {
	fresh, err := load(func(s *ebpf.CollectionSpec) { s.Maps["flows"].MaxEntries = fewFlows })
	if err != nil {
		return nil, err
	}
	return fresh.orThoseOn(ifindexes), nil
}

// orThoseOn returns the guards on one of these devices, if they are of g's version, and g otherwise; the other is closed.
func (g *Guards) orThoseOn(ifindexes []int) *Guards {
	for _, i := range ifindexes {
		if found, err := g.sameOn(i); err == nil {
			g.Close()
			return found
		}
	}
	return g
}

// sameOn finds the programs on a device when they are the same as g's but for their maps.
func (g *Guards) sameOn(ifindex int) (*Guards, error) {
	found := &Guards{clean: map[int]bool{}}
	for _, d := range []struct {
		direction direction
		mine      *ebpf.Program
		program   **ebpf.Program
	}{{fromGuest, g.from, &found.from}, {toGuest, g.to, &found.to}} {
		_, p, err := find(ifindex, d.direction, d.direction.program())
		if err != nil {
			found.Close()
			return nil, err
		}
		*d.program = p
		if !sameCode(p, d.mine) {
			found.Close()
			return nil, ErrUnknown
		}
	}
	if err := found.findMaps(); err != nil {
		found.Close()
		return nil, err
	}
	return found, nil
}

// sameCode compares the kernel's digests of two programs, which leave out the maps.
func sameCode(a, b *ebpf.Program) bool {
	x, err := a.Info()
	if err != nil {
		return false
	}
	y, err := b.Info()
	return err == nil && x.Name == y.Name && x.Tag == y.Tag
}

func (g *Guards) findMaps() error {
	byName := map[string]**ebpf.Map{"endpoints": &g.endpoints, "counters": &g.counters, "rules": &g.rules,
		"opened": &g.opened, "flows": &g.flows, "rates": &g.rates, "decided": &g.decided}
	info, err := g.from.Info()
	if err != nil {
		return fmt.Errorf("look at TAP program: %w", err)
	}
	ids, _ := info.MapIDs()
	for _, id := range ids {
		m, err := ebpf.NewMapFromID(id)
		if err != nil {
			return fmt.Errorf("open map %d of TAP program: %w", id, err)
		}
		mi, err := m.Info()
		if err != nil {
			m.Close()
			return fmt.Errorf("look at map %d: %w", id, err)
		}
		to, ok := byName[mi.Name]
		if !ok || *to != nil {
			m.Close()
			continue
		}
		*to = m
	}
	for name, m := range byName {
		if *m == nil {
			return fmt.Errorf("%w: its programs have no map %s", ErrUnknown, name)
		}
	}
	return nil
}

// Close lets go of programs and maps; devices keep theirs.
func (g *Guards) Close() error {
	var errs []error
	for _, p := range []*ebpf.Program{g.from, g.to} {
		if p != nil {
			errs = append(errs, p.Close())
		}
	}
	for _, m := range []*ebpf.Map{g.endpoints, g.counters, g.rules, g.opened, g.flows, g.rates, g.decided} {
		if m != nil {
			errs = append(errs, m.Close())
		}
	}
	return errors.Join(errs...)
}

// Guard puts the programs on a device that nobody uses yet, or in the place of older ones, without a gap. Until Assign the
// device passes nothing.
func (g *Guards) Guard(ifindex int) error {
	for _, d := range []direction{fromGuest, toGuest} {
		key := counterKey{uint32(ifindex), uint32(d)}
		zeros := make([]countersValue, ebpf.MustPossibleCPU())
		if err := g.counters.Update(key, zeros, ebpf.UpdateNoExist); err != nil && !errors.Is(err, ebpf.ErrKeyExist) {
			return fmt.Errorf("make counters: %w", err)
		}
	}
	for d, p := range map[direction]*ebpf.Program{fromGuest: g.from, toGuest: g.to} {
		if err := attach(ifindex, d, p, d.program(), guardPriority); err != nil {
			return fmt.Errorf("attach TAP program: %w", err)
		}
	}
	return nil
}

// Guarded tells whether a device has these programs, with these maps.
func (g *Guards) Guarded(ifindex int) bool {
	for d, mine := range map[direction]*ebpf.Program{fromGuest: g.from, toGuest: g.to} {
		_, p, err := find(ifindex, d, d.program())
		if err != nil {
			return false
		}
		same := programID(p) == programID(mine)
		p.Close()
		if !same {
			return false
		}
	}
	return true
}

// Assign makes a device pass what e allows, at once and in place of what it was before.
func (g *Guards) Assign(ifindex int, e Endpoint) error {
	v, err := e.value()
	if err != nil {
		return err
	}
	if err := g.endpoints.Put(uint32(ifindex), v); err != nil {
		return fmt.Errorf("assign endpoint to TAP: %w", err)
	}
	return nil
}

// Unassign makes a device pass nothing. Idempotent.
func (g *Guards) Unassign(ifindex int) error {
	if err := g.endpoints.Delete(uint32(ifindex)); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("take endpoint from TAP: %w", err)
	}
	return nil
}

// Assigned are the devices that have an entry, existing or gone.
func (g *Guards) Assigned() ([]int, error) {
	var (
		all []int
		key uint32
		v   endpointValue
	)
	for it := g.endpoints.Iterate(); it.Next(&key, &v); {
		all = append(all, int(key))
	}
	return all, nil
}

// Forget removes all that is kept of a device, which must be gone or pass nothing from now on. Idempotent.
func (g *Guards) Forget(ifindex int) error {
	errs := []error{g.Unassign(ifindex), g.SetPolicy(ifindex, egress.Policy{})}
	for _, d := range []direction{fromGuest, toGuest} {
		if err := g.counters.Delete(counterKey{uint32(ifindex), uint32(d)}); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
