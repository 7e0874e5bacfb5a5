package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/cradlevm/cradle/guestos"
	"github.com/cradlevm/cradle/sandbox"
	"github.com/cradlevm/cradle/vm"
	"github.com/cradlevm/cradle/vm/qemu"
)

// bootMemory is the size of the VMs that boot measures, bytes.
const bootMemory = 128 << 20

// boot measures a cold boot from nothing to an agent that has answered and is configured.
func boot(ctx context.Context, e env) ([]row, error) {
	guest, err := guestos.Open(e.guest)
	if err != nil {
		return nil, err
	}
	cold, inside, err := boots(ctx, e, qemu.New(qemu.Options{}), guest, e.runs)
	if err != nil {
		return nil, err
	}
	_, instructions, err := boots(ctx, e, qemu.New(qemu.Options{CountInstructions: true}), guest, 1)
	if err != nil {
		return nil, err
	}
	return []row{
		{name: "cold boot to agent ready", unit: unitSeconds, ours: cold, goal: 1, notes: "kernel " + guest.Release},
		{name: "  of it, inside the guest", unit: unitSeconds, ours: inside,
			notes: fmt.Sprintf("%.0f million guest instructions", instructions[0]*1e3)},
	}, nil
}

// boots cold-boots n VMs one after the other. inside is the guest's own clock when the agent was ready.
func boots(ctx context.Context, e env, driver vm.Driver, guest guestos.Guest, n int) (cold, inside sample, err error) {
	for i := range n {
		dir := filepath.Join(e.dir, fmt.Sprintf("boot%d", i))
		if err := os.Mkdir(dir, 0o700); err != nil {
			return nil, nil, err
		}
		began := time.Now()
		s, err := sandbox.Start(ctx, driver, sandbox.Config{
			Token: sandbox.NewToken(), Hostname: "bench",
			VM: vm.Config{ID: "bench", Dir: dir, CPUs: 1, Memory: bootMemory, Kernel: guest.Kernel, Initrd: guest.Initrd},
		})
		if err != nil {
			return nil, nil, err
		}
		cold.add(time.Since(began))
		ping, err := s.Ping(ctx)
		if err == nil {
			inside.add(time.Duration(ping.ReadyNanos))
		}
		if killed := s.Kill(); err == nil {
			err = killed
		}
		if err == nil {
			err = os.RemoveAll(dir)
		}
		if err != nil {
			return nil, nil, err
		}
	}
	return cold, inside, nil
}
