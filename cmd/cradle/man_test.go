package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Every command has a page, and man takes them all.
func TestManual(t *testing.T) {
	h := newHouse(t)
	dir := filepath.Join(h.dir, "man")
	if r := h.cradle(t, nil, "man", dir); r.code != 0 {
		t.Fatalf("%+v", r)
	}
	pages, err := filepath.Glob(filepath.Join(dir, "*.1"))
	if err != nil || len(pages) < 60 {
		t.Fatalf("%d pages, %v", len(pages), err)
	}
	for name, want := range map[string]string{
		"cradle":       ".SH COMMANDS",
		"cradle-run":   `\fB\-\-entrypoint\fP \fIstring\fP`,
		"cradle-image": `\fBcradle\-image\-ls\fP(1)`,
	} {
		if b, err := os.ReadFile(filepath.Join(dir, name+".1")); err != nil || !strings.Contains(string(b), want) {
			t.Errorf("%s has no %q: %v", name, want, err)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "cradle-man.1")); err == nil {
		t.Error("a hidden command has a page")
	}
	if _, err := exec.LookPath("groff"); err != nil {
		return
	}
	out, err := exec.Command("groff", append([]string{"-man", "-Tutf8", "-ww", "-z"}, pages...)...).CombinedOutput()
	if err != nil || len(out) > 0 {
		t.Errorf("groff: %v\n%s", err, out)
	}
}

// The shells take the completions they are given.
func TestCompletion(t *testing.T) {
	h := newHouse(t)
	for _, shell := range []string{"bash", "zsh", "fish"} {
		r := h.cradle(t, nil, "completion", shell)
		if r.code != 0 || !strings.Contains(r.stdout, "__complete") {
			t.Errorf("%s: code %d, %q", shell, r.code, r.stderr)
		}
		if _, err := exec.LookPath(shell); err != nil {
			continue
		}
		check := exec.Command(shell, "-n")
		check.Stdin = strings.NewReader(r.stdout)
		if out, err := check.CombinedOutput(); err != nil {
			t.Errorf("%s -n: %v\n%s", shell, err, out)
		}
	}
}
