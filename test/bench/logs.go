package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
)

// logs measures a container that prints many lines: writing them, from the start to the exit, and reading them.
func logs(ctx context.Context, e env) (rows []row, err error) {
	ours, err := startCradle(ctx, e, "logs", poolOf(readySandboxes)...)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, ours.stop()) }()
	docker, dockerErr := startDocker(ctx, e)
	if dockerErr == nil {
		defer func() { err = errors.Join(err, docker.stop()) }()
	}
	if err := ours.do(ctx, "run", "--rm", "busybox", "true"); err != nil { // so that there is a template
		return nil, err
	}
	us := contestant{name: "cradle", ours: true, once: func(ctx context.Context) error { return printLines(ctx, ours, e.lines) }}
	us.ready = func(ctx context.Context) error { return awaitPool(ctx, socket(e, "logs"), readySandboxes) }
	written, err := race(ctx, e.few, us, contestant{name: "docker", err: dockerErr, once: func(ctx context.Context) error {
		return printLines(ctx, docker, e.lines)
	}})
	if err != nil {
		return nil, err
	}
	rows = append(rows, against(fmt.Sprintf("logs: %d lines written", e.lines), written[0], written[1], 0))

	us.once = func(ctx context.Context) error { return readLines(ctx, ours) }
	if err := checkLines(ctx, ours, e.lines); err != nil {
		return rows, err
	}
	if err = written[1].err; err == nil {
		err = checkLines(ctx, docker, e.lines)
	}
	read, err := race(ctx, e.runs, us, contestant{name: "docker logs", err: err, once: func(ctx context.Context) error {
		return readLines(ctx, docker)
	}})
	if err != nil {
		return rows, err
	}
	return append(rows, against(fmt.Sprintf("logs: %d lines read", e.lines), read[0], read[1], 1)), nil
}

// printLines runs the container, anew each time.
func printLines(ctx context.Context, s *side, lines int) error {
	_ = s.do(ctx, "rm", "-f", "printer") // the one of the last turn
	if err := s.do(ctx, "run", "-d", "--name", "printer", "--network", "none", "busybox", "seq", "1", strconv.Itoa(lines)); err != nil {
		return err
	}
	code, err := s.command(ctx, "wait", "printer")
	if err == nil && strings.TrimSpace(code) != "0" {
		err = fmt.Errorf("the container that prints ended with %s", code)
	}
	return err
}

// readLines reads the log to nowhere.
func readLines(ctx context.Context, s *side) error {
	cmd := exec.CommandContext(ctx, s.program, "logs", "printer")
	cmd.Env = s.env
	return cmd.Run()
}

// checkLines makes sure that what is measured is right.
func checkLines(ctx context.Context, s *side, lines int) error {
	cmd := exec.CommandContext(ctx, s.program, "logs", "printer")
	cmd.Env = s.env
	got, err := cmd.Output()
	if err != nil {
		return err
	}
	var want strings.Builder
	for i := range lines {
		fmt.Fprintln(&want, i+1)
	}
	if string(got) != want.String() {
		return fmt.Errorf("%s logs gave %d bytes that are not the %d printed", s.name, len(got), want.Len())
	}
	return nil
}
