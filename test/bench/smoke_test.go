package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestSmoke runs benchmarks at their smallest, with the peers this machine has, and looks at what is left. Those that
// take minutes at any size are left out.
func TestSmoke(t *testing.T) {
	if os.Getenv("CRADLE_TEST_BIN") == "" {
		t.Skip("CRADLE_TEST_BIN is not set (make vm-test sets it)")
	}
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		t.Skip(err)
	}
	only, rows := "cli,exec,logs,run,idle,crowd", []string{
		"command line: ps", "exec of true", "logs: 1000 lines read", "run --rm busybox true, prepared pool hit", "run --rm busybox true, plain pool hit",
		"run --rm busybox true, prepared pool hit, bridge", "run --rm busybox true, restored", "private memory of an idle sandbox",
		"2 containers at once, all answering",
	}
	if _, err := exec.LookPath("wrk"); err == nil { // make bench installs it
		only, rows = only+",web", append(rows, "nginx: requests without an error")
	}
	scratch := t.TempDir()
	t.Setenv("TMPDIR", scratch)
	args := []string{
		"-bin", os.Getenv("CRADLE_TEST_BIN"), "-guest", os.Getenv("CRADLE_GUEST"), "-images", os.Getenv("CRADLE_TEST_IMAGES"),
		"-smoke", "-only", only, "-json", filepath.Join(t.TempDir(), "report"),
	}
	// Peers that hack/bench.sh has built before are used; they are not built here.
	if found, _ := filepath.Glob("/var/cache/cradle/peers/containerd-*/containerd-shim-runc-v2"); len(found) > 0 {
		args = append(args, "-containerd", filepath.Dir(found[0]))
	}
	if found, _ := filepath.Glob("/var/cache/cradle/peers/runsc-*/runsc"); len(found) > 0 {
		args = append(args, "-runsc", found[0])
	}
	var stdout, stderr strings.Builder
	if err := run(t.Context(), args, &stdout, &stderr); err != nil {
		t.Errorf("%v\n%s", err, &stderr)
	}
	t.Logf("\n%s", &stdout)
	for _, row := range rows {
		if !strings.Contains(stdout.String(), "\n"+row) {
			t.Errorf("the table lacks the row %q", row)
		}
	}
	if left, err := os.ReadDir(scratch); err != nil || len(left) > 0 {
		t.Errorf("left in the temporary directory: %v, %v", left, err)
	}
	for _, p := range processes() {
		if strings.Contains(p.cmdline, scratch) {
			t.Errorf("left running: %s", p.cmdline)
		}
	}
}
