package main

import (
	"context"
	"errors"
)

// execs measures a command in a container that is up.
func execs(ctx context.Context, e env) (rows []row, err error) {
	ours, err := startCradle(ctx, e, "exec", poolOf(readySandboxes)...)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, ours.stop()) }()
	docker, dockerErr := startDocker(ctx, e)
	if dockerErr == nil {
		defer func() { err = errors.Join(err, docker.stop()) }()
		dockerErr = docker.do(ctx, "run", "-d", "--name", "box", "--network", "none", "busybox", "sleep", "100000")
	}
	if err := ours.do(ctx, "run", "-d", "--name", "box", "busybox", "sleep", "100000"); err != nil {
		return nil, err
	}
	us := ours.enter("cradle exec", nil, "exec", "box", "true")
	us.ready = func(ctx context.Context) error { return awaitPool(ctx, socket(e, "exec"), readySandboxes) }
	results, err := race(ctx, e.runs, us, docker.enter("docker exec", dockerErr, "exec", "box", "true"))
	if err != nil {
		return nil, err
	}
	return []row{against("exec of true", results[0], results[1], 0.25)}, nil
}
