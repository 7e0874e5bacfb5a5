package qemu

import (
	"errors"
	"io"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestSealWaits: a page of the file that somebody holds for longer than the kernel waits keeps it from being sealed only until he
// lets go.
func TestSealWaits(t *testing.T) {
	t.Parallel()
	m, err := memoryFile("test")
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if _, err := m.Write(make([]byte, 1<<20)); err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	var from int64
	if _, err := unix.Splice(int(m.Fd()), &from, int(w.Fd()), nil, 4096, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.FcntlInt(m.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_WRITE); !errors.Is(err, unix.EBUSY) {
		t.Skipf("a page in a pipe does not count here: %v", err)
	}
	go func() {
		time.Sleep(300 * time.Millisecond) // the kernel gives up after 150
		io.ReadFull(r, make([]byte, 4096))
	}()
	if err := seal(m); err != nil {
		t.Fatal(err)
	}
	if _, err := m.WriteAt([]byte("x"), 0); !errors.Is(err, unix.EPERM) {
		t.Errorf("writing to a sealed file: %v", err)
	}
}
