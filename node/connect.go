package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	mobynet "github.com/moby/moby/api/types/network"

	"github.com/cradlevm/cradle/api"
	"github.com/cradlevm/cradle/network"
	"github.com/cradlevm/cradle/node/runspec"
)

// NetworkConnect implements dockerapi.Backend. A running container is on the network when it returns; one that is not is at
// its next start.
func (n *Node) NetworkConnect(ctx context.Context, name, containerName string, endpoint *mobynet.EndpointSettings) error {
	found, err := n.findNetwork(name)
	if err != nil {
		return err
	}
	if found.Name == mobynet.NetworkNone {
		return invalid("container cannot be connected to network none")
	}
	if err := runspec.CheckEndpoint(endpoint); err != nil {
		return err
	}
	c, err := n.find(containerName)
	if err != nil {
		return err
	}
	c.op.Lock()
	defer c.op.Unlock()
	c.closeDesk()
	rec := c.snapshot()
	switch {
	case rec.Hibernated:
		return conflict("container %s is hibernated: start it before its networks are changed", c.id)
	case rec.HostConfig.NetworkMode.IsNone():
		return invalid("container cannot be connected to multiple networks with one of the networks in private (none) mode")
	case rec.HostConfig.NetworkMode.IsContainer():
		return invalid("container sharing network namespace with another container or host cannot be connected to any other network")
	case slices.ContainsFunc(rec.Links, func(l link) bool { return l.Name == found.Name }):
		return cerrdefs.ErrPermissionDenied.WithMessage(fmt.Sprintf("endpoint with name %s already exists in network %s", rec.Name, found.Name))
	case len(rec.Links) >= nicSlots:
		return invalid("container %s is on %d networks already; its machine has no interface for another", rec.Name, len(rec.Links))
	}
	links := append(slices.Clone(rec.Links), link{Name: found.Name, Settings: *endpoint})
	if r, err := c.current(); err == nil {
		if err := c.connect(ctx, r, rec, links); err != nil {
			return err
		}
	} else if c.isActive() {
		return conflict("container %s is about to start", c.id)
	}
	if err := c.change(func(r *record) { r.Links = links }); err != nil {
		return err
	}
	n.networkEvent(events.ActionConnect, found.ID, found.Name, c.id)
	return nil
}

// connect puts a running container on one more network, that of the last of links. When that is its way out from now on, the
// published ports lead through it.
func (c *ctr) connect(ctx context.Context, r *run, rec record, links []link) (err error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), connectLimit)
	defer cancel()
	if rec.Sandbox == nil {
		return conflict("container %s is not running", c.id)
	}
	nics := rec.Sandbox.VM.NICs
	slot := 0
	for slices.ContainsFunc(rec.Links, func(other link) bool { return other.Endpoint != nil && other.Slot == slot }) {
		slot++
	}
	if slot >= len(nics) {
		return invalid("the machine of container %s has no interface for another network", rec.Name)
	}
	l := &links[len(links)-1]
	if err := c.attach(ctx, rec, l, slot, nics[slot], nil); err != nil {
		return err
	}
	err = c.plug(ctx, r.vm, []link{*l})
	if err == nil {
		err = c.configure(ctx, r, rec, links)
	}
	if err != nil {
		c.leave([]link{*l})
		return err
	}
	if err := c.movePorts(ctx, rec, links, nil); err != nil {
		old := links[:len(links)-1]
		return errors.Join(err, c.leave([]link{*l}), c.configure(ctx, r, rec, old))
	}
	return nil
}

