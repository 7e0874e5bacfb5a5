package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
)

// crowdRuns is how often a crowd is started, at most: half a minute goes by until both sides have started and removed theirs.
const crowdRuns = 10

// crowd measures containers that are all started at the same moment, until each has answered.
func crowd(ctx context.Context, e env) (rows []row, err error) {
	ours, err := startCradle(ctx, e, "crowd") // with the pool that users get
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, ours.stop()) }()
	if err := ours.do(ctx, "run", "--rm", "--network", "none", "busybox", "true"); err != nil {
		return nil, err
	}
	peer, image, ctrErr := startWithBusybox(ctx, e, "containerd")
	if peer != nil {
		defer func() { err = errors.Join(err, peer.stop()) }()
	}
	us := contestant{
		name: "cradle", ours: true,
		ready: func(ctx context.Context) error {
			return errors.Join(removeCrowd(ctx, ours, peer), awaitPool(ctx, socket(e, "crowd"), readySandboxes))
		},
		once: func(ctx context.Context) error { return ourCrowd(ctx, ours, e.crowd) },
	}
	them := contestant{name: "ctr run -d", err: ctrErr, once: func(ctx context.Context) error { return theirCrowd(ctx, peer, image, e.crowd) }}
	defer func() { err = errors.Join(err, removeCrowd(context.Background(), ours, peer)) }()
	results, err := race(ctx, min(e.runs, crowdRuns), us, them)
	if err != nil {
		return nil, err
	}
	return []row{against(fmt.Sprintf("%d containers at once, all answering", e.crowd), results[0], results[1], 1)}, nil
}

func ourCrowd(ctx context.Context, s *side, n int) error {
	return all(ctx, n, n, func(ctx context.Context, i int) error {
		name := fmt.Sprintf("box%d", i)
		if err := s.do(ctx, "run", "-d", "--name", name, "--network", "none", "busybox", "sleep", "100000"); err != nil {
			return err
		}
		return s.do(ctx, "exec", name, "true")
	})
}

func theirCrowd(ctx context.Context, c *containerd, image string, n int) error {
	return all(ctx, n, n, func(ctx context.Context, i int) error {
		name := fmt.Sprintf("box%d", i)
		// No pipes: nobody would read them once ctr has gone.
		if err := c.run(ctx, "-d", "--null-io", image, name, "sleep", "100000"); err != nil {
			return err
		}
		return c.do(ctx, "task", "exec", "--fifo-dir", c.fifos(), "--exec-id", "e", name, "true")
	})
}

// removeCrowd removes what there is of both crowds.
func removeCrowd(ctx context.Context, ours *side, peer *containerd) error {
	ids, err := ours.command(ctx, "ps", "-aq")
	if words := strings.Fields(ids); err == nil && len(words) > 0 {
		err = ours.do(ctx, append([]string{"rm", "-f"}, words...)...)
	}
	if peer == nil {
		return err
	}
	tasks, listErr := peer.command(ctx, "task", "ls", "-q")
	containers, containersErr := peer.command(ctx, "container", "ls", "-q")
	err = errors.Join(err, listErr, containersErr)
	if words := strings.Fields(tasks); len(words) > 0 {
		err = errors.Join(err, peer.do(ctx, append([]string{"task", "rm", "-f"}, words...)...))
	}
	if words := strings.Fields(containers); len(words) > 0 {
		err = errors.Join(err, peer.do(ctx, append([]string{"container", "rm"}, words...)...))
	}
	return err
}
