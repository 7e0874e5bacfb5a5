// Package network gives sandboxes their networks: IPAM, bridges, TAPs with a guard in front of everything, the firewall,
// published ports and names. All of it outlasts the daemon, and Reconcile makes the host agree with what lives.
//
// # What a guest meets
//
// A root daemon's guest sends its frames to a TAP. The program on it (package bpf) drops what does not come from the MAC and
// addresses of the endpoint; the bridge behind it learns nothing and floods nothing; the firewall keeps networks apart, the
// host closed and the metadata range out of reach. The resolver at the gateway answers for the names of the networks that
// the asker is on.
//
// An ordinary user's daemon has no say in the kernel's network. Its guests' frames are a stream each, which ends in a stack of
// the daemon's own (package user): that is the switch, the guard, the gateway, the resolver, and what opens ordinary sockets
// for them. What the two differ in is a datapath; leases, names, ports and the store are the same.
//
// # Whose is what
//
// Several daemons may share a host's network namespace. What belongs to one state directory carries its mark: TAPs and
// bridges in their names or aliases, the nftables table in its name.
package network

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/cradlevm/cradle/network/bpf"
	"github.com/cradlevm/cradle/network/dns"
	"github.com/cradlevm/cradle/network/user"
)

// Options of Open.
type Options struct {
	Dir        string           // absolute; the state lives here, and its name is the mark of what is ours
	Log        *slog.Logger     // nil: nothing is logged
	Pools      []Pool           // of IPv4, for networks without a subnet of their own; nil: DefaultPools
	Upstreams  []netip.AddrPort // resolvers to forward to; nil: the host's /etc/resolv.conf
	Streams    bool             // endpoints are streams, as an ordinary user's always are
	ResolvConf string           // empty: /etc/resolv.conf
	SpareTAPs  int              // made before they are asked for
	// Lost, when not nil, is told of an endpoint whose TAP somebody has deleted, by its id, and again after a while unless it
	// returns true. It may call methods.
	Lost func(endpoint string) bool
}

// Networks are all networks of one state directory. All methods may be called from any goroutine.
type Networks struct {
	log      *slog.Logger
	dir      string
	tag      string // four digits of the directory's hash
	pools    []Pool
	store    *store
	path     datapath
	ports    *ports
	names    *names
	resolver dns.Options

	mu        sync.Mutex
	networks  map[string]*network  // by id
	endpoints map[string]*Endpoint // by id
}

// network is a Network and what this process keeps of it.
type network struct {
	Network
	leases  []*leases     // of Subnets, in their order
	servers []*dns.Server // the kernel's networks
	stack   *user.Network // of those made of streams
	blocked error         // why there is no bridge: its subnet is somebody else's by now
}

// Open reads the state and takes over what an earlier process has left: guards go on, leases are as they were, resolvers and
// listeners are made again by Reconcile, which is to be called next.
func Open(ctx context.Context, o Options) (*Networks, error) {
	if !filepath.IsAbs(o.Dir) {
		return nil, fail(ErrInvalid, "network state directory %q is not absolute", o.Dir)
	}
	hash := sha256.Sum256([]byte(filepath.Clean(o.Dir)))
	n := &Networks{log: o.Log, dir: o.Dir, tag: hex.EncodeToString(hash[:2]), pools: o.Pools, networks: map[string]*network{},
		endpoints: map[string]*Endpoint{}, names: newNames()}
	if n.log == nil {
		n.log = slog.New(slog.DiscardHandler)
	}
	if n.pools == nil {
		n.pools = DefaultPools()
	}
	n.pools = append(slices.Clone(n.pools), localPool(seed(o.Dir)))
	n.resolver = dns.Options{Log: n.log, Upstreams: o.Upstreams, ResolvConf: o.ResolvConf}
	n.predefine()
	var err error
	if n.store, err = openStore(n.dir); err != nil {
		return nil, err
	}
	if o.Streams || os.Geteuid() != 0 {
		n.path = newStreams(n)
	} else if n.path, err = newKernel(n, o); err != nil {
		return nil, err
	}
	n.ports = newPorts(n.log, n.path.dialer)
	if err := n.load(); err != nil {
		return nil, err
	}
	return n, nil
}

