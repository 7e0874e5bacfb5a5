package qemu

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"github.com/cradlevm/cradle/guestos"
	"github.com/cradlevm/cradle/vm/vmtest"
)

// devKernel is where this project's machines keep a built guest kernel; CRADLE_TEST_KERNEL names another.
const devKernel = "/var/cache/cradle-dev/bzImage"

const initrdVariable = "CRADLE_TEST_INITRD"

// TestMain removes the guest that buildGuest made.
func TestMain(m *testing.M) {
	given := os.Getenv(initrdVariable)
	code := m.Run()
	if built := os.Getenv(initrdVariable); given == "" && built != "" {
		os.RemoveAll(filepath.Dir(built))
	}
	os.Exit(code)
}

var buildGuest = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "cradle-testguest-")
	if err != nil {
		return "", err
	}
	bin := filepath.Join(dir, "testguest")
	build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", bin, "github.com/cradlevm/cradle/vm/vmtest/testguest")
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the test guest: %w\n%s", err, out)
	}
	initrd := filepath.Join(dir, "initrd")
	f, err := os.Create(initrd)
	if err != nil {
		return "", err
	}
	defer f.Close()
	os.Setenv(initrdVariable, initrd)
	return initrd, guestos.WriteInitrd(f, bin, nil)
})

// testOptions are the default ones, but for CRADLE_TEST_QEMU, which names another QEMU.
func testOptions() Options { return Options{Binary: os.Getenv("CRADLE_TEST_QEMU")} }

// testGuest returns a bootable pair, or skips the test where there is no kernel or no QEMU.
func testGuest(t testing.TB) vmtest.Guest {
	t.Helper()
	if testing.Short() {
		t.Skip("boots virtual machines")
	}
	if _, err := New(testOptions()).qemu(); err != nil {
		t.Skip(err)
	}
	kernel := os.Getenv("CRADLE_TEST_KERNEL")
	if kernel == "" {
		kernel = devKernel
	}
	if _, err := os.Stat(kernel); err != nil {
		t.Skipf("no guest kernel (CRADLE_TEST_KERNEL): %v", err)
	}
	// The conformance suite runs this test binary once more, which need not build again.
	initrd, err := os.Getenv(initrdVariable), error(nil)
	if initrd == "" {
		initrd, err = buildGuest()
	}
	if err != nil {
		t.Fatal(err)
	}
	return vmtest.Guest{Kernel: kernel, Initrd: initrd}
}
