package runspec

import (
	"cmp"
	"maps"
	"net/netip"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
)

// Network is one network that a container asks for.
type Network struct {
	Name     string // as the client gave it: a name, an id or a prefix of one; network.NetworkDefault for the node's own choice
	Settings *network.EndpointSettings
}

// Networks are those that a container asks for when it is made, that of its network mode first, the others by name; none
// for the modes "none" and "container:…". Errors: ErrInvalidArgument for settings that contradict the mode or each
// other, ErrNotImplemented.
func Networks(hc *container.HostConfig, nc *network.NetworkingConfig) ([]Network, error) {
	mode := hc.NetworkMode
	if mode.IsNone() || mode.IsContainer() {
		for name, s := range nc.EndpointsConfig {
			switch {
			case name != string(mode):
				return nil, invalid("conflicting options: a container with network mode %q cannot be connected to network %q", mode, name)
			case s == nil:
			case len(s.MacAddress) > 0:
				return nil, invalid("conflicting options: mac-address and the network mode")
			case s.IPAMConfig != nil && (s.IPAMConfig.IPv4Address.IsValid() || s.IPAMConfig.IPv6Address.IsValid()):
				return nil, invalid("user specified IP address is supported on user defined networks only")
			}
		}
		return nil, nil
	}
	first := string(mode)
	if first == "" {
		first = network.NetworkDefault
	}
	list := []Network{{Name: first, Settings: &network.EndpointSettings{}}}
	for _, name := range slices.Sorted(maps.Keys(nc.EndpointsConfig)) {
		s := nc.EndpointsConfig[name]
		if s == nil {
			s = &network.EndpointSettings{}
		}
		if err := CheckEndpoint(s); err != nil {
			return nil, err
		}
		if name == first || name == network.NetworkDefault {
			list[0].Settings = s
			continue
		}
		list = append(list, Network{name, s})
	}
	return list, nil
}

// CheckShared looks at what a client wants of a container that is to share another's network: nothing of its own. hc may be
// nil. The words are docker's. Errors: ErrInvalidArgument.
func CheckShared(config *container.Config, hc *container.HostConfig) error {
	switch {
	case hc == nil || !hc.NetworkMode.IsContainer():
		return nil
	case hc.NetworkMode.ConnectedContainer() == "":
		return invalid("invalid network mode: invalid container format container:<name|id>")
	case config.Hostname != "":
		return invalid("conflicting options: hostname and the network mode")
	case len(hc.Links) > 0:
		return invalid("conflicting options: container type network can't be used with links. This would result in undefined behavior")
	case len(hc.DNS) > 0:
		return invalid("conflicting options: dns and the network mode")
	case len(hc.ExtraHosts) > 0:
		return invalid("conflicting options: custom host-to-IP mapping and the network mode")
	case len(hc.PortBindings) > 0 || hc.PublishAllPorts:
		return invalid("conflicting options: port publishing and the container type network mode")
	case len(config.ExposedPorts) > 0:
		return invalid("conflicting options: port exposing and the container type network mode")
	}
	return nil
}

// CheckEndpoint looks at what a client wants of an endpoint. Errors: as Networks.
func CheckEndpoint(s *network.EndpointSettings) error {
	if _, err := LinkNames(s); err != nil {
		return err
	}
	for _, a := range s.Aliases {
		if !printable(a) || len(a) > 253 {
			return invalid("invalid network alias %q", a)
		}
	}
	if len(s.MacAddress) != 0 && (len(s.MacAddress) != 6 || s.MacAddress[0]&1 != 0) {
		return invalid("invalid MAC address %s", s.MacAddress)
	}
	ipam := s.IPAMConfig
	if ipam == nil {
		return nil
	}
	switch {
	case len(ipam.LinkLocalIPs) > 0:
		return unsupported("a link-local address (--link-local-ip)")
	case ipam.IPv4Address.IsValid() && !ipam.IPv4Address.Is4():
		return invalid("invalid IPv4 address: %s", ipam.IPv4Address)
	case ipam.IPv6Address.IsValid() && (!ipam.IPv6Address.Is6() || ipam.IPv6Address.Is4In6() || ipam.IPv6Address.Zone() != ""):
		return invalid("invalid IPv6 address: %s", ipam.IPv6Address)
	}
	return nil
}

// LinkNames are the names that a container has for others on one network (--link CONTAINER:NAME), each with what the other is
// found by. On a network that users make a link is such a name and nothing else; HostConfig.Links mean nothing there, as with
// docker. Errors: ErrInvalidArgument.
func LinkNames(s *network.EndpointSettings) (map[string]string, error) {
	var names map[string]string
	for _, l := range s.Links {
		other, name, named := strings.Cut(l, ":")
		other, name = strings.TrimPrefix(other, "/"), path.Base(name) // "/web/db" is how inspect shows a link
		if !named {
			name = other
		}
		if !printable(other) || !printable(name) || len(name) > 253 || strings.Contains(name, ":") {
			return nil, invalid("bad format for links: %s", l)
		}
		if names == nil {
			names = map[string]string{}
		}
		names[name] = other
	}
	return names, nil
}

// Publication is a port of the container that the host is to publish.
type Publication struct {
	Port     network.Port
	HostIP   netip.Addr // the zero Addr: all of the host's
	From, To uint16     // any one of these; 0 and 0: one of the node's choice
}

// Publications are the ports that a container publishes, in order: those of -p, and with -P all exposed ones that -p does not
// name. Errors: ErrInvalidArgument in docker's words.
func Publications(config *container.Config, hc *container.HostConfig) ([]Publication, error) {
	byPort := func(a, b network.Port) int {
		return cmp.Or(cmp.Compare(a.Num(), b.Num()), cmp.Compare(a.Proto(), b.Proto()))
	}
	var list []Publication
	for _, port := range slices.SortedFunc(maps.Keys(hc.PortBindings), byPort) {
		if err := checkPort(port); err != nil {
			return nil, err
		}
		bindings := hc.PortBindings[port]
		if len(bindings) == 0 { // docker publishes it at a port of its choice
			bindings = []network.PortBinding{{}}
		}
		for _, b := range bindings {
			from, to, err := portRange(b.HostPort)
			if err != nil {
				return nil, err
			}
			list = append(list, Publication{Port: port, HostIP: b.HostIP, From: from, To: to})
		}
	}
	if !hc.PublishAllPorts {
		return list, nil
	}
	for _, port := range slices.SortedFunc(maps.Keys(config.ExposedPorts), byPort) {
		if err := checkPort(port); err != nil {
			return nil, err
		}
		if _, named := hc.PortBindings[port]; !named {
			list = append(list, Publication{Port: port})
		}
	}
	return list, nil
}

func checkPort(p network.Port) error {
	switch {
	case !p.IsValid() || p.Num() == 0:
		return invalid("invalid port specification: %q", p)
	case p.Proto() == network.SCTP:
		return unsupported("publishing an SCTP port (%s)", p)
	}
	return nil
}

// portRange reads "", "80" or "8000-8010".
func portRange(s string) (from, to uint16, err error) {
	if s == "" {
		return 0, 0, nil
	}
	first, last, isRange := strings.Cut(s, "-")
	if !isRange {
		last = first
	}
	a, errA := strconv.ParseUint(first, 10, 16)
	b, errB := strconv.ParseUint(last, 10, 16)
	if errA != nil || errB != nil || a > b || a == 0 && isRange {
		return 0, 0, invalid("invalid port specification: %q", s)
	}
	return uint16(a), uint16(b), nil
}
