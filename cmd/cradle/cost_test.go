package main

import (
	"strings"
	"testing"
)

// fakeCost is a container's cost as the daemon tells it.
func fakeCost(name string) map[string]any {
	return map[string]any{
		"id": strings.Repeat("ab", 32), "name": name, "pid": 42, "machineMemory": 512 << 20, "guestMemory": 5 << 20, "guestCPU": 1_500_000_000,
		"hostPrivate": 40 << 20, "hostShared": 60 << 20, "hostCPU": 3_250_000_000,
	}
}

func TestCostCommand(t *testing.T) {
	h := newHouse(t)
	socket := serveFake(t, &fakeNode{})
	const row = "   5MiB        512MiB    40MiB          60MiB         1.5s        3.25s\n"
	for _, c := range []struct {
		args           string
		code           int
		stdout, stderr string // contained
	}{
		{"cost", 0, "NAME      GUEST MEM   MACHINE   HOST PRIVATE   HOST SHARED   GUEST CPU   HOST CPU\nbusybox" + row + "redis  " + row, ""},
		{"cost redis", 0, "\nredis  ", ""},
		{"cost gone redis", 1, "\nredis  ", "No such container: gone"},
		{"cost --format {{.ID}}/{{.PID}}/{{.Name}} redis", 0, "abababababab/42/redis\n", ""},
		{"cost --format json redis", 0, `"HostPrivate":"40MiB"`, ""},
		{"cost --format {{.Nothing}}", 1, "", "Nothing"},
		{"stats --host --no-stream", 0, "NAME      GUEST MEM   MACHINE   HOST PRIVATE   HOST SHARED   GUEST CPU   HOST CPU\nbusybox" + row + "redis  " + row, ""},
		{"container stats --no-stream --host --format {{.HostPrivate}}+{{.HostShared}} redis", 0, "40MiB+60MiB\n", ""},
		{"stats --host --no-stream gone", 1, "", "No such container: gone"},
		{"stats --host gone", 1, "", "No such container: gone"},
		{"stats --host --all", 1, "", "conflicting options: --host and --all"},
	} {
		r := h.cradle(t, []string{envHost + "=" + socket}, strings.Fields(c.args)...)
		if r.code != c.code || !strings.Contains(r.stdout, c.stdout) || !strings.Contains(r.stderr, c.stderr) {
			t.Errorf("cradle %s: code %d, want %d\nstdout %q\nstderr %q", c.args, r.code, c.code, r.stdout, r.stderr)
		}
	}
}