// NetworkDisconnect implements dockerapi.Backend.
func (n *Node) NetworkDisconnect(ctx context.Context, name, containerName string, force bool) error {
	found, err := n.findNetwork(name)
	if err != nil {
		return err
	}
	c, err := n.find(containerName)
	if err != nil {
		return err
	}
	c.op.Lock()
	defer c.op.Unlock()
	c.closeDesk()
	rec := c.snapshot()
	at := slices.IndexFunc(rec.Links, func(l link) bool { return l.Name == found.Name })
	if at < 0 {
		return cerrdefs.ErrPermissionDenied.WithMessage(fmt.Sprintf("container %s is not connected to network %s", c.id, found.Name))
	}
	gone := rec.Links[at]
	links := slices.Delete(slices.Clone(rec.Links), at, at+1)
	if err := c.change(func(r *record) { r.Links = links }); err != nil {
		return err
	}
	if gone.Endpoint != nil {
		if err := c.disconnect(ctx, rec, links, gone, force); err != nil {
			return err
		}
	}
	n.networkEvent(events.ActionDisconnect, found.ID, found.Name, c.id)
	return nil
}

// disconnect takes a container off a network that its record does not name any more. The endpoint goes last: as long as it
// is there, it tells the next daemon of a change that was cut short. With force, it goes whatever the guest says.
func (c *ctr) disconnect(ctx context.Context, rec record, links []link, gone link, force bool) error {
	var err error
	if r, notRunning := c.current(); notRunning == nil {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), connectLimit)
		defer cancel()
		links = slices.Clone(links)
		err = c.movePorts(ctx, rec, links, &gone)
		err = errors.Join(err, c.configure(ctx, r, rec, links), c.change(func(r *record) { r.Links = links }))
	}
	if force {
		err = nil
	}
	return errors.Join(err, c.leave([]link{gone}))
}

// mendNetworks finishes a change of a running container's networks that a crash cut short: it is on those that its record
// names, on no others, and the published ports lead to its way out.
func (c *ctr) mendNetworks() {
	c.op.Lock()
	defer c.op.Unlock()
	rec := c.snapshot()
	links, gone, err := c.node.matchLinks(rec)
	for _, l := range gone {
		c.node.options.Log.Info("finish a change of networks that was cut short", "container", c.id, "network", l.Name)
		err = errors.Join(err, c.disconnect(c.node.ctx, rec, links, l, false))
		links = c.snapshot().Links
	}
	if err != nil {
		c.node.options.Log.Error("mend networks", "container", c.id, "err", err)
	}
}

// lost has a machine part with a TAP that somebody has deleted: QEMU would ask it for frames without end, at the cost of a
// processor. The container has that network again when it is started again. false: there is nobody to tell yet.
func (n *Node) lost(endpoint string) bool {
	for _, c := range n.all() {
		for _, l := range c.snapshot().Links {
			if l.Endpoint == nil || l.Endpoint.ID != endpoint {
				continue
			}
			r, err := c.current()
			if err != nil {
				return false
			}
			n.options.Log.Warn("somebody has deleted the interface of a container: restart it", "container", c.id, "network", l.Name, "interface", l.Endpoint.TAP)
			ctx, cancel := context.WithTimeout(n.ctx, attachLimit)
			defer cancel()
			if err := r.vm.CutNIC(ctx, l.Slot); err != nil {
				n.options.Log.Error("part a machine from its interface", "container", c.id, "err", err)
			}
			return true
		}
	}
	return false
}

// matchLinks returns a record's links with their endpoints as the networks have them, and those that the record lacks.
func (n *Node) matchLinks(rec record) (links, gone []link, err error) {
	links = slices.Clone(rec.Links)
	if n.networks == nil {
		return links, nil, nil
	}
	all, err := n.networks.Endpoints("")
	if err != nil {
		return links, nil, err
	}
	for _, e := range all {
		if e.Sandbox != rec.ID {
			continue
		}
		at := slices.IndexFunc(links, func(l link) bool { return l.Endpoint != nil && l.Endpoint.ID == e.ID })
		if at < 0 {
			gone = append(gone, link{Name: e.NetworkName, Endpoint: &e})
			continue
		}
		e.Policy = network.Policy{} // the record has it in the user's words
		links[at].Endpoint = &e
	}
	return links, gone, nil
}

