package node

import (
	"context"
	"fmt"

	"github.com/cradlevm/cradle/api"
	"github.com/cradlevm/cradle/node/runspec"
	"github.com/cradlevm/cradle/sandbox"
)

// rehearsals is how often a shadow goes through what revive does to its copies. What is translated, found and allocated then, no copy has to:
// the first of these costs some 100 ms of an emulated processor, the last a tenth of that.
const rehearsals = 8

// exercises is how often a shadow that was restored is asked whether it is ready.
const exercises = 3

// rehearse has a shadow, whose container stands still and does so again afterwards, do what its copies begin with. Who it was meanwhile, none of them
// stays.
func (s *shadow) rehearse(ctx context.Context, machine *sandbox.Sandbox) error {
	n, rec := s.node, s.snapshot()
	request, err := runspec.Create(rec.spec(), n.settings)
	if err != nil {
		return err
	}
	networks := usualNetworks()
	if ahead := n.interfacesAhead(rec.Links); len(ahead) > 0 { // what copies have them for, too: addresses are all that they lack
		networks = append(networks, api.NetworkRequest{Interfaces: ahead})
	} else {
		networks = append(networks, api.NetworkRequest{})
	}
	for range rehearsals {
		if err := machine.Renew(ctx); err != nil {
			return err
		}
		if _, err := machine.Identify(ctx, newIdentity(rec.ID, rec, request)); err != nil {
			return err
		}
		for _, r := range networks {
			if err := machine.Network(ctx, r); err != nil {
				return err
			}
		}
		for _, frozen := range []bool{false, true} {
			if err := machine.Freeze(ctx, s.id, frozen); err != nil {
				return err
			}
		}
	}
	return nil
}

// exercise has the container of a shadow, which stands still and does so again afterwards, answer its readiness command a few times, if it has one: it
// has been restored, and nothing of what it does has been translated yet.
func (s *shadow) exercise(ctx context.Context, machine *sandbox.Sandbox) error {
	command, limit := readiness(s.snapshot().Config)
	if len(command) == 0 {
		return nil
	}
	if err := machine.Freeze(ctx, s.id, false); err != nil {
		return err
	}
	for range exercises {
		code, err := s.probeOnce(ctx, machine, command, limit)
		if err == nil && code != 0 {
			err = fmt.Errorf("it exits with %d", code)
		}
		if err != nil {
			return fmt.Errorf("its readiness command: %w", err)
		}
	}
	return machine.Freeze(ctx, s.id, true)
}