// seed is a number of this machine and directory.
func seed(dir string) uint64 {
	id, _ := os.ReadFile("/etc/machine-id") // without one, the directory has to do
	sum := sha256.Sum256(append(id, dir...))
	return binary.BigEndian.Uint64(sum[:])
}

// predefine puts in the networks that are always there.
func (n *Networks) predefine() {
	n.networks[n.fixedID(None)] = &network{Network: Network{ID: n.fixedID(None), Name: None, Driver: "null"}}
}

func (n *Networks) fixedID(name string) string {
	sum := sha256.Sum256([]byte(n.dir + "\x00" + name))
	return hex.EncodeToString(sum[:])
}

// load reads the store.
func (n *Networks) load() error {
	f, err := n.store.networks()
	if err != nil {
		return err
	}
	for _, net := range f.Networks {
		n.put(net)
	}
	if id := n.fixedID(Default); n.networks[id] == nil {
		n.put(Network{ID: id, Name: Default, Driver: "bridge"})
	}
	all, err := n.store.endpoints()
	if err != nil {
		return err
	}
	for _, e := range all {
		if err := n.take(&e); err != nil {
			n.log.Warn("an endpoint's lease is dropped", "endpoint", e.ID, "error", err)
			if err := n.store.removeEndpoint(e.ID); err != nil {
				return err
			}
		}
	}
	return nil
}

// put keeps a network in memory.
func (n *Networks) put(net Network) *network {
	k := &network{Network: net}
	for i := range k.Subnets {
		k.leases = append(k.leases, newLeases(&k.Subnets[i]))
	}
	n.networks[net.ID] = k
	return k
}

// take claims the leases of an endpoint that was found in the store.
func (n *Networks) take(e *Endpoint) error {
	net := n.networks[e.Network]
	if net == nil {
		return ErrNotFound
	}
	for i, l := range net.leases {
		p := e.IPv4
		if net.Subnets[i].Prefix.Addr().Is6() {
			p = e.IPv6
		}
		if !p.IsValid() || !net.Subnets[i].Prefix.Contains(p.Addr()) || !l.claim(p.Addr()) {
			return fail(ErrExists, "address %s is not of %s, or leased twice", p, net.Name)
		}
	}
	n.endpoints[e.ID] = e
	n.names.put(e)
	return nil
}

// Close ends resolvers, listeners, and what else of the networks lives in this process. What guests on TAPs need stays in the
// kernel. When there are no endpoints, the host is as it was before Open, but for its forwarding of packets, which somebody
// else may rely on by now: bridges and firewall are made again by the next Reconcile.
func (n *Networks) Close() error {
	return errors.Join(n.path.close(), n.ports.closeAll())
}

