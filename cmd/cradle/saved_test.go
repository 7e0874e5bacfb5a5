package main

import (
	"slices"
	"strings"
	"testing"
)

func TestSavedCommands(t *testing.T) {
	h := newHouse(t)
	node := &fakeNode{}
	socket := serveFake(t, node)
	for _, c := range []struct {
		args           string
		code           int
		stdout, stderr string // contained
		asked          string // of the daemon, last
	}{
		{"clone redis", 0, "-count=1\n", "", "POST /cradle/v1/containers/redis/clone"},
		{"clone -n 3 --name x redis", 0, "-count=3&name=x\n", "", ""},
		{"clone", 1, "", "requires 1 argument", ""},
		{"clone -n many redis", 125, "", "invalid argument", ""},
		{"clone gone", 1, "", "No such container: gone", ""},
		{"save-state a b", 0, "a\nb\n", "", "POST /cradle/v1/containers/b/save-state"},
		{"save-state gone b", 1, "b\n", "No such container: gone", "POST /cradle/v1/containers/b/save-state"},
		{"save-state", 1, "", "requires at least 1 argument", ""},
		{"restore-state a", 0, "a\n", "", "POST /cradle/v1/containers/a/restore-state"},
		{"restore-state --discard a", 0, "a\n", "", "POST /cradle/v1/containers/a/discard-state"},
	} {
		r := h.cradle(t, []string{envHost + "=" + socket}, strings.Fields(c.args)...)
		if r.code != c.code || !strings.Contains(r.stdout, c.stdout) || !strings.Contains(r.stderr, c.stderr) {
			t.Errorf("cradle %s: code %d, want %d\nstdout %q\nstderr %q", c.args, r.code, c.code, r.stdout, r.stderr)
		}
		node.mu.Lock()
		if c.asked != "" && !slices.Contains(node.asked, c.asked) {
			t.Errorf("cradle %s: the daemon was asked %q", c.args, node.asked)
		}
		node.mu.Unlock()
	}
}

// The daemon learns from labels what is to start warm.
func TestWarmFlags(t *testing.T) {
	h := newHouse(t)
	node := &fakeNode{}
	socket := serveFake(t, node)
	r := h.cradle(t, []string{envHost + "=" + socket}, "create", "--warm", "--warm-ready", "redis-cli ping, please", "--warm-after", "3s", "-l", "a=b", "redis")
	if r.code != 0 {
		t.Fatalf("%+v", r)
	}
	node.mu.Lock()
	defer node.mu.Unlock()
	for _, want := range []string{`"a":"b"`, `"dev.cradle.warm":"true"`, `"dev.cradle.warm.after":"3s"`, `"dev.cradle.warm.ready":"redis-cli ping, please"`} {
		if !strings.Contains(node.created, want) {
			t.Errorf("no %s in %s", want, node.created)
		}
	}
}
