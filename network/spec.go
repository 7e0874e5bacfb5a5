package network

import (
	"encoding/binary"
	"net/netip"
	"regexp"
	"strconv"
	"sync"
	"time"
)

// Names of networks that are always there.
const (
	Default = "bridge" // made when first used
	None    = "none"   // no interface at all
)

// Options of networks that are understood, docker's and our own.
const (
	OptionBridge     = "com.docker.network.bridge.name"
	OptionMTU        = "com.docker.network.driver.mtu"
	OptionMasquerade = "com.docker.network.bridge.enable_ip_masquerade"
	OptionICC        = "com.docker.network.bridge.enable_icc"
	OptionHostIP     = "com.docker.network.bridge.host_binding_ipv4"
	OptionIsolate    = "cradle.isolate"  // "true": containers of this network do not reach one another
	OptionMetadata   = "cradle.metadata" // "true": they may reach 169.254.0.0/16
)

// Subnet is one address range of a network.
type Subnet struct {
	Prefix  netip.Prefix          `json:"prefix"`            // the zero Prefix when creating: from the pools
	Gateway netip.Addr            `json:"gateway,omitzero"`  // the zero Addr when creating: the first of the range
	Range   netip.Prefix          `json:"range,omitzero"`    // addresses are given from here; the zero Prefix: all of Prefix
	Aux     map[string]netip.Addr `json:"aux,omitempty"`     // never given, by name
	Chosen  bool                  `json:"chosen,omitzero"`   // the user gave Prefix: fixed addresses are allowed
	OwnGate bool                  `json:"own_gate,omitzero"` // the user gave Gateway
}

// Spec is what a network is created from.
type Spec struct {
	Name     string            // docker's rules
	Driver   string            // "bridge" or empty
	Subnets  []Subnet          // at most one of each family; missing ones come from the pools
	IPv6     bool              // dual stack
	Internal bool              // no way out
	Labels   map[string]string // kept
	Options  map[string]string // Option constants; others are refused
}

// Network is a network as it is. None has neither subnets nor a bridge.
type Network struct {
	ID       string            `json:"id"` // 64 hexadecimal digits
	Name     string            `json:"name"`
	Driver   string            `json:"driver"` // "bridge", or "null" for None
	Created  time.Time         `json:"created"`
	Subnets  []Subnet          `json:"subnets,omitempty"` // IPv4 first
	IPv6     bool              `json:"ipv6,omitzero"`
	Internal bool              `json:"internal,omitzero"`
	Labels   map[string]string `json:"labels,omitempty"`
	Options  map[string]string `json:"options,omitempty"`
	Bridge   string            `json:"bridge,omitempty"` // the host's interface
	MTU      int               `json:"mtu,omitzero"`     // bytes
}

// Isolated tells whether containers of the network are kept from one another.
func (n Network) Isolated() bool {
	icc, err := strconv.ParseBool(n.Options[OptionICC])
	return n.option(OptionIsolate) || (err == nil && !icc)
}

func (n Network) option(name string) bool {
	on, err := strconv.ParseBool(n.Options[name])
	return err == nil && on
}

// masquerade tells whether the host lends its address to what leaves the network.
func (n Network) masquerade() bool {
	on, err := strconv.ParseBool(n.Options[OptionMasquerade])
	return !n.Internal && (err != nil || on)
}

// subnet of one family; nil when there is none.
func (n *Network) subnet(v4 bool) *Subnet {
	for i := range n.Subnets {
		if n.Subnets[i].Prefix.Addr().Is4() == v4 {
			return &n.Subnets[i]
		}
	}
	return nil
}

func (n *Network) gateway(v4 bool) netip.Addr {
	if s := n.subnet(v4); s != nil {
		return s.Gateway
	}
	return netip.Addr{}
}

// gateways are the host's addresses on the network.
func (n *Network) gateways() []netip.Addr {
	var all []netip.Addr
	for _, s := range n.Subnets {
		all = append(all, s.Gateway)
	}
	return all
}

var (
	namePattern   = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}$`) })
	bridgePattern = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,14}$`) })
)

