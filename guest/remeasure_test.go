package guest

import (
	"os"
	"path/filepath"
	"testing"
)

// A disk that the kernel takes for an empty one is asked for its size again, and no other.
func TestRemeasure(t *testing.T) {
	for size, want := range map[string]bool{"0\n": true, "128\n": false} {
		sys := t.TempDir()
		device := filepath.Join(sys, "block/sda/device")
		if err := os.MkdirAll(device, 0o700); err != nil {
			t.Fatal(err)
		}
		for name, content := range map[string]string{"rescan": "", "../size": size} {
			if err := os.WriteFile(filepath.Join(device, name), []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if got := remeasure(sys, "sda"); got != want {
			t.Errorf("size %q: %v, want %v", size, got, want)
		}
		if b, err := os.ReadFile(filepath.Join(device, "rescan")); err != nil || (string(b) == "1") != want {
			t.Errorf("size %q: rescan has %q, %v", size, b, err)
		}
	}
	if remeasure(t.TempDir(), "sdb") {
		t.Error("measured what is not there")
	}
}
