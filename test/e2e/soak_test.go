package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// soakDefault is how many containers TestSoak makes; the variable CRADLE_SOAK asks for another number. Each takes a few seconds:
//
//	CRADLE_SOAK=1000 go test ./test/e2e -run TestSoak -count=1 -timeout 3h -v
const soakDefault = 4

// soakFiles is by how many a daemon's open files may differ between two moments: machines of its pool come and go.
const soakFiles = 200

// Clones, and containers that come back from the disk, all have identities of their own, and leave nothing.
func TestSoak(t *testing.T) {
	count := soakDefault
	if text := os.Getenv("CRADLE_SOAK"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 {
			t.Fatalf("CRADLE_SOAK=%q is no number of containers", text)
		}
		count = n
	}
	c := inOwn(t)
	c.ok(t, "run", "-d", "--name", "source", "busybox", "sleep", "1000000")
	// What a container is, one word a line; none may be another one's.
	identify := func(name string) map[string]bool {
		ip, mac := c.place(t, name)
		words := map[string]bool{ip: true, mac: true}
		for _, word := range strings.Fields(c.ok(t, "exec", name, "sh", "-c", strings.Replace(identity, "/etc/machine-id", "", 1))) {
			words[word] = true
		}
		return words
	}
	source, seen := identify("source"), map[string]string{}
	for word := range source {
		seen[word] = "source"
	}
	files := 0 // that the daemon has open with the source alone
	for i := range count {
		if i == 1 {
			files = c.openFiles(t)
		}
		if i%100 == 99 {
			t.Logf("%d of %d, the daemon has %d files open", i+1, count, c.openFiles(t))
		}
		name := fmt.Sprintf("clone-%d", i)
		c.ok(t, "clone", "--name", name, "source")
		if i%2 == 1 {
			c.ok(t, "save-state", name)
			c.ok(t, "start", name)
		}
		mine := map[string]bool{}
		for word := range identify(name) {
			if strings.Contains(word, ".") || strings.Count(word, ":") == 5 {
				mine[word] = true // an address is free again when its container has gone
			}
			if other := seen[word]; other != "" && (!mine[word] || source[word]) {
				t.Errorf("%s and %s share %q", name, other, word)
			}
			seen[word] = name
		}
		c.ok(t, "rm", "-f", name)
	}
	if now := c.openFiles(t); count > 1 && now > files+soakFiles {
		t.Errorf("the daemon has %d files open, %d after the first clone", now, files)
	}
	c.ok(t, "rm", "-f", "source")
	if left := c.ok(t, "ps", "-aq"); left != "" {
		t.Errorf("left: %s", left)
	}
	if left, err := filepath.Glob(filepath.Join(c.house.Root(), "containers", "*")); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// openFiles counts the files that the daemon has open.
func (c client) openFiles(t *testing.T) int {
	t.Helper()
	files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", c.house.DaemonPID()))
	if err != nil {
		t.Fatal(err)
	}
	return len(files)
}
