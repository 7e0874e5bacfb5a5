package node

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	mobynet "github.com/moby/moby/api/types/network"

	"github.com/cradlevm/cradle/api"
	"github.com/cradlevm/cradle/network"
	"github.com/cradlevm/cradle/node/runspec"
	"github.com/cradlevm/cradle/sandbox"
	"github.com/cradlevm/cradle/vm"
)

// nicSlots is how many network interfaces each VM is made with, and so how many networks a container can be on: they
// cannot be plugged. An interface that is not used costs the guest a few milliseconds of its boot, which only templates do.
const nicSlots = 3

// link is a container's place on a network.
type link struct {
	Name     string                   // of the network, when the container was put on it
	Settings mobynet.EndpointSettings // what the user asked for
	Endpoint *network.Endpoint        `json:",omitempty"` // while there is a VM
	Slot     int                      `json:",omitempty"` // its interface, then
	Policy   *api.NetworkPolicy       `json:",omitempty"` // in place of the container's
}

// newNICs makes the interfaces of a VM, connected to nothing yet.
func (n *Node) newNICs(count int) (nics []vm.NIC, err error) {
	for range count {
		switch {
		case n.networks == nil:
			nics = append(nics, vm.NIC{})
			continue
		case n.networks.Streams():
			nics = append(nics, vm.NIC{Stream: true})
			continue
		}
		tap, err := n.networks.MakeTAP(context.Background())
		if err != nil {
			return nil, errors.Join(fmt.Errorf("make network interface: %w", err), n.dropNICs(nics))
		}
		nics = append(nics, vm.NIC{TAP: tap})
	}
	return nics, nil
}

// dropNICs removes the interfaces of a VM that has gone, and all that the networks have of them.
func (n *Node) dropNICs(nics []vm.NIC) error {
	var errs []error
	for _, nic := range nics {
		if nic.TAP != "" && n.networks != nil {
			errs = append(errs, n.networks.RemoveTAP(context.Background(), nic.TAP))
		}
	}
	return errors.Join(errs...)
}

// join puts a container whose VM is up on its networks: the host's side. The guest's is left to the request, which gets the
// interfaces and the files that follow the networks. The links are in the record from then on, and on the disk when the start is recorded. What
// undoes it is pushed.
func (c *ctr) join(ctx context.Context, machine *sandbox.Sandbox, rec record, request *api.CreateRequest, undo *undoStack) error {
	links, files, err := c.attachAll(ctx, rec, undo)
	if err != nil || len(links) == 0 {
		return err
	}
	if err := c.plug(ctx, machine, links); err != nil {
		return err
	}
	request.Files = slices.Concat(files, request.Files[len(files):]) // and then those that are the same on all networks
	request.Network = &api.NetworkRequest{Interfaces: interfaces(links, c.node.wayOut(links))}
	c.linked(links)
	return nil
}

// rejoin is join for a container that goes on from a saved one: its files are there, and change.
func (c *ctr) rejoin(ctx context.Context, machine *sandbox.Sandbox, rec record, undo *undoStack) error {
	links, files, err := c.attachAll(ctx, rec, undo)
	if err != nil {
		return hostError{err}
	}
	if len(links) == 0 {
		return nil
	}
	return c.joined(ctx, machine, links, []api.ContainerFiles{{ID: c.id, Files: files}})
}

// attachAll makes the endpoints of all of a container's links, and the files that follow from them.
func (c *ctr) attachAll(ctx context.Context, rec record, undo *undoStack) ([]link, []api.File, error) {
	if len(rec.Links) == 0 {
		return nil, nil, nil
	}
	if c.node.networks == nil {
		return nil, nil, unsupported("networks are not there: %v", c.node.noNetworks)
	}
	nics := c.snapshot().Sandbox.VM.NICs
	if len(rec.Links) > len(nics) {
		return nil, nil, invalid("container %s is on %d networks; its machine has %d interfaces", c.id, len(rec.Links), len(nics))
	}
	published, err := runspec.Publications(&rec.Config, &rec.HostConfig)
	if err != nil {
		return nil, nil, err
	}
	links := slices.Clone(rec.Links)
	undo.push("network endpoints", func() error { return c.unjoin(links) })
	out := c.node.wayOut(links)
	for i := range links {
		var ports []runspec.Publication
		if i == out {
			ports = published
		}
		if err := c.attach(ctx, rec, &links[i], i, nics[i], ports); err != nil {
			return nil, nil, err
		}
	}
	spec := rec.spec()
	spec.Net = c.node.addressing(rec, links)
	files, err := runspec.Files(spec)
	return links, files, err
}

