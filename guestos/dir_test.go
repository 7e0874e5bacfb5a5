package guestos

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// makeGuest builds a guest of the given release at dst.
func makeGuest(t *testing.T, dst, release, agent string) Guest {
	t.Helper()
	src := t.TempDir()
	kernel := writeFile(t, src, "vmlinuz", string(bzImage(release+" (x@y) #1", 4)))
	g, err := Build(dst, kernel, "", nil, writeFile(t, src, "init", agent))
	if err != nil {
		t.Fatal(err)
	}
	return g
}

func TestBuildAndOpen(t *testing.T) {
	dst := filepath.Join(t.TempDir(), "guests", "one")
	made := makeGuest(t, dst, "6.12.117-cradle", "agent")
	opened, err := Open(dst)
	if err != nil {
		t.Fatal(err)
	}
	if made != opened {
		t.Errorf("Build returned %+v, Open %+v", made, opened)
	}
	if made.Release != "6.12.117-cradle" || !made.Erofs512 || len(made.Digest) != 64 || made.Kernel != filepath.Join(dst, "bzImage") {
		t.Errorf("guest %+v", made)
	}
	if entries, _ := os.ReadDir(filepath.Dir(dst)); len(entries) != 1 {
		t.Errorf("left behind: %v", entries)
	}
}

func TestBuildKeepsAnEqualGuest(t *testing.T) {
	dst := filepath.Join(t.TempDir(), "g")
	first := makeGuest(t, dst, "6.12.1", "agent")
	before, err := os.Stat(first.Kernel)
	if err != nil {
		t.Fatal(err)
	}
	if again := makeGuest(t, dst, "6.12.1", "agent"); again != first {
		t.Errorf("%+v, then %+v", first, again)
	}
	if after, err := os.Stat(first.Kernel); err != nil || !os.SameFile(before, after) {
		t.Errorf("an equal guest was written again (%v)", err)
	}
	// Another agent is another guest, in the same place.
	changed := makeGuest(t, dst, "6.12.1", "another agent")
	if changed.Digest == first.Digest {
		t.Error("another agent, the same digest")
	}
	if entries, _ := os.ReadDir(filepath.Dir(dst)); len(entries) != 1 {
		t.Errorf("left behind: %v", entries)
	}
}

func TestBuildRefuses(t *testing.T) {
	dir := t.TempDir()
	kernel := writeFile(t, dir, "vmlinuz", string(bzImage("6.12.1", 4)))
	agent := writeFile(t, dir, "init", "agent")
	dst := filepath.Join(dir, "out", "g")
	for about, build := range map[string]func() (Guest, error){
		"another release": func() (Guest, error) { return Build(dst, kernel, "6.1.0", nil, agent) },
		"no kernel":       func() (Guest, error) { return Build(dst, agent, "", nil, agent) },
		"no agent":        func() (Guest, error) { return Build(dst, kernel, "", nil, filepath.Join(dir, "absent")) },
		"no module": func() (Guest, error) {
			return Build(dst, kernel, "", []Module{{Name: "x", Path: filepath.Join(dir, "x.ko")}}, agent)
		},
	} {
		if _, err := build(); err == nil {
			t.Errorf("%s: no error", about)
		}
	}
	if entries, _ := os.ReadDir(filepath.Join(dir, "out")); len(entries) != 0 {
		t.Errorf("left behind: %v", entries)
	}
}

func TestOpenErrors(t *testing.T) {
	if _, err := Open(filepath.Join(t.TempDir(), "absent")); !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), "make kernel") {
		t.Errorf("absent: %v", err)
	}
	for _, name := range []string{"bzImage", "initrd", "release", "manifest"} {
		dst := filepath.Join(t.TempDir(), "g")
		makeGuest(t, dst, "6.12.1", "agent")
		writeFile(t, dst, name, "something else")
		if _, err := Open(dst); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s changed: %v", name, err)
		}
		if name == "manifest" {
			continue
		}
		if err := os.Remove(filepath.Join(dst, name)); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(dst); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s removed: %v", name, err)
		}
	}
}

func TestFind(t *testing.T) {
	dir := t.TempDir()
	if _, err := Find(dir); !errors.Is(err, ErrNotFound) {
		t.Errorf("empty: %v", err)
	}
	if _, err := Find(filepath.Join(dir, "absent")); !errors.Is(err, ErrNotFound) {
		t.Errorf("absent: %v", err)
	}
	makeGuest(t, filepath.Join(dir, "debian"), "6.1.0-56-cloud-amd64", "agent")
	makeGuest(t, filepath.Join(dir, "ours"), "6.12.117-cradle", "agent")
	makeGuest(t, filepath.Join(dir, ".guest-123"), "6.99.0", "agent") // as Build would leave it if it were killed
	writeFile(t, dir, "notes.txt", "not a guest")
	guests, err := Find(dir)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, g := range guests {
		got = append(got, g.Release)
	}
	if want := []string{"6.12.117-cradle", "6.1.0-56-cloud-amd64"}; !slices.Equal(got, want) {
		t.Errorf("found %v, want %v", got, want)
	}
	writeFile(t, dir, "ours/initrd", "changed")
	guests, err = Find(dir)
	if len(guests) != 1 || !errors.Is(err, ErrDamaged) {
		t.Errorf("one damaged: %d guests, %v", len(guests), err)
	}
}
