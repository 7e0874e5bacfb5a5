package parity

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
)

// row is one command line for both daemons. Rows run in order and share their containers, as a user's do.
type row struct {
	line  string // what follows "docker", in a shell's syntax; {dir} is a directory of the side's own
	stdin string
	tty   bool // on a terminal
	mask  mask // beyond what is masked everywhere
}

// part is rows that belong together: they share containers and leave none.
type part struct {
	name   string
	rows   []row
	probes []string // commands that say so if a daemon cannot do what the part is about yet
}

// TestParity runs the whole table against both daemons.
func TestParity(t *testing.T) {
	ours, b := newCradle(t)
	theirs := newDockerd(t, b)
	listed := differences(t)
	seen := map[string]bool{}
	var same, different int
	for _, p := range table() {
		t.Run(p.name, func(t *testing.T) {
			for _, probe := range p.probes {
				if o := ours.run(row{line: probe}); strings.Contains(o.stderr, "not supported by cradle yet") {
					t.Skip(o.stderr)
				}
			}
			for _, r := range p.rows {
				a, b := both(r, ours, theirs)
				_, known := listed[r.line]
				if a == b {
					same++
				} else {
					different++
				}
				judge(t, r, a, b, known)
			}
		})
		for _, r := range p.rows {
			if seen[r.line] {
				t.Errorf("%q is in the table twice: the list of differences could not tell which is meant", r.line)
			}
			seen[r.line] = true
		}
	}
	for line := range listed {
		if !seen[line] {
			t.Errorf("docs/differences.md lists %q, which is not in the table", line)
		}
	}
	t.Logf("%d commands: %d equal, %d different", same+different, same, different)
}

// judge holds what happened against the list.
func judge(t *testing.T, r row, ours, theirs outcome, known bool) {
	t.Helper()
	text := fmt.Sprintf("docker %s\n--- cradle: %s\n--- dockerd: %s", r.line, ours, theirs)
	switch {
	case ours.failure != "" || theirs.failure != "":
		t.Error(text)
	case ours != theirs && known:
		t.Log("as listed:", text)
	case ours != theirs:
		t.Error(text)
	case known:
		t.Errorf("docs/differences.md lists what is no difference any more: docker %s\n%s", r.line, ours)
	}
}

// both runs a row on both sides at the same time.
func both(r row, ours, theirs *side) (a, b outcome) {
	var wait sync.WaitGroup
	wait.Go(func() { a = ours.run(r) })
	wait.Go(func() { b = theirs.run(r) })
	wait.Wait()
	return a, b
}

// outcome is what a command did, masked.
type outcome struct {
	code           int
	stdout, stderr string
	failure        string // the command could not be run at all; never equal
}

func (o outcome) String() string {
	if o.failure != "" {
		return o.failure
	}
	s := fmt.Sprintf("exit code %d\n", o.code)
	for name, text := range map[string]string{"stdout": o.stdout, "stderr": o.stderr} {
		for line := range strings.Lines(text) {
			s += name + "> " + strings.TrimSuffix(line, "\n") + "\n"
		}
	}
	return s
}

// differences reads the list: rows of a table whose first column is a command in backquotes.
func differences(t *testing.T) map[string]string {
	t.Helper()
	b, err := os.ReadFile("../../docs/differences.md")
	if err != nil {
		t.Fatal(err)
	}
	list := map[string]string{}
	for line := range strings.Lines(string(b)) {
		rest, ok := strings.CutPrefix(line, "| `")
		if !ok {
			continue
		}
		command, reason, ok := strings.Cut(rest, "` | ")
		reason = strings.Trim(reason, " |\n")
		if !ok || reason == "" {
			t.Errorf("docs/differences.md: no reason in %q", line)
		}
		list[strings.ReplaceAll(command, `\|`, "|")] = reason
	}
	return list
}
