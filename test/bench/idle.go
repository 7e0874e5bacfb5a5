package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
)

// idleSandboxes is how many ready ones are looked at.
const idleSandboxes = 8

// idle measures what a ready sandbox costs the host, beyond what all share.
func idle(ctx context.Context, e env) (rows []row, err error) {
	n := min(idleSandboxes, 2*e.runs)
	s, err := startCradle(ctx, e, "idle", poolOf(n)...)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.stop()) }()
	if err := s.do(ctx, "run", "--rm", "busybox", "true"); err != nil {
		return nil, err
	}
	if err := awaitPool(ctx, socket(e, "idle"), n); err != nil {
		return nil, err
	}
	var each sample
	var parents float64
	for _, pid := range children(s.pids()[0], "qemu-system") {
		frozen, err := traced(pid)
		if err != nil {
			return nil, err
		}
		if frozen { // one that others are copied from: its daemon keeps it from running for good
			size, err := pss(pid)
			if err != nil {
				return nil, err
			}
			parents += size
			continue
		}
		v, err := watch(ctx, 1, []int{pid}, private)
		if err != nil {
			return nil, err
		}
		each = append(each, v...)
	}
	if len(each) != n {
		return nil, fmt.Errorf("%d virtual machine monitors for %d ready sandboxes", len(each), n)
	}
	return []row{
		{name: "private memory of an idle sandbox", unit: unitBytes, ours: each, goal: 24e6},
		{name: "  beside it, once for all", unit: unitBytes, ours: sample{parents},
			notes: "the share of those that they are copied from, of memory that all have in common"},
	}, nil
}

// traced tells whether a process is traced by another.
func traced(pid int) (bool, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return false, err
	}
	return !strings.Contains(string(b), "\nTracerPid:\t0\n"), nil
}
