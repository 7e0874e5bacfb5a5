package e2e

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	bolt "go.etcd.io/bbolt"
)

// A state that no daemon can use is told of in one sentence with docker's exit code, is left as it is, and costs nothing
// that was in it.
func TestUnusableState(t *testing.T) {
	c := inOwn(t)
	c.ok(t, "create", "--name", "kept", "busybox", "true")
	path := filepath.Join(c.house.Root(), "state.db")
	for _, x := range []struct {
		name, sentence string
		spoil          func(t *testing.T)
	}{
		{"newer", "was written by a newer cradle", func(t *testing.T) {
			db, err := bolt.Open(path, 0o600, nil)
			if err != nil {
				t.Fatal(err)
			}
			defer db.Close()
			err = db.Update(func(tx *bolt.Tx) error { return tx.Bucket([]byte("meta")).Put([]byte("version"), []byte("1000")) })
			if err != nil {
				t.Fatal(err)
			}
		}},
		{"torn", "it is damaged", func(t *testing.T) {
			fi, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.Truncate(path, fi.Size()/2); err != nil {
				t.Fatal(err)
			}
		}},
		{"something else", "invalid database", func(t *testing.T) {
			if err := os.WriteFile(path, bytes.Repeat([]byte("no state "), 10_000), 0o600); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(x.name, func(t *testing.T) {
			c.house.KillDaemon() // none runs after one that did not start
			whole, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			x.spoil(t)
			spoilt, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range []struct {
				code int
				args []string
			}{{1, []string{"ps", "-a"}}, {125, []string{"run", "--rm", "busybox", "true"}}} {
				r := c.do(t, nil, e.args...)
				// After run's error docker points at its help.
				sentence, _, _ := strings.Cut(r.stderr, "\n\nRun 'cradle")
				if r.code != e.code || r.stdout != "" || !strings.Contains(sentence, x.sentence) || strings.Count(strings.TrimSpace(sentence), "\n") > 0 {
					t.Errorf("%v: %+v, want %d and one sentence with %q", e.args, r, e.code, x.sentence)
				}
			}
			if now, err := os.ReadFile(path); err != nil || !bytes.Equal(now, spoilt) {
				t.Errorf("the state was changed: %v", err)
			}
			if err := os.WriteFile(path, whole, 0o600); err != nil {
				t.Fatal(err)
			}
			if got := c.ok(t, "ps", "-a", "--format", "{{.Names}} {{.State}}"); got != "kept created" {
				t.Errorf("afterwards there is %q", got)
			}
		})
	}
}