// Create makes a network. Errors: ErrInvalid, ErrExists, ErrInUse (a predefined name), ErrExhausted,
// ErrUnsupported.
func (n *Networks) Create(ctx context.Context, s Spec) (Network, error) {
	if err := s.check(); err != nil {
		return Network{}, err
	}
	if s.IPv6 && !hasIPv6() {
		return Network{}, fail(ErrInvalid, "IPv6 is switched off on this host")
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, net := range n.networks {
		if net.Name == s.Name {
			return Network{}, fail(ErrExists, "network with name %s already exists", s.Name)
		}
		if b := s.Options[OptionBridge]; b != "" && b == net.Bridge {
			return Network{}, fail(ErrExists, "cannot create network: conflicts with network %s (%s): networks have same bridge name", net.ID, net.Name)
		}
	}
	net := Network{ID: randomID(), Name: s.Name, Driver: "bridge", Created: time.Now().UTC(), IPv6: s.IPv6, Internal: s.Internal,
		Labels: s.Labels, Options: s.Options, Bridge: s.Options[OptionBridge]}
	release, err := n.path.claim()
	if err != nil {
		return Network{}, err
	}
	defer release()
	if err := n.complete(&net, s.Subnets); err != nil {
		return Network{}, err
	}
	k := n.put(net)
	if err := n.realize(k); err != nil {
		delete(n.networks, net.ID)
		return Network{}, errors.Join(err, n.path.dismantle(k))
	}
	return net, nil
}

// complete fills in what the user left open: subnets, gateways, the MTU, and what the datapath has to add.
func (n *Networks) complete(net *Network, given []Subnet) error {
	taken, err := n.taken()
	if err != nil {
		return err
	}
	families := []bool{true}
	if net.IPv6 {
		families = append(families, false)
	}
	for _, v4 := range families {
		sub, err := n.choose(v4, given, taken)
		if err != nil {
			return err
		}
		net.Subnets = append(net.Subnets, sub)
	}
	net.MTU = hostMTU()
	if m, err := strconv.Atoi(net.Options[OptionMTU]); err == nil {
		net.MTU = m
	}
	return n.path.adapt(net)
}

// taken are the subnets that no new one may overlap with: networks' first, then the host's own ways and other daemons' networks.
func (n *Networks) taken() (t struct{ ours, host []netip.Prefix }, err error) {
	for _, net := range n.networks {
		for _, s := range net.Subnets {
			t.ours = append(t.ours, s.Prefix)
		}
	}
	if t.host, err = hostPrefixes(); err != nil {
		return t, err
	}
	others, err := n.path.claimed()
	t.host = append(t.host, others...)
	return t, err
}

// choose returns a network's subnet of one family. One that the user gave may overlap with the host's routes only as docker's
// may: not with another network's subnet, and not with an address range of an interface. A network that is not in the kernel may
// overlap with the host's, which its guests then do not reach.
func (n *Networks) choose(v4 bool, given []Subnet, taken struct{ ours, host []netip.Prefix }) (Subnet, error) {
	var sub Subnet
	for _, g := range given {
		if g.Prefix.IsValid() && g.Prefix.Addr().Is4() == v4 {
			sub = g
			sub.Chosen, sub.OwnGate = true, g.Gateway.IsValid()
		}
	}
	if !sub.Prefix.IsValid() {
		p, ok := cut(n.pools, v4, slices.Concat(taken.ours, taken.host))
		if !ok {
			return sub, fail(ErrExhausted, "all predefined address pools have been fully subnetted")
		}
		sub.Prefix = p
	} else if overlaps(sub.Prefix, taken.ours) || !n.Streams() && overlaps(sub.Prefix, taken.host) {
		return sub, fail(ErrInvalid, "invalid pool request: Pool overlaps with other one on this address space")
	}
	l := newLeases(&sub)
	if sub.Gateway.IsValid() {
		for name, a := range sub.Aux {
			if a == sub.Gateway {
				return sub, fail(ErrInvalid, "failed to allocate gateway (%s): Address already in use by aux-address %s", a, name)
			}
		}
		return sub, nil
	}
	gateway, ok := l.take()
	if !ok {
		return sub, fail(ErrExhausted, "failed to allocate gateway: no available addresses in %s", sub.Prefix)
	}
	sub.Gateway = gateway
	return sub, nil
}

// realize makes what a new network needs, and then keeps it. The store comes last: a crash before leaves only what Reconcile
// removes.
func (n *Networks) realize(net *network) error {
	net.leases = nil
	for i := range net.Subnets {
		net.leases = append(net.leases, newLeases(&net.Subnets[i]))
	}
	if err := n.path.ensure(net); err != nil {
		return err
	}
	return n.save()
}

// ready makes the default network when it is first used.
func (n *Networks) ready(net *network) error {
	if len(net.Subnets) > 0 {
		return nil
	}
	release, err := n.path.claim()
	if err != nil {
		return err
	}
	defer release()
	made := net.Network
	made.Created = time.Now().UTC()
	if err := n.complete(&made, nil); err != nil {
		return err
	}
	old := net.Network
	net.Network = made
	if err := n.realize(net); err != nil {
		failed := *net
		*net = network{Network: old}
		return errors.Join(err, n.path.dismantle(&failed))
	}
	return nil
}

// save writes the networks that are not always there.
func (n *Networks) save() error {
	var f networksFile
	for _, net := range n.networks {
		if net.Driver == "bridge" && len(net.Subnets) > 0 {
			f.Networks = append(f.Networks, net.Network)
		}
	}
	slices.SortFunc(f.Networks, func(a, b Network) int { return strings.Compare(a.ID, b.ID) })
	return n.store.putNetworks(f)
}

// List returns all networks, by name.
func (n *Networks) List() []Network {
	n.mu.Lock()
	defer n.mu.Unlock()
	var all []Network
	for _, net := range n.networks {
		all = append(all, net.Network)
	}
	slices.SortFunc(all, func(a, b Network) int { return strings.Compare(a.Name, b.Name) })
	return all
}

// Get finds a network by name, id or the beginning of one id. ErrNotFound, or ErrInvalid when the beginning fits several.
func (n *Networks) Get(ref string) (Network, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	net, err := n.find(ref)
	if err != nil {
		return Network{}, err
	}
	return net.Network, nil
}

func (n *Networks) find(ref string) (*network, error) {
	if net := n.networks[ref]; net != nil {
		return net, nil
	}
	var found []*network
	for _, net := range n.networks {
		if net.Name == ref {
			return net, nil
		}
		if ref != "" && strings.HasPrefix(net.ID, ref) {
			found = append(found, net)
		}
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) > 1:
		return nil, fail(ErrInvalid, "network %s is ambiguous (%d matches found on ID prefix)", ref, len(found))
	}
	return nil, fail(ErrNotFound, "network %s not found", ref)
}

