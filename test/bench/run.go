package main

import (
	"context"
	"errors"
	"fmt"
)

// readySandboxes is how many the pool of the measured daemons keeps.
const readySandboxes = 2

// runs measures the whole way of a container that does nothing, from the command line to its removal: with a ready
// sandbox that is prepared for its image, with a ready one that is not, with one restored on the spot, with a cold boot, and as others do it.
func runs(ctx context.Context, e env) (rows []row, err error) {
	once := []string{"run", "--rm", "--network", "none", "busybox", "true"}
	bridged := []string{"run", "--rm", "busybox", "true"}
	var ours []contestant
	var first *side
	turn := 0
	for _, kind := range []struct {
		name    string
		flags   []string
		ready   int
		command []string
	}{
		{"hit", poolOf(readySandboxes), readySandboxes, once}, {"plain", poolOf(readySandboxes), readySandboxes, once},
		{"restore", restoring(), 0, once}, {"boot", booting(), -1, once},
		{"bridge", poolOf(readySandboxes), readySandboxes, bridged}, // a daemon of its own: each prepares for what was wanted last
	} {
		s, startErr := startCradle(ctx, e, kind.name, kind.flags...)
		if startErr != nil {
			return nil, startErr
		}
		defer func() { err = errors.Join(err, s.stop()) }()
		if first == nil {
			first = s
		}
		if err := s.do(ctx, kind.command...); err != nil { // the pool makes a template of a size somebody has wanted
			return nil, err
		}
		c := s.enter("cradle, "+kind.name, nil, kind.command...)
		if kind.name == "plain" { // nobody has prepared what was never wanted before
			c.once = func(ctx context.Context) error {
				turn++
				return s.do(ctx, "run", "--rm", "--network", "none", "--shm-size", fmt.Sprintf("%dk", 1024+4*turn), "busybox", "true")
			}
		}
		if kind.ready >= 0 {
			c.ready = func(ctx context.Context) error { return awaitPool(ctx, socket(e, kind.name), kind.ready) }
		}
		ours = append(ours, c)
	}

	docker, dockerErr := startDocker(ctx, e)
	if dockerErr == nil {
		defer func() { err = errors.Join(err, docker.stop()) }()
	}
	c, image, ctrErr := startWithBusybox(ctx, e, "containerd")
	if c != nil {
		defer func() { err = errors.Join(err, c.stop()) }()
	}
	b, bundleErr := makeBundle(ctx, e, first)
	runsc := bundleErr
	if e.runsc == "" {
		runsc = errors.New("no runsc was given (-runsc)")
	}
	results, err := race(ctx, e.runs, append(ours,
		docker.enter("docker run --network none", dockerErr, once...),
		docker.enter("docker run on its bridge", dockerErr, bridged...),
		contestant{name: "ctr run", err: ctrErr, once: func(ctx context.Context) error {
			turn++
			return c.run(ctx, "--rm", "--fifo-dir", c.fifos(), image, fmt.Sprintf("turn%d", turn), "true")
		}},
		b.enter("runsc", e.runsc, runsc, "--network=none"),
		b.enter("runc", "runc", bundleErr),
	)...)
	if err != nil {
		return nil, err
	}
	hit, plain, restore, boot, bridge := results[0], results[1], results[2], results[3], results[4]
	run, runBridge, ctr := results[5], results[6], results[7]
	return []row{
		against("run --rm busybox true, prepared pool hit", hit, run, 0.25),
		against("run --rm busybox true, prepared pool hit", hit, ctr, 0.5),
		against("run --rm busybox true, prepared pool hit", hit, results[8], 0.7),
		against("run --rm busybox true, prepared pool hit", hit, results[9], 0),
		against("run --rm busybox true, plain pool hit", plain, run, 0),
		against("run --rm busybox true, prepared pool hit, bridge", bridge, runBridge, 0.25),
		{name: "  of it, for the network", unit: unitSeconds, ours: differences(bridge.sample, hit.sample), goal: 0.015,
			notes: "with a network minus without, turn by turn"},
		against("run --rm busybox true, restored", restore, run, 0.5),
		against("run --rm busybox true, cold boot", boot, run, 0),
	}, nil
}

// differences are those of each two measurements that were made in the same turn.
func differences(with, without sample) sample {
	var d sample
	for i := range min(len(with), len(without)) {
		d = append(d, with[i]-without[i])
	}
	return d
}

// startWithBusybox starts a containerd with the test image in it, and returns the image's name.
func startWithBusybox(ctx context.Context, e env, name string) (*containerd, string, error) {
	c, err := startContainerd(ctx, e, name)
	if err != nil {
		return nil, "", err
	}
	image, err := c.busybox(ctx, e)
	if err != nil {
		return nil, "", errors.Join(err, c.stop())
	}
	return c, image, nil
}
