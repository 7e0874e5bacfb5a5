package main

import (
	"context"
	"errors"
	"fmt"
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
	for _, pid := range children(s.pids()[0], "qemu-system") {
		v, err := watch(ctx, 1, []int{pid}, private)
		if err != nil {
			return nil, err
		}
		each = append(each, v...)
	}
	if len(each) != n {
		return nil, fmt.Errorf("%d virtual machine monitors for %d ready sandboxes", len(each), n)
	}
	return []row{{name: "private memory of an idle sandbox", unit: unitBytes, ours: each, goal: 24e6}}, nil
}
