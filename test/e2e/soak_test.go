package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// soakDefault is how many containers TestSoak makes; the variable CRADLE_SOAK asks for another number. Each takes a second or two
// of a quiet machine:
//
//	CRADLE_SOAK=1000 go test ./test/e2e -run TestSoak -count=1 -timeout 2h -v
const soakDefault = 4

// soakFiles and soakMemory (KiB) are by how much a daemon's open files and memory may differ between two moments: machines of its
// pool come and go.
const (
	soakFiles  = 200
	soakMemory = 64 << 10
)

// Clones, and containers that come back from the disk, all have identities of their own, and leave nothing: not in the daemon
// either. The machine is a small one, and is asked once for all that it is: a turn is little more than a second of processors.
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
	c.ok(t, "run", "-d", "--name", "source", "-m", "128m", "busybox", "sleep", "1000000")
	// What a container is, one word a line; none may be another one's.
	identify := func(name string) map[string]bool {
		words := map[string]bool{}
		inside := strings.Replace(identity, "/etc/machine-id", "", 1) + "; ip addr show eth0 | awk '/inet |ether/ { sub(/\\/.*/, \"\", $2); print $2 }'"
		for _, word := range strings.Fields(c.ok(t, "exec", name, "sh", "-c", inside)) {
			words[word] = true
		}
		outside := strings.Fields(c.ok(t, "inspect", "-f", "{{range .NetworkSettings.Networks}}{{.IPAddress}} {{.MacAddress}}{{end}}", name))
		if len(outside) != 2 || !words[outside[0]] || !words[outside[1]] {
			t.Errorf("%s is at %q, and says %v", name, outside, words)
		}
		return words
	}
	source, seen := identify("source"), map[string]string{}
	for word := range source {
		seen[word] = "source"
	}
	var files, memory int // of the daemon with the source alone
	for i := range count {
		if i == 1 {
			files, memory = c.daemonLoad(t)
		}
		if i%100 == 99 {
			files, memory := c.daemonLoad(t)
			t.Logf("%d of %d, the daemon has %d files open and %d KiB of memory", i+1, count, files, memory)
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
	if f, m := c.daemonLoad(t); count > 1 && (f > files+soakFiles || m > memory+soakMemory) {
		t.Errorf("the daemon has %d files open and %d KiB of memory, %d and %d after the first clone", f, m, files, memory)
	}
	c.ok(t, "rm", "-f", "source")
	if left := c.ok(t, "ps", "-aq"); left != "" {
		t.Errorf("left: %s", left)
	}
	if left, err := filepath.Glob(filepath.Join(c.house.Root(), "containers", "*")); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// daemonLoad counts the files that the daemon has open, and its own memory in KiB.
func (c client) daemonLoad(t *testing.T) (files, memory int) {
	t.Helper()
	proc := fmt.Sprintf("/proc/%d", c.house.DaemonPID())
	open, err := os.ReadDir(proc + "/fd")
	if err != nil {
		t.Fatal(err)
	}
	status, err := os.ReadFile(proc + "/status")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "RssAnon:")
	if _, err := fmt.Sscan(rest, &memory); err != nil {
		t.Fatal(err)
	}
	return len(open), memory
}