// joined configures the guest's side of links whose endpoints are there, and files of containers that are.
func (c *ctr) joined(ctx context.Context, machine *sandbox.Sandbox, links []link, files []api.ContainerFiles) error {
	if err := c.plug(ctx, machine, links); err != nil {
		return err
	}
	if err := machine.Network(ctx, api.NetworkRequest{Interfaces: interfaces(links, c.node.wayOut(links)), Files: files}); err != nil {
		return fmt.Errorf("configure network of container %s: %w", c.id, err)
	}
	c.linked(links)
	return nil
}

// linked notes links whose endpoints are there.
func (c *ctr) linked(links []link) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.rec.Links = links
}

// unjoin takes back what join did, as far as it came.
func (c *ctr) unjoin(links []link) error {
	c.mu.Lock()
	c.rec.Links = unlinked(c.rec.Links)
	c.mu.Unlock()
	return c.leave(links)
}

// attach makes one endpoint.
func (c *ctr) attach(ctx context.Context, rec record, l *link, slot int, nic vm.NIC, published []runspec.Publication) error {
	s := network.EndpointSpec{
		Network: l.Name, Sandbox: c.id, Container: c.id, Name: rec.Name, Aliases: l.Settings.Aliases, TAP: nic.TAP,
		MAC: net.HardwareAddr(l.Settings.MacAddress), DNS: rec.HostConfig.DNS,
	}
	if ipam := l.Settings.IPAMConfig; ipam != nil {
		s.IPv4, s.IPv6 = ipam.IPv4Address, ipam.IPv6Address
	}
	s.Ports = portSpecs(published)
	s.Host = runspec.NeedsHost(&rec.HostConfig)
	var err error
	if s.Links, err = runspec.LinkNames(&l.Settings); err != nil {
		return err
	}
	if s.Policy, err = compilePolicy(rec.policyOf(*l)); err != nil {
		return err
	}
	e, err := c.node.networks.Attach(ctx, s)
	if err != nil {
		return networkError(err)
	}
	e.Policy = network.Policy{} // the record has it already, in the user's words
	l.Name, l.Endpoint, l.Slot = e.NetworkName, &e, slot
	return nil
}

// plug gives the endpoints that are streams those of the VM's interfaces.
func (c *ctr) plug(ctx context.Context, machine *sandbox.Sandbox, links []link) error {
	if c.node.networks == nil || !c.node.networks.Streams() {
		return nil
	}
	for _, l := range links {
		if l.Endpoint == nil {
			continue
		}
		stream, err := machine.DialNIC(ctx, l.Slot)
		if err == nil {
			err = c.node.networks.Plug(l.Endpoint.ID, stream)
		}
		if err != nil {
			return fmt.Errorf("connect container %s to network %s: %w", c.id, l.Name, err)
		}
	}
	return nil
}

// portSpecs are published ports as the networks have them.
func portSpecs(published []runspec.Publication) []network.PortSpec {
	var specs []network.PortSpec
	for _, p := range published {
		specs = append(specs, network.PortSpec{
			Protocol: string(p.Port.Proto()), HostIP: p.HostIP, Host: p.From, HostEnd: p.To, Container: p.Port.Num(),
		})
	}
	return specs
}

// leave takes endpoints away. It does not depend on anybody's patience: what is left would be found only at the next
// start of the daemon.
func (c *ctr) leave(links []link) error {
	var errs []error
	for _, l := range links {
		if l.Endpoint != nil && c.node.networks != nil {
			errs = append(errs, c.node.networks.Detach(context.Background(), l.Endpoint.ID))
		}
	}
	return errors.Join(errs...)
}

