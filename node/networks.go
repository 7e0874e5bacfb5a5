package node

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/events"
	mobynet "github.com/moby/moby/api/types/network"

	"github.com/cradlevm/cradle/dockerapi"
	"github.com/cradlevm/cradle/network"
)

// noneNetworkID is the id under which the API shows the network "none": SHA-256 of its name, since docker's clients expect
// an id of this form.
const noneNetworkID = "140bedbf9c3f6d56a9846d2ba7088798683f4da0c248231336e6a05679e4fdfe"

// noneNetwork is the network of containers that have none.
func noneNetwork() mobynet.Network {
	return mobynet.Network{
		Name: mobynet.NetworkNone, ID: noneNetworkID, Scope: "local", Driver: "null", EnableIPv4: true,
		IPAM:    mobynet.IPAM{Driver: "default", Config: []mobynet.IPAMConfig{}},
		Options: map[string]string{}, Labels: map[string]string{},
	}
}

// networkError gives an error of the networks its class.
func networkError(err error) error {
	for kind, class := range map[error]error{
		network.ErrInvalid: cerrdefs.ErrInvalidArgument, network.ErrNotFound: cerrdefs.ErrNotFound,
		network.ErrExists: cerrdefs.ErrConflict, network.ErrInUse: cerrdefs.ErrPermissionDenied,
		network.ErrExhausted: cerrdefs.ErrUnavailable, network.ErrPortTaken: errInternal, // docker's: 500
		network.ErrUnsupported: cerrdefs.ErrNotImplemented, network.ErrLost: errInternal,
		network.ErrOverlap: cerrdefs.ErrConflict,
	} {
		if errors.Is(err, kind) {
			return &classed{err.Error(), class}
		}
	}
	return err
}

// describe is a network as the API has it.
func describe(n network.Network) mobynet.Network {
	out := mobynet.Network{
		Name: n.Name, ID: n.ID, Created: n.Created, Scope: "local", Driver: n.Driver, EnableIPv4: true, EnableIPv6: n.IPv6,
		IPAM:     mobynet.IPAM{Driver: "default", Config: []mobynet.IPAMConfig{}},
		Internal: n.Internal, Options: map[string]string{}, Labels: map[string]string{},
	}
	maps.Copy(out.Options, n.Options)
	maps.Copy(out.Labels, n.Labels)
	for _, s := range n.Subnets {
		out.IPAM.Config = append(out.IPAM.Config, mobynet.IPAMConfig{Subnet: s.Prefix, Gateway: s.Gateway, IPRange: s.Range, AuxAddress: s.Aux})
	}
	return out
}

// listNetworks are all networks: those of package network, of which "none" is shown under our own id, or only that.
func (n *Node) listNetworks() []mobynet.Network {
	list := []mobynet.Network{noneNetwork()}
	if n.networks == nil {
		return list
	}
	for _, one := range n.networks.List() {
		if one.Name != network.None {
			list = append(list, describe(one))
		}
	}
	slices.SortFunc(list, func(a, b mobynet.Network) int { return strings.Compare(a.Name, b.Name) })
	return list
}

// NetworkList implements dockerapi.Backend.
func (n *Node) NetworkList(_ context.Context, filters dockerapi.Filters) ([]mobynet.Summary, error) {
	used := map[string]bool{}
	for _, c := range n.all() {
		for _, l := range c.snapshot().Links {
			used[l.Name] = true
		}
	}
	var out []mobynet.Summary
	for _, one := range n.listNetworks() {
		ok := true
		for key, values := range filters {
			ok = ok && anyValue(values, func(v string) bool { return networkMatches(one, used[one.Name], key, v) })
		}
		if ok {
			out = append(out, mobynet.Summary{Network: one})
		}
	}
	return out, nil
}

func anyValue(values map[string]bool, is func(string) bool) bool {
	for v := range values {
		if is(v) {
			return true
		}
	}
	return len(values) == 0
}

// builtIn tells whether a network is always there.
func builtIn(name string) bool {
	return name == mobynet.NetworkNone || name == network.Default
}

func networkMatches(n mobynet.Network, used bool, key, value string) bool {
	switch key {
	case "name":
		return strings.Contains(n.Name, value)
	case "id":
		return strings.HasPrefix(n.ID, value)
	case "driver":
		return n.Driver == value
	case "scope":
		return n.Scope == value
	case "type":
		return value == "builtin" && builtIn(n.Name) || value == "custom" && !builtIn(n.Name)
	case "label":
		return matchesLabels(n.Labels, map[string]bool{value: true})
	case "dangling":
		return (value == "true" || value == "1") == (!used && !builtIn(n.Name))
	}
	return false
}

// NetworkInspect implements dockerapi.Backend.
func (n *Node) NetworkInspect(_ context.Context, name string) (mobynet.Inspect, error) {
	found, err := n.findNetwork(name)
	if err != nil {
		return mobynet.Inspect{}, err
	}
	out := mobynet.Inspect{Network: found, Containers: map[string]mobynet.EndpointResource{}}
	for _, c := range n.all() {
		rec := c.snapshot()
		for _, l := range rec.Links {
			e := l.Endpoint
			if e == nil || e.Network != found.ID {
				continue
			}
			mac, _ := parseMAC(e.MAC)
			out.Containers[c.id] = mobynet.EndpointResource{
				Name: rec.Name, EndpointID: e.ID, MacAddress: mac, IPv4Address: e.IPv4, IPv6Address: e.IPv6,
			}
		}
	}
	return out, nil
}

