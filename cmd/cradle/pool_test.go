package main

import (
	"strings"
	"testing"

	"github.com/cradlevm/cradle/pool"
)

func TestPoolCommands(t *testing.T) {
	h := newHouse(t)
	node := &fakeNode{}
	socket := serveFake(t, node)
	for _, c := range []struct {
		args           string
		code           int
		stdout, stderr string // contained
		asked          string // of the daemon
	}{
		{"pool ls", 0, "MEMORY    CPUS      READY     PREPARED               WANTED    TAKEN     RESTORED   MISSED    HOST MEMORY\n512MiB    1         3         redis: 2, busybox: 1   4         5         6          7         132MiB\n", "", ""},
		{"pool ls --quiet", 0, "512MiB/1\n", "", ""},
		{"pool ls --format {{.Min}}-{{.Max}}/{{.Budget}}/{{.Template}}/{{.TakenPrepared}}", 0, "2-16/1GiB/true/2\n", "", ""},
		{"pool list --format json", 0, `"Ready":"3"`, "", ""},
		{"pool set --min 3 --memory 2g", 0, "", "", `{"min":3,"memory":2147483648}`},
		{"pool set --max 0", 0, "", "", `{"max":0}`},
		{"pool set", 1, "", "nothing to change: give --min, --max, --memory or --default", ""},
		{"pool set --default --min 1", 0, "", "", `{"min":1,"default":true}`},
		{"pool set --min some", 125, "", `invalid argument "some"`, ""},
		{"pool drain", 0, "", "", `{"drain":true}`},
		{"pool refill", 0, "", "", `{"refill":true}`},
		{"pool", 0, "", "Usage:  cradle pool COMMAND", ""},
		{"pool dance", 1, "", "unknown command: cradle pool dance", ""},
		{"__complete pool dr", 0, "drain\t", "", ""},
	} {
		node.mu.Lock()
		node.changed = ""
		node.mu.Unlock()
		r := h.cradle(t, []string{envHost + "=" + socket}, strings.Fields(c.args)...)
		if r.code != c.code || !strings.Contains(r.stdout, c.stdout) || !strings.Contains(r.stderr, c.stderr) {
			t.Errorf("cradle %s: code %d, want %d\nstdout %q\nstderr %q", c.args, r.code, c.code, r.stdout, r.stderr)
		}
		node.mu.Lock()
		if node.changed != c.asked {
			t.Errorf("cradle %s asks for %q, want %q", c.args, node.changed, c.asked)
		}
		node.mu.Unlock()
	}
}

func TestPoolSettings(t *testing.T) {
	for text, want := range map[string]pool.Settings{
		"": {Min: 2, Max: 16}, "4": {Min: 4, Max: 4}, "1-8": {Min: 1, Max: 8}, "0-3": {Max: 3}, "restore": {},
	} {
		if on, s, err := poolSettings(text); err != nil || !on || s != want {
			t.Errorf("%q: %v, %+v, %v", text, on, s, err)
		}
	}
	for _, text := range []string{"off", "0"} {
		if on, _, err := poolSettings(text); err != nil || on {
			t.Errorf("%q: %v, %v", text, on, err)
		}
	}
	for _, text := range []string{"x", "-1", "3-1", "1001", "1-", "-", "0-0", "1-2-3"} {
		if _, _, err := poolSettings(text); err == nil {
			t.Errorf("%q is taken", text)
		}
	}
}
