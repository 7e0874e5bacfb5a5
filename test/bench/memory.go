package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

// atOnce bounds the starts in progress where it is not starting that is measured.
const atOnce = 4

// smallFlags are those of a container where many are up.
func smallFlags() []string { return []string{"--memory", "64m", "--network", "none"} }

// templated waits until a daemon of ours has a template for such containers: each of many would boot otherwise, and take four
// times the memory.
func templated(ctx context.Context, e env, s *side, name string) error {
	if err := s.do(ctx, append(append([]string{"run", "--rm"}, smallFlags()...), "busybox", "true")...); err != nil {
		return err
	}
	return awaitPool(ctx, socket(e, name), 0)
}

// memory measures what the daemons take with many containers up, without the containers: for us without the virtual
// machines' monitors, for docker without the shims, which have rows of their own.
func memory(ctx context.Context, e env) (rows []row, err error) {
	ours, err := startCradle(ctx, e, "memory", restoring()...)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, ours.stop()) }()
	if err := templated(ctx, e, ours, "memory"); err != nil {
		return nil, err
	}
	if err := fillUp(ctx, ours, e.containers, smallFlags()...); err != nil {
		return nil, err
	}
	docker, dockerErr := startDocker(ctx, e)
	if dockerErr == nil {
		defer func() { err = errors.Join(err, docker.stop()) }()
		dockerErr = fillUp(ctx, docker, e.containers, "--network", "none")
	}
	name := fmt.Sprintf("daemon's memory, %d containers up", e.containers)
	us, err := watch(ctx, e.few, ours.pids(), pss)
	if err != nil {
		return nil, err
	}
	rows = []row{{name: name, unit: unitBytes, ours: us, peer: "dockerd", goal: 1}, {name: name, unit: unitBytes, ours: us, peer: "dockerd and containerd"}}
	if dockerErr == nil {
		dockerErr = dockersMemory(ctx, e, docker, rows)
	}
	if dockerErr != nil {
		rows[0].notes, rows[1].notes = because(dockerErr), because(dockerErr)
	}
	return rows, nil
}

// dockersMemory fills in the peer's side.
func dockersMemory(ctx context.Context, e env, docker *side, rows []row) error {
	dockerd := docker.pids()
	daemons := append(dockerd, children(dockerd[0], "containerd")...)
	if len(daemons) != 2 {
		return fmt.Errorf("dockerd has %d children that are a containerd", len(daemons)-1)
	}
	var err error
	if rows[0].base, err = watch(ctx, e.few, dockerd, pss); err != nil {
		return err
	}
	if rows[1].base, err = watch(ctx, e.few, daemons, pss); err != nil {
		return err
	}
	var shims []int
	for _, p := range processes() {
		if strings.Contains(p.cmdline, "containerd-shim") && strings.Contains(p.cmdline, e.dir+"/") {
			shims = append(shims, p.pid)
		}
	}
	all, err := watch(ctx, 1, shims, pss)
	if err == nil && len(shims) > 0 {
		rows[1].notes = fmt.Sprintf("docker's %d shims take another %s", len(shims), unitBytes.text(all[0]))
	}
	return err
}

// fillUp starts so many containers that sleep, some at a time.
func fillUp(ctx context.Context, s *side, n int, flags ...string) error {
	return all(ctx, n, atOnce, func(ctx context.Context, i int) error {
		words := append([]string{"run", "-d", "--name", fmt.Sprintf("box%d", i)}, flags...)
		return s.do(ctx, append(words, "busybox", "sleep", "100000")...)
	})
}

// all calls f for 0 to n-1, at most width at a time. The first error cancels the others, and is returned.
func all(ctx context.Context, n, width int, f func(ctx context.Context, i int) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var group sync.WaitGroup
	slots := make(chan struct{}, width)
	for i := range n {
		slots <- struct{}{}
		group.Go(func() {
			defer func() { <-slots }()
			if ctx.Err() != nil {
				return
			}
			if err := f(ctx, i); err != nil {
				cancel(err)
			}
		})
	}
	group.Wait()
	return context.Cause(ctx)
}

// watch adds up a measure of processes n times, with a moment between for their housekeeping.
func watch(ctx context.Context, n int, pids []int, of func(pid int) (float64, error)) (sample, error) {
	var s sample
	for range n {
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
		sum := 0.0
		for _, pid := range pids {
			v, err := of(pid)
			if err != nil {
				return nil, err
			}
			sum += v
		}
		s = append(s, sum)
	}
	return s, nil
}

// pss is a process's memory with its part of what it shares with others, bytes.
func pss(pid int) (float64, error) { return rollup(pid, "Pss:") }

// private is what would be free without the process, bytes.
func private(pid int) (float64, error) { return rollup(pid, "Private_Clean:", "Private_Dirty:") }

// rollup adds up fields of a process's smaps_rollup.
func rollup(pid int, fields ...string) (float64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return 0, err
	}
	return sumFields(string(text), fields...)
}

func sumFields(text string, fields ...string) (float64, error) {
	sum := 0.0
	for _, field := range fields {
		_, rest, ok := strings.Cut(text, "\n"+field)
		words := strings.Fields(rest)
		if !ok || len(words) < 2 || words[1] != "kB" {
			return 0, fmt.Errorf("no field %q in the kernel's account of a process's memory", field)
		}
		kib, err := strconv.ParseFloat(words[0], 64)
		if err != nil {
			return 0, err
		}
		sum += kib * 1024
	}
	return sum, nil
}