// findNetwork finds a network by name, id or the beginning of an id.
func (n *Node) findNetwork(name string) (mobynet.Network, error) {
	none := noneNetwork()
	isNone := name != "" && strings.HasPrefix(none.ID, name)
	if name == none.Name || name == none.ID || n.networks == nil && isNone {
		return none, nil
	}
	if n.networks == nil {
		return mobynet.Network{}, notFound("network %s not found", name)
	}
	found, err := n.networks.Get(name)
	switch {
	case isNone && errors.Is(err, network.ErrNotFound):
		return none, nil
	case err != nil:
		return mobynet.Network{}, networkError(err)
	}
	return describe(found), nil
}

// NetworkCreate implements dockerapi.Backend.
func (n *Node) NetworkCreate(ctx context.Context, r mobynet.CreateRequest) (mobynet.CreateResponse, error) {
	switch {
	case n.networks == nil:
		return mobynet.CreateResponse{}, unsupported("Creating a network is not possible here: %v", n.noNetworks)
	case r.Ingress, r.ConfigOnly, r.ConfigFrom != nil && r.ConfigFrom.Network != "", r.Scope != "" && r.Scope != "local":
		return mobynet.CreateResponse{}, unsupported("A network of a swarm, or of a configuration, is not supported by cradle")
	case r.EnableIPv4 != nil && !*r.EnableIPv4:
		return mobynet.CreateResponse{}, unsupported("A network without IPv4 is not supported by cradle")
	}
	spec := network.Spec{
		Name: r.Name, Driver: r.Driver, IPv6: r.EnableIPv6 != nil && *r.EnableIPv6, Internal: r.Internal, Labels: r.Labels, Options: r.Options,
	}
	if spec.Driver == "default" {
		spec.Driver = ""
	}
	if ipam := r.IPAM; ipam != nil {
		if ipam.Driver != "" && ipam.Driver != "default" || len(ipam.Options) > 0 {
			return mobynet.CreateResponse{}, unsupported("The IPAM driver %q or its options are not supported by cradle", ipam.Driver)
		}
		for _, c := range ipam.Config {
			spec.Subnets = append(spec.Subnets, network.Subnet{Prefix: c.Subnet, Gateway: c.Gateway, Range: c.IPRange, Aux: c.AuxAddress})
		}
	}
	made, err := n.networks.Create(ctx, spec)
	if err != nil {
		return mobynet.CreateResponse{}, networkError(err)
	}
	n.networkEvent(events.ActionCreate, made.ID, made.Name, "")
	return mobynet.CreateResponse{ID: made.ID}, nil
}

// networkEvent tells of a network, and of a container on it where there is one.
func (n *Node) networkEvent(action events.Action, id, name, container string) {
	attributes := map[string]string{"name": name, "type": "bridge"}
	if container != "" {
		attributes["container"] = container
	}
	n.events.add(events.NetworkEventType, action, id, attributes)
}

// NetworkRemove implements dockerapi.Backend. A network that a container is to be on when it starts again may go, as with
// docker.
func (n *Node) NetworkRemove(ctx context.Context, name string) error {
	found, err := n.findNetwork(name)
	if err != nil {
		return err
	}
	if builtIn(found.Name) {
		return cerrdefs.ErrPermissionDenied.WithMessage(found.Name + " is a pre-defined network and cannot be removed")
	}
	if err := n.networks.Remove(ctx, found.ID); err != nil {
		return networkError(err)
	}
	n.networkEvent(events.ActionDestroy, found.ID, found.Name, "")
	return nil
}

// NetworkPrune implements dockerapi.Backend.
func (n *Node) NetworkPrune(ctx context.Context, filters dockerapi.Filters) (mobynet.PruneReport, error) {
	if err := knownFilters(filters, "label", "label!", "until"); err != nil {
		return mobynet.PruneReport{}, err
	}
	until, err := pruneUntil(filters)
	if err != nil || n.networks == nil {
		return mobynet.PruneReport{}, err
	}
	before := map[string]string{} // name → id
	for _, one := range n.networks.List() {
		before[one.Name] = one.ID
	}
	gone, err := n.networks.Prune(ctx, func(one network.Network) bool {
		return matchesLabels(one.Labels, filters["label"]) &&
			(len(filters["label!"]) == 0 || !matchesLabels(one.Labels, filters["label!"])) &&
			(until.IsZero() || one.Created.Before(until))
	})
	for _, name := range gone {
		n.networkEvent(events.ActionDestroy, before[name], name, "")
	}
	n.pruned(events.NetworkEventType, 0)
	return mobynet.PruneReport{NetworksDeleted: gone}, networkError(err)
}

// connectLimit bounds a change of a running container's networks.
const connectLimit = 30 * time.Second
