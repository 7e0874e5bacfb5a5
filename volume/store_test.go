package volume

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestStore(t *testing.T) {
	dir := t.TempDir()
	scratch := &Scratch{Dir: filepath.Join(dir, "scratch")}
	open := func() *Store {
		t.Helper()
		s, err := OpenStore(filepath.Join(dir, "volumes"), scratch)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	s := open()
	want := Volume{Name: "db", Labels: map[string]string{"a": "b"}, Size: MinScratch}
	if v, made, err := s.Create(t.Context(), want); err != nil || !made || v.Name != "db" || v.Labels["a"] != "b" || v.Created.IsZero() {
		t.Fatalf("%+v, %v, %v", v, made, err)
	}
	if v, made, err := s.Create(t.Context(), Volume{Name: "db", Size: MinScratch}); err != nil || made || v.Labels["a"] != "b" {
		t.Errorf("again: %+v, %v, %v", v, made, err)
	}
	for _, name := range []string{"", "a", ".going-x", "../x", "a/b", "a b", strings.Repeat("x", 201)} {
		if _, _, err := s.Create(t.Context(), Volume{Name: name, Size: MinScratch}); !errors.Is(err, ErrName) {
			t.Errorf("%q: %v", name, err)
		}
	}
	if _, _, err := s.Create(t.Context(), Volume{Name: "small", Size: 1}); !errors.Is(err, ErrInvalid) {
		t.Errorf("a size of 1: %v", err)
	}
	if used, err := s.Used("db"); err != nil || used == 0 || used > MinScratch {
		t.Errorf("%d bytes, %v", used, err)
	}

	// What a crash leaves is swept; what is whole is found.
	for _, left := range []string{makingName, goingName + "x"} {
		if err := os.MkdirAll(filepath.Join(dir, "volumes", left, "y"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	s = open()
	if list := s.List(); len(list) != 1 || list[0].Name != "db" || list[0].Labels["a"] != "b" {
		t.Errorf("%+v", list)
	}
	if err := s.Remove("db"); err != nil {
		t.Error(err)
	}
	if err := s.Remove("db"); !errors.Is(err, ErrNotFound) {
		t.Errorf("twice: %v", err)
	}
	if _, err := s.Get("db"); !errors.Is(err, ErrNotFound) {
		t.Errorf("gone: %v", err)
	}
	if left, err := os.ReadDir(filepath.Join(dir, "volumes")); err != nil || len(left) != 0 {
		t.Errorf("left %v, %v", left, err)
	}
}

// A description that is damaged is not taken for a volume, nor removed.
func TestStoreDamaged(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "db"), 0o700); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "db", volumeFile)
	for _, text := range []string{"", "{", `{"Name":"other"}`} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := OpenStore(dir, &Scratch{}); err == nil || !strings.Contains(err.Error(), "damaged") {
			t.Errorf("%q: %v", text, err)
		}
	}
	if _, err := os.Stat(path); err != nil {
		t.Error(err)
	}
}
