package guestos

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// writeFile makes a file below dir, and its directories, and returns its path.
func writeFile(t *testing.T, dir, name, content string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// tinyInitrd is an initrd of fixed content.
func tinyInitrd(t *testing.T) []byte {
	t.Helper()
	dir := t.TempDir()
	agent := writeFile(t, dir, "agent", "#!/agent\n")
	modules := []Module{
		{Name: "virtio_mmio", Path: writeFile(t, dir, "virtio_mmio.ko", "first")},
		{Name: "ext4", Path: writeFile(t, dir, "ext4.ko", "second!")},
	}
	var b bytes.Buffer
	if err := WriteInitrd(&b, agent, modules); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestInitrdIsReproducible(t *testing.T) {
	first, second := tinyInitrd(t), tinyInitrd(t)
	if !bytes.Equal(first, second) {
		t.Fatal("two initrds of equal content differ")
	}
	// A change of this digest is a change of the format: templates made from older guests are no longer found.
	const want = "11c23637d0862ecc76f3667c83d3b751ec95c4e0abde1892b8740720e5c17470"
	if sum := sha256.Sum256(first); hex.EncodeToString(sum[:]) != want {
		t.Errorf("digest is %x, want %s", sum, want)
	}
}

func TestInitrdAsCpioReadsIt(t *testing.T) {
	if _, err := exec.LookPath("cpio"); err != nil {
		t.Skip("no cpio")
	}
	dir := t.TempDir()
	cpio := func(args ...string) string {
		cmd := exec.Command("cpio", args...)
		cmd.Dir = dir
		cmd.Stdin = bytes.NewReader(tinyInitrd(t))
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("cpio %v: %v", args, err)
		}
		return string(out)
	}
	got := strings.Fields(cpio("-i", "-t", "--quiet"))
	want := []string{".", "dev", "dev/console", "dev/null", "modules", "proc", "run", "sys", "tmp", "init",
		"modules/000-virtio_mmio.ko", "modules/001-ext4.ko", "modules/order"}
	if !slices.Equal(got, want) {
		t.Errorf("names %q, want %q", got, want)
	}
	listing := cpio("-i", "-t", "-v", "-n", "--quiet")
	for _, line := range []string{"crw-------   1 0        0          5,   1 Jan  1  1970 dev/console", "-rwxr-xr-x   1 0"} {
		if !strings.Contains(listing, line) {
			t.Errorf("no line like %q in\n%s", line, listing)
		}
	}
	// Not the devices: making those takes root.
	cpio("-i", "-d", "--quiet", "--no-preserve-owner", "init", "modules/*")
	for name, want := range map[string]string{
		"init":                "#!/agent\n",
		"modules/001-ext4.ko": "second!",
		"modules/order":       "000-virtio_mmio.ko\n001-ext4.ko\n",
	} {
		if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(got) != want {
			t.Errorf("%s is %q, %v; want %q", name, got, err, want)
		}
	}
}

func TestInitrdRefusesWhatIsNoProgram(t *testing.T) {
	for _, path := range []string{t.TempDir(), filepath.Join(t.TempDir(), "absent"), writeFile(t, t.TempDir(), "empty", "")} {
		if err := WriteInitrd(&bytes.Buffer{}, path, nil); err == nil {
			t.Errorf("%s: no error", path)
		}
	}
}
