package network

import (
	"context"
	"errors"
	"fmt"
)

// Publish makes specs the ports of an endpoint, in place of those it has, and returns them; on an internal network there are
// none, as with Attach. On error it has those it had, as far as nobody took them meanwhile.
// Errors: ErrNotFound, ErrInvalid, ErrPortTaken.
func (n *Networks) Publish(ctx context.Context, endpoint string, specs []PortSpec) ([]Port, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	e := n.endpoints[endpoint]
	if e == nil {
		return nil, fail(ErrNotFound, "endpoint %s not found", endpoint)
	}
	old := e.Ports
	if err := n.unpublish(e); err != nil {
		return nil, err
	}
	err := n.publish(e, specs)
	if err == nil {
		return e.Ports, nil
	}
	var again []PortSpec
	for _, p := range old {
		again = append(again, p.spec())
	}
	return nil, errors.Join(err, n.unpublish(e), n.publish(e, again))
}

// spec asks for the very port.
func (p Port) spec() PortSpec {
	return PortSpec{Protocol: p.Protocol, HostIP: p.HostIP, Host: p.Host, Container: p.Container}
}

// publish opens ports for an endpoint that has none.
func (n *Networks) publish(e *Endpoint, specs []PortSpec) error {
	net := n.networks[e.Network]
	if net.Internal || len(specs) == 0 {
		return n.store.putEndpoint(*e)
	}
	opened, err := n.ports.open(e, specs, net.Options[OptionHostIP])
	if err != nil {
		return err
	}
	e.Ports = opened
	if err := n.store.putEndpoint(*e); err != nil {
		return err
	}
	return n.path.addPorts(e)
}

// unpublish takes an endpoint's ports away. The store has them still: what Reconcile would make of it is what was asked for
// last.
func (n *Networks) unpublish(e *Endpoint) error {
	n.path.removePorts(e)
	if err := n.ports.close(e.ID); err != nil {
		return fmt.Errorf("take ports of %s back: %w", e.Name, err)
	}
	e.Ports = nil
	return nil
}
