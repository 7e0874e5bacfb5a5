package node

import (
	"context"
	"errors"

	"github.com/cradlevm/cradle/network"
	"github.com/cradlevm/cradle/node/runspec"
)

// movePorts gives a running container's published ports to the link that is its way out now, with the numbers that they had on
// the one that was. gone is a link that is about to be taken away, or nil: its ports are taken back. On error the links that are
// left have the ports that they had.
func (c *ctr) movePorts(ctx context.Context, rec record, links []link, gone *link) error {
	n := c.node
	out := n.wayOut(links)
	if out < 0 || links[out].Endpoint == nil {
		return nil
	}
	var had []network.Port
	from := -1
	if gone != nil && gone.Endpoint != nil {
		had = gone.Endpoint.Ports
		if err := n.publish(ctx, gone, nil); err != nil {
			return err
		}
	}
	for i, l := range links {
		if l.Endpoint != nil && len(l.Endpoint.Ports) > 0 {
			had, from = l.Endpoint.Ports, i
		}
	}
	if from == out {
		return nil
	}
	var specs []network.PortSpec
	for _, p := range had {
		specs = append(specs, network.PortSpec{Protocol: p.Protocol, HostIP: p.HostIP, Host: p.Host, Container: p.Container})
	}
	if len(had) == 0 { // there was no way out until now
		published, err := runspec.Publications(&rec.Config, &rec.HostConfig)
		if err != nil {
			return err
		}
		specs = portSpecs(published)
	}
	if len(specs) == 0 {
		return nil
	}
	if from >= 0 {
		if err := n.publish(ctx, &links[from], nil); err != nil {
			return err
		}
	}
	err := n.publish(ctx, &links[out], specs)
	if err != nil && from >= 0 {
		err = errors.Join(err, n.publish(ctx, &links[from], specs))
	}
	return err
}

// publish gives a link's endpoint these ports in place of those it has.
func (n *Node) publish(ctx context.Context, l *link, specs []network.PortSpec) error {
	ports, err := n.networks.Publish(ctx, l.Endpoint.ID, specs)
	if err != nil {
		return networkError(err)
	}
	e := *l.Endpoint // records share it
	e.Ports = ports
	l.Endpoint = &e
	return nil
}