// check looks at all of a Spec before anything is made.
func (s Spec) check() error {
	if !namePattern().MatchString(s.Name) {
		return fail(ErrInvalid, "invalid network name %q: only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed", s.Name)
	}
	switch s.Name {
	case Default, None, "host":
		return fail(ErrInUse, "operation is not permitted on predefined %s network ", s.Name)
	}
	if s.Driver != "" && s.Driver != "bridge" {
		return fail(ErrNotFound, "could not find plugin %s in v1 plugin registry: plugin not found", s.Driver)
	}
	families := map[bool]bool{}
	for _, n := range s.Subnets {
		if !n.Prefix.IsValid() {
			if n.Gateway.IsValid() || n.Range.IsValid() || len(n.Aux) > 0 {
				return fail(ErrInvalid, "invalid pool request: a subnet must be given with its gateway, range or auxiliary addresses")
			}
			continue
		}
		v4 := n.Prefix.Addr().Is4()
		if families[v4] {
			return fail(ErrInvalid, "bridge driver doesn't support multiple subnets of one family")
		}
		families[v4] = true
		if !v4 && !s.IPv6 {
			return fail(ErrInvalid, "subnet %s needs IPv6 to be enabled on the network", n.Prefix)
		}
		if err := n.check(); err != nil {
			return err
		}
	}
	return s.checkOptions()
}

func (n Subnet) check() error {
	p := n.Prefix
	if p != p.Masked() {
		return fail(ErrInvalid, "invalid network config: invalid subnet %s: it should be %s", p, p.Masked())
	}
	if p.Addr().Is4In6() || p.Addr().IsMulticast() || p.Addr().IsLoopback() || p.Addr().IsLinkLocalUnicast() || p.Bits() == 0 {
		return fail(ErrInvalid, "invalid subnet %s: it is not for networks", p)
	}
	if p.Addr().BitLen()-p.Bits() < 2 {
		return fail(ErrInvalid, "invalid subnet %s: it has no room for a gateway and a container", p)
	}
	if p.Addr().Is6() && p.Bits() > 120 {
		return fail(ErrInvalid, "invalid subnet %s: longer than /120", p)
	}
	if n.Gateway.IsValid() && (!p.Contains(n.Gateway) || n.Gateway == p.Addr() || n.Gateway == last(p)) {
		return fail(ErrInvalid, "no matching subnet for gateway %s", n.Gateway)
	}
	if n.Range.IsValid() && (n.Range.Addr().Is4() != p.Addr().Is4() || n.Range.Bits() < p.Bits() || !p.Contains(n.Range.Addr())) {
		return fail(ErrInvalid, "no matching subnet for range %s", n.Range)
	}
	for name, a := range n.Aux {
		if !p.Contains(a) {
			return fail(ErrInvalid, "no matching subnet for aux-address %s (%s)", a, name)
		}
	}
	return nil
}

func (s Spec) checkOptions() error {
	for k, v := range s.Options {
		switch k {
		case OptionBridge:
			if !bridgePattern().MatchString(v) || v == "lo" {
				return fail(ErrInvalid, "invalid bridge name %q", v)
			}
		case OptionMTU:
			if n, err := strconv.Atoi(v); err != nil || n < 68 || n > 65535 || (s.IPv6 && n < 1280) {
				return fail(ErrInvalid, "invalid MTU %q", v)
			}
		case OptionMasquerade, OptionICC, OptionIsolate, OptionMetadata:
			if _, err := strconv.ParseBool(v); err != nil {
				return fail(ErrInvalid, "option %s: %q is neither true nor false", k, v)
			}
		case OptionHostIP:
			if a, err := netip.ParseAddr(v); err != nil || !a.Is4() {
				return fail(ErrInvalid, "option %s: %q is not an IPv4 address", k, v)
			}
		case "com.docker.network.bridge.default_bridge", "com.docker.network.enable_ipv4":
		case "com.docker.network.enable_ipv6":
		default:
			return fail(ErrInvalid, "option %s is not supported", k)
		}
	}
	return nil
}

// last address of a prefix: IPv4's broadcast address.
func last(p netip.Prefix) netip.Addr {
	if p.Addr().Is4() {
		a := p.Masked().Addr().As4()
		n := binary.BigEndian.Uint32(a[:]) | uint32(1<<(32-p.Bits())-1)
		binary.BigEndian.PutUint32(a[:], n)
		return netip.AddrFrom4(a)
	}
	a := p.Masked().Addr().As16()
	for bit := p.Bits(); bit < 128; bit++ {
		a[bit/8] |= 0x80 >> (bit % 8)
	}
	return netip.AddrFrom16(a)
}
