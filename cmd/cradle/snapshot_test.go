package main

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cradlevm/cradle/image"
)

// An archive goes to a file of its own, whole or not at all, or through; trust is asked for before anything is sent.
func TestSnapshotExportImport(t *testing.T) {
	h := newHouse(t)
	socket := serveFake(t, &fakeNode{})
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	for _, c := range []struct {
		args           string
		code           int
		stdout, stderr string // contained
		content        string // of file, then; it is removed afterwards
	}{
		{"snapshot export kept " + file, 0, "", "", "an archive, image=true"},
		{"snapshot export --no-image kept " + file, 0, "", "", "an archive, image=false"},
		{"snapshot export --compress gzip kept " + file, 0, "", "", "an archive, image=true"},
		{"snapshot export --compress zstd kept " + file, 0, "", "", "an archive, image=true"},
		{"snapshot export --compress lzw kept " + file, 1, "", "one of none, gzip, zstd", ""},
		{"snapshot export kept -", 0, "an archive, image=true", "", ""},
		{"snapshot export torn " + file, 1, "", "unexpected EOF", ""},
		{"snapshot export kept " + dir + "/no/such", 1, "", "no such file", ""},
		{"snapshot export kept", 1, "", "requires 2 arguments", ""},
		{"snapshot import " + os.Args[0], 1, "", "--trust", ""},
		{"snapshot import --trust " + file, 1, "", "no such file", ""},
	} {
		r := h.cradle(t, []string{envHost + "=" + socket}, strings.Fields(c.args)...)
		if r.code != c.code || !strings.Contains(r.stdout, c.stdout) || !strings.Contains(r.stderr, c.stderr) {
			t.Errorf("cradle %s: code %d, want %d\nstdout %q\nstderr %q", c.args, r.code, c.code, r.stdout, r.stderr)
		}
		if c.content != "" {
			if info, err := os.Stat(file); err != nil || info.Mode() != 0o600 {
				t.Errorf("cradle %s: %v, %v", c.args, info, err)
			}
			if got := decompressed(t, file); got != c.content {
				t.Errorf("cradle %s: %q", c.args, got)
			}
			if err := os.Remove(file); err != nil {
				t.Fatal(err)
			}
		}
		if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
			t.Errorf("cradle %s: left %v, %v", c.args, left, err)
		}
	}
	if err := os.WriteFile(file, []byte("bytes"), 0o600); err != nil {
		t.Fatal(err)
	}
	r := h.cradle(t, []string{envHost + "=" + socket}, "snapshot", "import", "--trust", "--name", "n", file)
	if r.code != 0 || r.stdout != "n of bytes\n" {
		t.Errorf("%+v", r)
	}
}

func decompressed(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	r, err := image.Decompress(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	out, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}
