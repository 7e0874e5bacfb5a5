package pool

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"
)

// TestNoopRuns runs the program where it can be: on a host that is as the guests are.
func TestNoopRuns(t *testing.T) {
	if runtime.GOOS != "linux" || runtime.GOARCH != "amd64" {
		t.Skip("the program is one for Linux on x86-64")
	}
	loader, program := filepath.Join(t.TempDir(), "noop.so"), filepath.Join(t.TempDir(), "noop")
	for path, interpreter := range map[string]string{loader: "", program: loader} {
		if err := os.WriteFile(path, elf(assemble(noopSteps(), entryOf(interpreter)), interpreter), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, path := range []string{loader, program} {
		out, err := exec.Command(path).CombinedOutput()
		if err != nil || string(out) != "n" {
			t.Errorf("%s wrote %q: %v", filepath.Base(path), out, err)
		}
	}
}