// unlinked are links as they are without a VM.
func unlinked(links []link) []link {
	out := slices.Clone(links)
	for i := range out {
		out[i].Endpoint, out[i].Slot = nil, 0
	}
	return out
}

// ownLinks are links for a clone: to the same networks, with addresses of its own.
func ownLinks(links []link) []link {
	out := unlinked(links)
	for i := range out {
		out[i].Settings.IPAMConfig, out[i].Settings.MacAddress = nil, nil
	}
	return out
}

// anyHostPort are bindings for a clone: the source has the host's ports, and the clone gets others.
func anyHostPort(ports mobynet.PortMap) mobynet.PortMap {
	out := maps.Clone(ports)
	for port, bindings := range out {
		bindings = slices.Clone(bindings)
		for i := range bindings {
			bindings[i].HostPort = ""
		}
		out[port] = bindings
	}
	return out
}

// wayOut picks the link that has the default route and the published ports: of the highest priority, then by the
// network's name; internal networks only when there are no others. -1 without links.
func (n *Node) wayOut(links []link) int {
	best := -1
	internal := func(l link) bool {
		net, err := n.networks.Get(l.Name)
		return err == nil && net.Internal
	}
	for i, l := range links {
		switch {
		case best < 0, !internal(l) && internal(links[best]):
			best = i
		case internal(l) && !internal(links[best]):
		case l.Settings.GwPriority > links[best].Settings.GwPriority,
			l.Settings.GwPriority == links[best].Settings.GwPriority && l.Name < links[best].Name:
			best = i
		}
	}
	return best
}

// interfaces are the guest's side of links that have their endpoints; the default routes are those of the link at out.
func interfaces(links []link, out int) []api.Interface {
	var list []api.Interface
	for at, l := range links {
		e := l.Endpoint
		i := bareInterface(l.Slot, e.MTU, e.IPv6.IsValid())
		i.MAC = e.MAC
		gateways := map[string]netip.Addr{"0.0.0.0/0": e.Gateway4, "::/0": e.Gateway6}
		for _, p := range []netip.Prefix{e.IPv4, e.IPv6} {
			if p.IsValid() {
				i.Addresses = append(i.Addresses, p.String())
			}
		}
		for _, to := range slices.Sorted(maps.Keys(gateways)) {
			if g := gateways[to]; g.IsValid() && at == out {
				i.Routes = append(i.Routes, api.Route{Destination: to, Gateway: g.String()})
			}
		}
		list = append(list, i)
	}
	return list
}

// bareInterface is an interface as it is before it has addresses.
func bareInterface(slot, mtu int, ipv6 bool) api.Interface {
	i := api.Interface{
		Slot: slot, Name: fmt.Sprintf("eth%d", slot), MTU: mtu,
		Sysctls: []api.Sysctl{{Family: "ipv6", Key: "accept_ra", Value: "0"}},
	}
	if !ipv6 {
		i.Sysctls = append(i.Sysctls, api.Sysctl{Family: "ipv6", Key: "disable_ipv6", Value: "1"})
	}
	return i
}

// interfacesAhead are the interfaces that links are going to have, in the order of their slots, without what nobody knows
// before there are endpoints; none where IPv6, which derives an address from the hardware's, would be up too early.
func (n *Node) interfacesAhead(links []link) []api.Interface {
	if n.networks == nil {
		return nil
	}
	var list []api.Interface
	for slot, l := range links {
		net, err := n.networks.Get(l.Name)
		if err != nil || net.Driver != "bridge" || net.IPv6 {
			return nil
		}
		list = append(list, bareInterface(slot, net.MTU, false))
	}
	return list
}

// usualNetworks are what a prepared VM has, and a network that no container has, configured as theirs are.
func usualNetworks() []api.NetworkRequest {
	return []api.NetworkRequest{
		{Interfaces: []api.Interface{bareInterface(0, 1500, false)}},
		{Interfaces: interfaces([]link{{Endpoint: &network.Endpoint{
			MAC: "02:42:c0:00:02:02", MTU: 1500, IPv4: netip.MustParsePrefix("192.0.2.2/24"), Gateway4: netip.MustParseAddr("192.0.2.1"),
		}}}, 0)},
	}
}

