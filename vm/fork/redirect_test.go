//go:build amd64

package fork

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"testing"
	"time"
)

// A process whose descriptors are redirected goes on, and has the others as they were.
func TestRedirect(t *testing.T) {
	var files []*os.File
	for _, name := range []string{"template", "empty", "other"} {
		f, err := os.Create(t.TempDir() + "/" + name)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		files = append(files, f)
	}
	cat := exec.Command("cat")
	cat.ExtraFiles = append(files, files[0])
	in, err := cat.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cat.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cat.Start(); err != nil {
		t.Fatal(err)
	}
	defer cat.Wait()
	defer in.Close()
	echo := func() {
		t.Helper()
		if _, err := fmt.Fprintln(in, "word"); err != nil {
			t.Fatal(err)
		}
		if line, err := bufio.NewReader(out).ReadString('\n'); line != "word\n" {
			t.Fatalf("%q, %v", line, err)
		}
	}
	echo() // it has started
	for began := time.Now(); ; {
		err := Redirect(cat.Process.Pid, 4, []int{3, 6})
		if err == nil {
			break
		}
		if !errors.Is(err, ErrBusy) || time.Since(began) > 10*time.Second {
			t.Fatal(err)
		}
	}
	for fd, want := range map[int]*os.File{3: files[1], 4: files[1], 5: files[2], 6: files[1]} {
		if got, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", cat.Process.Pid, fd)); got != want.Name() {
			t.Errorf("descriptor %d refers to %s (%v), want %s", fd, got, err, want.Name())
		}
	}
	echo()
	if err := Redirect(cat.Process.Pid, 99, []int{3}); err == nil {
		t.Error("redirected to a descriptor that is not open")
	}
	echo()
}

func TestRedirectOfNothing(t *testing.T) {
	over := exec.Command("true")
	if err := over.Run(); err != nil {
		t.Fatal(err)
	}
	if err := Redirect(over.Process.Pid, 0, []int{1}); !errors.Is(err, ErrGone) {
		t.Errorf("of a process that has ended: %v, want ErrGone", err)
	}
}
