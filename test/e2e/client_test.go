package e2e

import (
	"bytes"
	"errors"
	"os/exec"
	"strings"
	"testing"

	"github.com/cradlevm/cradle/test/house"
)

// client is one command line in one house.
type client struct {
	program string
	house   *house.House
}

// both runs the test with cradle's command line and with docker's.
func both(t *testing.T, test func(t *testing.T, c client)) {
	for _, program := range []string{"cradle", "docker"} {
		t.Run(program, func(t *testing.T) { test(t, inShared(t, program)) })
	}
}

// inShared is a client of the daemon all tests share.
func inShared(t *testing.T, program string) client {
	t.Helper()
	if shared.missing != nil {
		t.Skip(shared.missing)
	}
	if _, err := exec.LookPath(program); program != "cradle" && err != nil {
		t.Skip(err)
	}
	h := shared.house
	t.Cleanup(func() {
		if t.Failed() {
			h.DumpLog(t.Output(), logLines)
		}
	})
	return client{program, h}
}

// inOwn is a client in a house of its own, whose daemon starts on demand; the house is empty but for busybox. The test runs at
// the same time as others that have one: much of each is waiting.
func inOwn(t *testing.T, env ...string) client {
	t.Helper()
	t.Parallel()
	return inAnother(t, env...)
}

// inAnother is a client in one more house of the test's own, as inOwn's.
func inAnother(t *testing.T, env ...string) client {
	t.Helper()
	if shared.missing != nil {
		t.Skip(shared.missing)
	}
	h, err := house.New(shared.build, "cradle-e2e-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			h.DumpLog(t.Output(), logLines)
		}
		if err := h.Close(commandLimit); err != nil {
			t.Error(err)
		}
	})
	h.Env = append(h.Env, env...)
	if err := h.Load(commandLimit, "busybox"); err != nil {
		t.Fatal(err)
	}
	return client{"cradle", h}
}

type result struct {
	stdout, stderr string
	code           int
}

// do runs a command to its end, with input when it is not nil.
func (c client) do(t *testing.T, input []byte, args ...string) result {
	t.Helper()
	cmd := c.house.Command(commandLimit, c.program, args...)
	if input != nil {
		cmd.Stdin = bytes.NewReader(input)
	}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil && !errors.As(err, new(*exec.ExitError)) {
		t.Fatalf("%s %s: %v\n%s", c.program, strings.Join(args, " "), err, &stderr)
	}
	return result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// ok runs a command that has to succeed, and returns its trimmed output.
func (c client) ok(t *testing.T, args ...string) string {
	t.Helper()
	r := c.do(t, nil, args...)
	if r.code != 0 {
		t.Fatalf("%s %s: exit code %d\n%s%s", c.program, strings.Join(args, " "), r.code, r.stdout, r.stderr)
	}
	return strings.TrimSpace(r.stdout)
}

// name is a container name for the test, and the container is gone when the test ends.
func (c client) name(t *testing.T) string {
	t.Helper()
	name := strings.NewReplacer("/", "-", "#", "-", "_", "-").Replace(t.Name())
	t.Cleanup(func() { c.do(t, nil, "rm", "-f", name) })
	return name
}
