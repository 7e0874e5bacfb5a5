package main

import (
	"context"
	"errors"
	"os/exec"
)

// cliStart measures commands that hardly do anything: what starting the program costs.
func cliStart(ctx context.Context, e env) (rows []row, err error) {
	ours, err := startCradle(ctx, e, "cli", booting()...)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, ours.stop()) }()
	docker, dockerErr := startDocker(ctx, e)
	if dockerErr == nil {
		defer func() { err = errors.Join(err, docker.stop()) }()
	}
	_, clientErr := exec.LookPath("docker") // that is all its first commands need
	client := &side{program: "docker", env: ownEnv()}
	for _, c := range []struct {
		peer  *side
		err   error
		words []string
	}{
		{client, clientErr, []string{"--version"}},
		{client, clientErr, []string{"help", "run"}},
		{docker, dockerErr, []string{"ps"}},
	} {
		name := c.words[0]
		if len(c.words) > 1 {
			name += " " + c.words[1]
		}
		results, err := race(ctx, e.runs, ours.enter("cradle "+name, nil, c.words...), c.peer.enter("docker "+name, c.err, c.words...))
		if err != nil {
			return rows, err
		}
		rows = append(rows, against("command line: "+name, results[0], results[1], 1))
	}
	return rows, nil
}