// configure gives the guest of a running container these links.
func (c *ctr) configure(ctx context.Context, r *run, rec record, links []link) error {
	spec := rec.spec()
	spec.Net = c.node.addressing(rec, links)
	files, err := runspec.Files(spec)
	if err != nil {
		return err
	}
	follow := []api.ContainerFiles{{ID: c.id, Files: files}}
	for _, other := range r.sharers() {
		follow = append(follow, api.ContainerFiles{ID: other.id, Files: files})
	}
	return r.vm.Network(ctx, api.NetworkRequest{Interfaces: interfaces(links, c.node.wayOut(links)), Files: follow})
}

// endpointsOf is what the API shows of a container's networks.
func endpointsOf(r record) map[string]*mobynet.EndpointSettings {
	out := map[string]*mobynet.EndpointSettings{}
	for _, l := range r.Links {
		s := l.Settings
		e := l.Endpoint
		if e == nil {
			out[l.Name] = &s
			continue
		}
		s.NetworkID, s.EndpointID = e.Network, e.ID
		s.MacAddress, _ = parseMAC(e.MAC)
		s.Gateway, s.IPv6Gateway = e.Gateway4, e.Gateway6
		if e.IPv4.IsValid() {
			s.IPAddress, s.IPPrefixLen = e.IPv4.Addr(), e.IPv4.Bits()
		}
		if e.IPv6.IsValid() {
			s.GlobalIPv6Address, s.GlobalIPv6PrefixLen = e.IPv6.Addr(), e.IPv6.Bits()
		}
		s.DNSNames = nil
		if l.Name != network.Default {
			s.DNSNames = append([]string{r.Name}, s.Aliases...)
			if short := r.ID[:12]; !slices.Contains(s.DNSNames, short) {
				s.DNSNames = append(s.DNSNames, short)
			}
		}
		out[l.Name] = &s
	}
	if len(out) == 0 && !r.HostConfig.NetworkMode.IsContainer() {
		out[mobynet.NetworkNone] = &mobynet.EndpointSettings{}
		if !r.Started.IsZero() {
			out[mobynet.NetworkNone].NetworkID = noneNetworkID
		}
	}
	return out
}

// portsOf is what the API shows of a running container's ports: published ones, and exposed ones without a host's port.
func portsOf(r record) mobynet.PortMap {
	out := mobynet.PortMap{}
	on := false
	for _, l := range r.Links {
		if l.Endpoint == nil {
			continue
		}
		on = true
		for _, p := range l.Endpoint.Ports {
			port, ok := mobynet.PortFrom(p.Container, mobynet.IPProtocol(p.Protocol))
			if !ok {
				continue
			}
			out[port] = append(out[port], mobynet.PortBinding{HostIP: p.HostIP, HostPort: fmt.Sprint(p.Host)})
		}
	}
	if on {
		for port := range r.Config.ExposedPorts {
			if _, there := out[port]; !there {
				out[port] = nil
			}
		}
	}
	return out
}

// portSummary is portsOf as a list of containers has it.
func portSummary(r record) []container.PortSummary {
	out := []container.PortSummary{}
	for port, bindings := range portsOf(r) {
		one := container.PortSummary{PrivatePort: port.Num(), Type: string(port.Proto())}
		if len(bindings) == 0 {
			out = append(out, one)
		}
		for _, b := range bindings {
			public, _ := strconv.ParseUint(b.HostPort, 10, 16)
			one.IP, one.PublicPort = b.HostIP, uint16(public)
			out = append(out, one)
		}
	}
	slices.SortFunc(out, func(a, b container.PortSummary) int {
		return cmp.Or(cmp.Compare(a.PrivatePort, b.PrivatePort), cmp.Compare(a.Type, b.Type), a.IP.Compare(b.IP), cmp.Compare(a.PublicPort, b.PublicPort))
	})
	return out
}

func parseMAC(s string) (mobynet.HardwareAddr, error) {
	mac, err := net.ParseMAC(s)
	return mobynet.HardwareAddr(mac), err
}
