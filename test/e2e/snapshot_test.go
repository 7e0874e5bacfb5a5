package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// remembering runs a container whose process has a word in its memory only, and returns the word.
func (c client) remembering(t *testing.T, name string) string {
	t.Helper()
	c.ok(t, "run", "-d", "--name", name, "busybox", "sh", "-c", "word=$(cat /proc/sys/kernel/random/uuid); while :; do echo $word >/word.new; mv /word.new /word; sleep 0.2; done")
	return c.remembered(t, name)
}

// remembered asks the process of a container for its word, as it is now.
func (c client) remembered(t *testing.T, name string) string {
	t.Helper()
	c.ok(t, "exec", name, "rm", "-f", "/word")
	for began := time.Now(); time.Since(began) < commandLimit; time.Sleep(100 * time.Millisecond) {
		if r := c.do(t, nil, "exec", name, "cat", "/word"); r.code == 0 {
			return strings.TrimSpace(r.stdout)
		}
	}
	t.Fatalf("%s says nothing any more", name)
	return ""
}

// who is the identity of containers: the words in which no two may agree.
func (c client) who(t *testing.T, seen map[string]string, name string) {
	t.Helper()
	for _, word := range strings.Fields(c.ok(t, "exec", name, "sh", "-c", "hostname; cat /proc/sys/kernel/random/boot_id /proc/sys/kernel/random/uuid")) {
		if other := seen[word]; other != "" {
			t.Errorf("%s and %s share %q", name, other, word)
		}
		seen[word] = name
	}
}

// A snapshot is made, told of, run from under the next daemon, keeps its image, and goes.
func TestSnapshots(t *testing.T) {
	c := inOwn(t)
	word := c.remembering(t, "source")
	if got := c.ok(t, "snapshot", "create", "--name", "kept", "source"); got != "kept" {
		t.Errorf("create says %q", got)
	}
	if r := c.do(t, nil, "snapshot", "create", "--name", "kept", "source"); r.code != 1 || !strings.Contains(r.stderr, "there is a snapshot kept already") {
		t.Errorf("%+v", r)
	}
	if got := c.remembered(t, "source"); got != word {
		t.Errorf("the source says %q, not %q", got, word)
	}
	seen := map[string]string{}
	c.who(t, seen, "source")
	c.ok(t, "rm", "-f", "source")
	for _, x := range []struct{ stderr, ref string }{
		{"(must force) - snapshot kept is using its referenced image", "busybox"},
		{"(must be forced) - image is being used by snapshot kept", c.ok(t, "images", "-q", "busybox")},
	} {
		if r := c.do(t, nil, "rmi", x.ref); r.code != 1 || !strings.Contains(r.stderr, x.stderr) {
			t.Errorf("rmi %s: %+v", x.ref, r)
		}
	}
	c.ok(t, "rmi", "-f", "busybox") // the name
	c.ok(t, "image", "prune", "-a", "-f")
	c.house.KillDaemon()
	if got := c.ok(t, "snapshot", "ls", "-q"); got != "kept" {
		t.Errorf("ls says %q", got)
	}
	for _, name := range []string{"one", "two"} {
		c.ok(t, "snapshot", "run", "--name", name, "kept")
		if got := c.remembered(t, name); got != word {
			t.Errorf("%s says %q, not %q", name, got, word)
		}
		c.who(t, seen, name)
		c.checkClock(t, name)
	}
	var list []struct {
		Name, Container, Image string
		Bytes                  int64
	}
	if err := json.Unmarshal([]byte(c.ok(t, "snapshot", "inspect", "kept")), &list); err != nil || len(list) != 1 {
		t.Fatalf("inspect: %v, %v", list, err)
	}
	if s := list[0]; s.Name != "kept" || s.Container != "source" || s.Image != "busybox" || s.Bytes < 1<<20 {
		t.Errorf("inspect: %+v", s)
	}
	if got := c.ok(t, "snapshot", "rm", "kept"); got != "kept" {
		t.Errorf("rm says %q", got)
	}
	for _, args := range [][]string{{"run", "kept"}, {"rm", "kept"}, {"inspect", "kept"}, {"export", "kept", "-"}} {
		if r := c.do(t, nil, append([]string{"snapshot"}, args...)...); r.code != 1 || !strings.Contains(r.stderr, "No such snapshot: kept") {
			t.Errorf("snapshot %v: %+v", args, r)
		}
	}
	if got := c.remembered(t, "two"); got != word { // it needs the snapshot no more
		t.Errorf("two says %q, not %q", got, word)
	}
	c.ok(t, "rm", "-f", "one", "two")
	if got := c.ok(t, "images", "-aq"); got != "" {
		t.Errorf("images are left: %s", got)
	}
}

// A snapshot goes on in another installation that has not even its image, if it is trusted.
func TestSnapshotTravels(t *testing.T) {
	a, b := inOwn(t), inAnother(t)
	b.ok(t, "rmi", "busybox")
	word := a.remembering(t, "source")
	seen := map[string]string{}
	a.who(t, seen, "source")
	a.ok(t, "snapshot", "create", "--name", "kept", "source")
	file := filepath.Join(t.TempDir(), "kept.tar.zst")
	a.ok(t, "snapshot", "export", "--compress", "zstd", "kept", file)
	if info, err := os.Stat(file); err != nil || info.Mode() != 0o600 {
		t.Errorf("%v, %v", info, err)
	} else {
		t.Logf("the archive has %d MiB", info.Size()>>20)
	}
	if r := b.do(t, nil, "snapshot", "import", file); r.code != 1 || !strings.Contains(r.stderr, "--trust only") {
		t.Errorf("without trust: %+v", r)
	}
	whole, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if r := b.do(t, whole[:len(whole)/2], "snapshot", "import", "--trust", "-"); r.code != 1 {
		t.Errorf("half of it: %+v", r)
	}
	whole[len(whole)/2] ^= 1
	if r := b.do(t, whole, "snapshot", "import", "--trust", "-"); r.code != 1 {
		t.Errorf("damaged: %+v", r)
	}
	if got := b.ok(t, "snapshot", "ls", "-q") + b.ok(t, "images", "-aq"); got != "" {
		t.Errorf("left: %s", got)
	}
	left, err := filepath.Glob(filepath.Join(b.house.Root(), "snapshots", "*"))
	if hidden, err := filepath.Glob(filepath.Join(b.house.Root(), "snapshots", ".*")); err != nil || len(left)+len(hidden) > 0 {
		t.Errorf("left: %v, %v, %v", left, hidden, err)
	}
	if err != nil {
		t.Fatal(err)
	}
	if got := b.ok(t, "snapshot", "import", "--trust", "--name", "theirs", file); got != "theirs" {
		t.Errorf("import says %q", got)
	}
	b.house.KillDaemon()
	b.ok(t, "snapshot", "run", "--name", "one", "theirs")
	if got := b.remembered(t, "one"); got != word {
		t.Errorf("it says %q, not %q", got, word)
	}
	b.who(t, seen, "one")
	b.checkClock(t, "one")
	b.ok(t, "restart", "-t", "0", "one") // its image is all there
	if got := b.remembered(t, "one"); got == word {
		t.Error("after a restart it has the same word")
	}
	b.ok(t, "rm", "-f", "one")
	b.ok(t, "snapshot", "rm", "theirs")
	a.ok(t, "rm", "-f", "source")
	a.ok(t, "snapshot", "rm", "kept")
}
