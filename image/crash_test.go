package image

import (
	"bytes"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

const crashDir = "CRADLE_IMAGE_CRASH_DIR" // where TestCrashVictim works, in the process to be killed

// TestCrashVictim loads and removes images until it is killed. On its own it does nothing.
func TestCrashVictim(t *testing.T) {
	dir := os.Getenv(crashDir)
	if dir == "" {
		t.Skip("started by TestKill")
	}
	s := must(Open(dir, Options{Keychain: noKeychain{}}))
	archives := [][]byte{dockerArchive(t, "app:1", testImage(t, "base", "app")), dockerArchive(t, "base:1", testImage(t, "base"))}
	must(0, os.WriteFile(filepath.Join(dir, "ready"), nil, 0o600))
	for i := 0; ; i++ {
		must(load(s, archives[i%2]))
		if i%3 == 2 {
			must(s.prune(true))
		}
	}
}

// prune is Prune for must, which takes two results.
func (s *Local) prune(all bool) (int64, error) {
	_, n, err := s.Prune(all)
	return n, err
}

// TestKill kills a process in the midst of its work, again and again: what the store then has is whole.
func TestKill(t *testing.T) {
	dir := t.TempDir()
	for range 8 {
		os.Remove(filepath.Join(dir, "ready"))
		cmd := exec.Command(os.Args[0], "-test.run=^TestCrashVictim$")
		cmd.Env = append(os.Environ(), crashDir+"="+dir)
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		within(t, 30*time.Second, "the victim works", func() bool {
			_, err := os.Stat(filepath.Join(dir, "ready"))
			return err == nil
		})
		time.Sleep(time.Duration(rand.IntN(60)) * time.Millisecond)
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		cmd.Wait()
		if ws := cmd.ProcessState.Sys().(syscall.WaitStatus); !ws.Signaled() {
			t.Fatalf("the victim ended by itself: %s", out.Bytes())
		}
		s, err := Open(dir, Options{Keychain: noKeychain{}})
		if err != nil {
			t.Fatal(err)
		}
		checkClean(t, s)
		for _, img := range must(s.List()) {
			for _, l := range img.Layers {
				if got := layerTar(t, s, l); !bytes.Equal(got, testTar("base")) && !bytes.Equal(got, testTar("app")) {
					t.Errorf("layer %s is damaged", l.DiffID)
				}
			}
		}
		s.Close()
	}
}
