package crash

import (
	"bytes"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cradlevm/cradle/test/house"
)

// commandLimit is for one command on a slow machine that emulates its virtual machines, its daemon being killed
// under it.
const commandLimit = 4 * time.Minute

// logLines is how much of each log a failure shows.
const logLines = 60

// crashing is a house, whose daemon the command line starts on demand.
type crashing struct {
	*house.House
	gen atomic.Int64 // odd while a daemon is being killed
}

func newHouse(t *testing.T) *crashing {
	t.Helper()
	b, err := house.Find([]string{"busybox"})
	if err != nil && house.Promised() {
		t.Fatal(err)
	} else if err != nil {
		t.Skip(err)
	}
	inner, err := house.New(b, "cradle-crash-")
	if err != nil {
		t.Fatal(err)
	}
	h := &crashing{House: inner}
	t.Cleanup(func() {
		if t.Failed() {
			h.DumpLog(t.Output(), logLines)
		}
		if err := h.Close(commandLimit); err != nil {
			t.Error(err)
		}
	})
	if err := h.Load(commandLimit, "busybox"); err != nil {
		t.Fatal(err)
	}
	return h
}

type result struct {
	code        int
	out, stderr string
	killed      bool // a daemon was killed while the command ran
}

// do runs a command to its end.
func (h *crashing) do(args ...string) result {
	cmd, begun := h.Command(commandLimit, "cradle", args...), time.Now()
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	before := h.gen.Load()
	err := cmd.Run()
	r := result{out: strings.TrimSpace(out.String()), stderr: strings.TrimSpace(stderr.String()), code: cmd.ProcessState.ExitCode()}
	r.killed = before%2 == 1 || h.gen.Load() != before
	if err != nil && !errors.As(err, new(*exec.ExitError)) {
		r.stderr += " " + err.Error()
	}
	if time.Since(begun) > commandLimit {
		r.stderr += fmt.Sprintf(" (ended after %v)", commandLimit)
	}
	return r
}

// must runs a command until no daemon is killed under it; then it has to succeed. accept, when not empty, is an
// error's text that is a success as well: an earlier try may have done the work.
func (h *crashing) must(accept string, args ...string) (string, error) {
	return retry(h.do, accept, args...)
}

// retry is must for commands that are run in another way.
func retry(do func(args ...string) result, accept string, args ...string) (string, error) {
	for {
		r := do(args...)
		switch {
		case r.code == 0:
			return r.out, nil
		case accept != "" && strings.Contains(r.stderr, accept):
			return r.out, nil
		case !r.killed:
			return "", fmt.Errorf("%s: %+v", strings.Join(args, " "), r)
		}
	}
}

// killDaemon kills the daemon there is; false when there is none.
func (h *crashing) killDaemon() bool {
	h.gen.Add(1)
	defer h.gen.Add(1)
	return h.KillDaemon()
}

// leftovers is what of any machine is still there when no daemon runs that keeps some ready.
func (h *crashing) leftovers() []string {
	var left []string
	for _, pattern := range []string{"root/containers/*", "run/s/*", "root/ready/*", "root/scratch/templates/making-*", "root/images/tmp/*"} {
		found, _ := filepath.Glob(filepath.Join(h.Dir, pattern))
		left = append(left, found...)
	}
	for _, p := range house.Processes(h.Dir) {
		if strings.Contains(p.Command, "qemu") {
			left = append(left, p.String())
		}
	}
	return left
}