// Remove removes a network. Errors: ErrNotFound; ErrInUse when it has endpoints or is predefined.
func (n *Networks) Remove(ctx context.Context, ref string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	net, err := n.find(ref)
	if err != nil {
		return err
	}
	return n.remove(net)
}

func (n *Networks) remove(net *network) error {
	if net.ID == n.fixedID(net.Name) {
		return fail(ErrInUse, "%s is a pre-defined network and cannot be removed", net.Name)
	}
	var users []string
	for _, e := range n.endpoints {
		if e.Network == net.ID {
			users = append(users, fmt.Sprintf("name:%q id:%q", e.Name, e.ID[:12]))
		}
	}
	if len(users) > 0 {
		slices.Sort(users)
		return fail(ErrInUse, "error while removing network: network %s has active endpoints (%s)", net.Name, strings.Join(users, ", "))
	}
	delete(n.networks, net.ID)
	if err := n.save(); err != nil {
		n.networks[net.ID] = net
		return err
	}
	return n.path.dismantle(net)
}

// Prune removes the networks that nobody uses and pick agrees to (nil: all of them), and returns their names.
func (n *Networks) Prune(ctx context.Context, pick func(Network) bool) ([]string, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	used := map[string]bool{}
	for _, e := range n.endpoints {
		used[e.Network] = true
	}
	var gone []string
	for _, net := range n.networks {
		if net.ID == n.fixedID(net.Name) || used[net.ID] || (pick != nil && !pick(net.Network)) {
			continue
		}
		if err := n.remove(net); err != nil {
			return gone, err
		}
		gone = append(gone, net.Name)
	}
	slices.Sort(gone)
	return gone, nil
}

// Counters of an endpoint: what its guest has sent and what has reached it, and what was dropped of both and why.
// ErrNotFound, ErrLost.
func (n *Networks) Counters(endpoint string) (from, to bpf.Counters, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	e := n.endpoints[endpoint]
	if e == nil {
		return from, to, fail(ErrNotFound, "endpoint %s not found", endpoint)
	}
	return n.path.counters(e)
}