// addressing is how a container with these links is found and finds others.
func (n *Node) addressing(rec record, links []link) runspec.Addressing {
	a := runspec.Addressing{Options: []string{"ndots:0"}}
	for _, l := range links {
		e := l.Endpoint
		// On the default network containers have no names, as with docker; but what a policy says of names only our resolver can do.
		a.Resolver = a.Resolver || l.Name != network.Default || rec.namesMatter(l)
		for _, p := range []netip.Prefix{e.IPv4, e.IPv6} {
			if p.IsValid() {
				a.Addresses = append(a.Addresses, p.Addr())
			}
		}
		for _, r := range e.Resolvers {
			if !slices.Contains(a.Nameservers, r) {
				a.Nameservers = append(a.Nameservers, r)
			}
		}
		if !a.HostGateway.IsValid() {
			a.HostGateway = e.Gateway4
		}
	}
	return a
}

// linksAt makes the links that a container asks for when it is made.
func (n *Node) linksAt(rec *record, nc *mobynet.NetworkingConfig) ([]link, error) {
	wanted, err := runspec.Networks(&rec.HostConfig, nc)
	if err != nil {
		return nil, err
	}
	if len(wanted) > nicSlots {
		return nil, invalid("%d networks: a container can be on %d", len(wanted), nicSlots)
	}
	var links []link
	for _, w := range wanted {
		name := w.Name
		if name == mobynet.NetworkDefault {
			if name = n.defaultNetwork(); name == mobynet.NetworkNone {
				continue
			}
		}
		if n.networks == nil {
			return nil, unsupported("network %s: networks are not there: %v", name, n.noNetworks)
		}
		found, err := n.networks.Get(name)
		switch {
		case errors.Is(err, network.ErrNotFound): // docker tells at the start; "docker run" would take it for a missing image here
		case err != nil:
			return nil, networkError(err)
		default:
			name = found.Name
		}
		links = append(links, link{Name: name, Settings: *w.Settings})
	}
	return links, nil
}

// defaultNetwork is where containers are that name no network.
func (n *Node) defaultNetwork() string {
	if n.networks == nil {
		return mobynet.NetworkNone
	}
	return network.Default
}

// openNetworks opens the networks. Without them containers have none: what keeps them from opening is told to whoever
// asks for one.
func (n *Node) openNetworks(ctx context.Context) {
	if !n.options.Networks {
		n.noNetworks = errors.New("the daemon was started without them")
		return
	}
	// Each kind has a state of its own: what the one keeps, the other could not make.
	o := network.Options{Dir: filepath.Join(n.options.Root, "networks"), Log: n.options.Log, SpareTAPs: 2 * nicSlots, Lost: n.lost}
	if o.Streams = n.options.Streams || os.Geteuid() != 0; o.Streams {
		o.Dir = filepath.Join(n.options.Root, "streams")
	}
	nets, err := network.Open(ctx, o)
	if err != nil {
		n.noNetworks = err
		n.options.Log.Warn("containers have no networks", "reason", err)
		return
	}
	n.networks = nets
}

// reconcileNetworks removes what belongs to no container.
func (n *Node) reconcileNetworks(ctx context.Context) error {
	if n.networks == nil {
		return nil
	}
	var live network.Live
	var recs []record
	for _, c := range n.all() {
		rec := c.snapshot()
		if rec.Sandbox == nil {
			continue
		}
		recs = append(recs, rec)
		live.Sandboxes = append(live.Sandboxes, c.id)
		for _, nic := range rec.Sandbox.VM.NICs {
			if nic.TAP != "" {
				live.TAPs = append(live.TAPs, nic.TAP)
			}
		}
	}
	report, err := n.networks.Reconcile(ctx, live)
	if len(report.Removed)+len(report.Made)+len(report.Lost) > 0 {
		n.options.Log.Info("networks", "removed", report.Removed, "made", report.Made, "lost", report.Lost)
	}
	return errors.Join(err, n.enforceAgain(ctx, recs))
}
