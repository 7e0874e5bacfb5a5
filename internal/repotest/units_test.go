package repotest

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestUnits has systemd read the units, with a program in the place of the installed one.
func TestUnits(t *testing.T) {
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		t.Skip(err)
	}
	for kind, flag := range map[string]string{"system": "--system", "user": "--user"} {
		dir := t.TempDir()
		units, err := filepath.Glob(filepath.Join(root(t), "systemd", kind, "*"))
		if err != nil || len(units) != 2 {
			t.Fatalf("%s units: %v, %v", kind, units, err)
		}
		args := []string{flag, "verify"}
		for _, unit := range units {
			text, err := os.ReadFile(unit)
			if err != nil {
				t.Fatal(err)
			}
			copied := filepath.Join(dir, filepath.Base(unit))
			if err := os.WriteFile(copied, []byte(strings.ReplaceAll(string(text), "/usr/local/bin/cradle", "/bin/true")), 0o644); err != nil {
				t.Fatal(err)
			}
			args = append(args, copied)
		}
		verify := exec.Command("systemd-analyze", args...)
		verify.Env = append(os.Environ(), "XDG_RUNTIME_DIR="+dir, "HOME="+dir)
		if out, err := verify.CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("%s: %v\n%s", kind, err, out)
		}
	}
}
