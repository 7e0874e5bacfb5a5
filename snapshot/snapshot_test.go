package snapshot_test

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/cradlevm/cradle/snapshot"
)

type note struct{ Text string }

func publish(t *testing.T, parent, name, text string) (snapshot.Key, string) {
	t.Helper()
	key, _, err := snapshot.OpenKey(filepath.Join(parent, "key"))
	if err != nil {
		t.Fatal(err)
	}
	d, err := snapshot.NewDraft(parent)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(parent, name)
	if err := d.Publish(key, note{text}, path); err != nil {
		t.Fatal(err)
	}
	if err := d.Discard(); err != nil {
		t.Fatal(err)
	}
	return key, path
}

// A key that is none is replaced, which is told, and what the old one has signed is not believed.
func TestDamagedKey(t *testing.T) {
	parent := t.TempDir()
	_, dir := publish(t, parent, "a", "hello")
	path := filepath.Join(parent, "key")
	for _, size := range []int64{0, 31, 33} {
		if err := os.Truncate(path, size); err != nil {
			t.Fatal(err)
		}
		key, replaced, err := snapshot.OpenKey(path)
		if err != nil || !replaced || len(key) != 32 {
			t.Fatalf("%d bytes: %d of a key, replaced: %v, %v", size, len(key), replaced, err)
		}
		if err := key.Verify(dir, new(note)); !errors.Is(err, snapshot.ErrForeign) {
			t.Errorf("what was signed before: %v", err)
		}
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("the key's mode is %v, %v", info.Mode(), err)
		}
	}
}

// A manifest is believed as it was written by this installation, and in no other way.
func TestManifest(t *testing.T) {
	parent := t.TempDir()
	key, path := publish(t, parent, "a", "hello")
	var got note
	if err := key.Verify(path, &got); err != nil || got.Text != "hello" {
		t.Fatalf("%+v, %v", got, err)
	}
	if again, replaced, err := snapshot.OpenKey(filepath.Join(parent, "key")); err != nil || replaced || !bytes.Equal(again, key) {
		t.Errorf("the key is another one: %v", err)
	}
	file := filepath.Join(path, snapshot.ManifestName)
	whole, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for i := range whole { // each byte flipped, and each length cut
		bad := bytes.Clone(whole)
		bad[i] ^= 1
		for _, content := range [][]byte{bad, whole[:i]} {
			if err := os.WriteFile(file, content, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := key.Verify(path, &got); !errors.Is(err, snapshot.ErrForeign) {
				t.Fatalf("byte %d changed, or cut there: %v", i, err)
			}
		}
	}
	other, _ := publish(t, t.TempDir(), "b", "x")
	if err := os.WriteFile(file, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := other.Verify(path, &got); !errors.Is(err, snapshot.ErrForeign) {
		t.Errorf("another installation believes it: %v", err)
	}
	if err := key.Verify(filepath.Join(parent, "none"), &got); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("one that is not there: %v", err)
	}
}

// What was not published is swept; what was stays, and takes the place of the one before.
func TestDrafts(t *testing.T) {
	parent := t.TempDir()
	key, path := publish(t, parent, "a", "one")
	if _, err := snapshot.NewDraft(parent); err != nil { // a crash
		t.Fatal(err)
	}
	publish(t, parent, "a", "two")
	if err := snapshot.Sweep(parent); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(parent)
	if err != nil || len(entries) != 2 {
		t.Errorf("left: %v, %v", entries, err)
	}
	var got note
	if err := key.Verify(path, &got); err != nil || got.Text != "two" {
		t.Errorf("%+v, %v", got, err)
	}
	if err := snapshot.Sweep(filepath.Join(parent, "none")); err != nil {
		t.Error(err)
	}
}

// A digest is that of the contents: holes are zeros, and everything else counts.
func TestDigest(t *testing.T) {
	dir := t.TempDir()
	write := func(size int64, at ...int64) string {
		t.Helper()
		f, err := os.Create(filepath.Join(dir, "f"))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := f.Truncate(size); err != nil {
			t.Fatal(err)
		}
		for _, a := range at {
			text := []byte("x")
			if a < 0 {
				text, a = make([]byte, 5000), -a
			}
			if _, err := f.WriteAt(text, a); err != nil {
				t.Fatal(err)
			}
		}
		sum, err := snapshot.Digest(context.Background(), f.Name())
		if err != nil {
			t.Fatal(err)
		}
		return sum
	}
	seen := map[string]bool{}
	for _, sum := range []string{
		write(1 << 30), write(1<<30 + 1), write(1<<30, 0), write(1<<30, 1), write(1<<30, 1<<20), write(1<<30, 1<<30-1),
		write(1<<30, 0, 1<<20), write(0), write(70000, 69999),
	} {
		if seen[sum] {
			t.Error("two files have one digest")
		}
		seen[sum] = true
	}
	if write(1<<30, 7, -1<<20) != write(1<<30, 7) {
		t.Error("zeros are not like a hole")
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	write(1<<20, 5)
	if _, err := snapshot.Digest(ctx, filepath.Join(dir, "f")); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
