package qemu

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"strings"

	"github.com/cradlevm/cradle/vm"
)

// Forward implements vm.Forwarder.
func (m *machine) Forward(ctx context.Context, nic int, f vm.Forward) error {
	said, err := m.forward(ctx, "hostfwd_add", nic, f, fmt.Sprintf("%s:%s-%s", f.Protocol, f.Host, f.Guest))
	if err == nil && said != "" {
		err = fmt.Errorf("QEMU says: %s", said)
		if why := tryListen(f); why != nil {
			err = why
		}
	}
	if err != nil {
		return m.explain(fmt.Errorf("forward %s %s: %w", f.Protocol, f.Host, err))
	}
	return nil
}

// Unforward implements vm.Forwarder.
func (m *machine) Unforward(ctx context.Context, nic int, f vm.Forward) error {
	said, err := m.forward(ctx, "hostfwd_remove", nic, f, fmt.Sprintf("%s:%s", f.Protocol, f.Host))
	switch {
	case err != nil || strings.HasSuffix(said, " removed"):
	case strings.HasSuffix(said, " not found"):
		err = vm.ErrNotFound
	default:
		err = fmt.Errorf("QEMU says: %s", said)
	}
	if err != nil {
		return m.explain(fmt.Errorf("end forward of %s %s: %w", f.Protocol, f.Host, err))
	}
	return nil
}

// forward runs a command of the monitor for people, the only one that has forwards. All that is in rule has been checked.
func (m *machine) forward(ctx context.Context, command string, nic int, f vm.Forward, rule string) (said string, err error) {
	if err := f.Check(); err != nil {
		return "", err
	}
	if nic < 0 || nic >= len(m.nics) || m.nics[nic].User == nil {
		return "", fmt.Errorf("%w: interface %d has no user-mode network", vm.ErrInvalid, nic)
	}
	if command == "hostfwd_add" && !m.nics[nic].User.Subnet.Contains(f.Guest.Addr()) {
		return "", fmt.Errorf("%w: %s is not in %s", vm.ErrInvalid, f.Guest.Addr(), m.nics[nic].User.Subnet)
	}
	value, err := m.mon.call(ctx, "human-monitor-command", map[string]any{
		"command-line": command + " " + netdevID(nic) + " " + rule,
	})
	if err != nil {
		return "", err
	}
	if err := json.Unmarshal(value, &said); err != nil {
		return "", fmt.Errorf("QEMU %s: %w", command, err)
	}
	return strings.TrimSpace(said), nil
}

// tryListen finds out why QEMU could not listen, which it does not say.
func tryListen(f vm.Forward) error {
	if f.Protocol == "udp" {
		c, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(f.Host))
		if err == nil {
			c.Close()
		}
		return err
	}
	l, err := net.ListenTCP("tcp4", net.TCPAddrFromAddrPort(f.Host))
	if err == nil {
		l.Close()
	}
	return err
}
