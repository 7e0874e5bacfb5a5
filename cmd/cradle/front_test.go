package main

import (
	"path/filepath"
	"testing"

	"github.com/cradlevm/cradle/api"
	"github.com/cradlevm/cradle/cmd/cradle/front"
)

// The front finds the socket where the rest of the program does, or not at all.
func TestFrontsSocket(t *testing.T) {
	found := 0
	for _, uid := range []int{0, 1000} {
		for _, run := range []string{"", "/tmp/r", "/tmp/r/", "relative"} {
			for _, user := range []string{"", "/run/user/7"} {
				for _, host := range []string{"", "tcp://far:1"} {
					values := map[string]string{envRun: run, "XDG_RUNTIME_DIR": user, envHost: host}
					getenv := func(k string) string { return values[k] }
					dir, rest := front.Socket(getenv, uid)
					got := dir + rest
					if got == "" {
						continue
					}
					found++
					want, err := runDir(getenv, uid)
					if err != nil || host != "" || filepath.Clean(got) != filepath.Join(want, socketName) {
						t.Errorf("%v, user %d: %s, want it in %s, %v", values, uid, got, want, err)
					}
				}
			}
		}
	}
	if found < 8 {
		t.Errorf("found in %d cases only", found)
	}
	if front.Stdout != api.Stdout || front.Stderr != api.Stderr || front.Exit != api.ExitRecord || front.MaxRecord < api.MaxOutputChunk {
		t.Error("its records are not the agent's")
	}
}
