package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestReset(t *testing.T) {
	h := newHouse(t)
	if r := h.cradle(t, nil, "ps"); r.code != 0 {
		t.Fatalf("%+v", r)
	}
	if r := h.cradle(t, nil, "system", "reset"); r.code != 1 || !isDir(h.root()) {
		t.Fatalf("without a yes: %+v", r)
	}
	if r := h.cradle(t, nil, "system", "reset", "--force"); r.code != 0 || r.stderr != "" {
		t.Fatalf("%+v", r)
	}
	for _, dir := range []string{h.root(), h.run()} {
		if isDir(dir) {
			t.Errorf("%s is left", dir)
		}
	}
	if r := h.cradle(t, nil, "system", "reset", "--force"); r.code != 0 {
		t.Fatalf("of nothing: %+v", r)
	}
}

func TestResetWithoutDaemon(t *testing.T) {
	h := newHouse(t)
	if r := h.cradle(t, nil, "ps"); r.code != 0 {
		t.Fatalf("%+v", r)
	}
	h.endDaemon(t)
	r := h.cradle(t, []string{envAs + "=" + asBroken}, "system", "reset", "--force")
	if r.code != 0 || !strings.Contains(r.stderr, brokenSentence) || isDir(h.root()) || isDir(h.run()) {
		t.Errorf("%+v", r)
	}
}

// A setting that points at somebody's files costs nobody a file: neither a daemon nor a reset touches them.
func TestForeignDirectoryIsLeftAlone(t *testing.T) {
	h := newHouse(t)
	home := filepath.Join(h.dir, "home")
	if err := os.Mkdir(home, 0o755); err != nil {
		t.Fatal(err)
	}
	letter := filepath.Join(home, "letter")
	if err := os.WriteFile(letter, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, variable := range []string{envRoot, envRun} {
		for _, args := range [][]string{{"system", "reset", "--force"}, {"daemon"}, {"ps"}} {
			r := h.cradle(t, []string{variable + "=" + home}, args...)
			if r.code != 1 || !strings.Contains(r.stderr, home) {
				t.Errorf("%s, %v: %+v", variable, args, r)
			}
		}
	}
	if left, _ := os.ReadDir(home); len(left) != 1 || left[0].Name() != "letter" {
		t.Errorf("the directory holds %v", left)
	}
}

func TestPlaces(t *testing.T) {
	getenv := func(kv ...string) env {
		return func(name string) string {
			for i := 0; i < len(kv); i += 2 {
				if kv[i] == name {
					return kv[i+1]
				}
			}
			return ""
		}
	}
	for _, c := range []struct {
		env       env
		uid       int
		run, root string
	}{
		{getenv(), 0, "/run/cradle", "/var/lib/cradle"},
		{getenv("XDG_RUNTIME_DIR", "/x", "XDG_DATA_HOME", "/y"), 0, "/run/cradle", "/var/lib/cradle"},
		{getenv("XDG_RUNTIME_DIR", "/x", "XDG_DATA_HOME", "/y", "HOME", "/h"), 77777, "/x/cradle", "/y/cradle"},
		{getenv("HOME", "/h"), 77777, filepath.Join(os.TempDir(), "cradle-77777"), "/h/.local/share/cradle"},
		{getenv("CRADLE_RUN", "/r", "CRADLE_ROOT", "/o", "XDG_RUNTIME_DIR", "/x"), 77777, "/r", "/o"},
	} {
		run, err := runDir(c.env, c.uid)
		if err != nil || run != c.run {
			t.Errorf("runDir = %q, %v; want %q", run, err, c.run)
		}
		root, err := rootDir(c.env, c.uid)
		if err != nil || root != c.root {
			t.Errorf("rootDir = %q, %v; want %q", root, err, c.root)
		}
	}
	if dir, err := rootDir(getenv(), 77777); err == nil {
		t.Errorf("rootDir without a home = %q", dir)
	}
}

func TestRuntimeDirMadeByAnother(t *testing.T) {
	parent := t.TempDir()
	open := filepath.Join(parent, "open")
	if err := os.Mkdir(open, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(open, 0o777); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(parent, "link")
	if err := os.Symlink("/root", link); err != nil {
		t.Fatal(err)
	}
	for dir, uid := range map[string]int{open: os.Getuid(), link: os.Getuid(), parent: os.Getuid() + 1} {
		if err := checkPrivate(dir, uid); err == nil {
			t.Errorf("checkPrivate(%s, %d) found nothing", dir, uid)
		}
	}
	if err := checkPrivate(filepath.Join(parent, "none"), 1); err != nil {
		t.Error(err)
	}
}
