package volume

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func needMkfs(t testing.TB) {
	t.Helper()
	if _, err := runMkfs(t.Context(), []string{"-V"}); err != nil {
		t.Skip("no mkfs.ext4 here:", err)
	}
}

func onDisk(t testing.TB, path string) int64 {
	t.Helper()
	var st syscall.Stat_t
	if err := syscall.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Blocks * 512
}

func names(t testing.TB, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

// TestScratch makes disks of several sizes: sound to e2fsck, small on disk, quick.
func TestScratch(t *testing.T) {
	needMkfs(t)
	s := &Scratch{Dir: t.TempDir()}
	for _, size := range []int64{MinScratch, 64<<20 + 5, 1 << 30, 10 << 30, 100 << 30} {
		path := filepath.Join(s.Dir, fmt.Sprint(size))
		start := time.Now()
		if err := s.New(t.Context(), path, size); err != nil {
			t.Fatal(err)
		}
		first := time.Since(start)
		start = time.Now()
		if err := s.New(t.Context(), path+"b", size); err != nil {
			t.Fatal(err)
		}
		t.Logf("%7d MiB: first %v, then %v, %d KiB on disk", size>>20, first, time.Since(start), onDisk(t, path+"b")>>10)
		fi, err := os.Stat(path)
		if err != nil || fi.Size() != (size+1<<20-1)>>20<<20 {
			t.Error(fi.Size(), err)
		}
		if n := onDisk(t, path+"b"); n > 256<<10 {
			t.Errorf("%d KiB on disk", n>>10)
		}
		fsck, err := exec.LookPath("e2fsck")
		if err != nil {
			continue
		}
		if out, err := exec.Command(fsck, "-fn", path).CombinedOutput(); err != nil {
			t.Errorf("e2fsck: %v\n%s", err, out)
		}
	}
}

// TestTemplateIsReproducible: the same bytes wherever and whenever.
func TestTemplateIsReproducible(t *testing.T) {
	needMkfs(t)
	var first []byte
	for range 2 {
		s := &Scratch{Dir: t.TempDir()}
		path := filepath.Join(s.Dir, "x")
		if err := s.New(t.Context(), path, 32<<20); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if first != nil && !bytes.Equal(first, b) {
			t.Error("two templates differ")
		}
		first = b
		time.Sleep(1100 * time.Millisecond) // ext4's times are seconds
	}
}

func TestConcurrentNew(t *testing.T) {
	needMkfs(t)
	s := &Scratch{Dir: t.TempDir()}
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			if err := s.New(t.Context(), filepath.Join(s.Dir, fmt.Sprint(i)), 1<<30); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := names(t, filepath.Join(s.Dir, "templates")); len(n) != 1 {
		t.Error(n)
	}
	if n := names(t, s.Dir); len(n) != 9 {
		t.Error(n)
	}
}

func TestErrorsLeaveNothing(t *testing.T) {
	needMkfs(t)
	s := &Scratch{Dir: t.TempDir()}
	out := t.TempDir()
	path := filepath.Join(out, "x")
	for _, size := range []int64{0, -1, MinScratch - 1, MaxScratch + 1} {
		if err := s.New(t.Context(), path, size); !errors.Is(err, ErrInvalid) {
			t.Error(size, err)
		}
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.New(ended, path, 1<<30); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if err := os.WriteFile(path, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.New(t.Context(), path, 1<<30); !errors.Is(err, os.ErrExist) {
		t.Error(err)
	}
	if b, _ := os.ReadFile(path); string(b) != "mine" {
		t.Error("another's file was written over")
	}
	os.Remove(path)
	// A crash left a partial copy; it is no obstacle.
	if err := os.WriteFile(path+".partial", []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.New(t.Context(), path, 1<<30); err != nil {
		t.Error(err)
	}
	if n := names(t, out); len(n) != 1 {
		t.Error(n)
	}
	if n := names(t, filepath.Join(s.Dir, "templates")); len(n) != 1 {
		t.Error(n)
	}
}

// TestFullDisk fills a small tmpfs.
func TestFullDisk(t *testing.T) {
	needMkfs(t)
	full := t.TempDir()
	if err := unix.Mount("tmpfs", full, "tmpfs", 0, "size=512k"); err != nil {
		t.Skip("no tmpfs here:", err)
	}
	defer unix.Unmount(full, unix.MNT_DETACH)
	s := &Scratch{Dir: t.TempDir()}
	var err error
	made := 0
	for ; err == nil && made < 20; made++ {
		err = s.New(t.Context(), filepath.Join(full, fmt.Sprint(made)), 10<<30)
	}
	if !errors.Is(err, ErrNoSpace) || !strings.Contains(err.Error(), full) {
		t.Error(err)
	}
	if n := names(t, full); len(n) != made-1 {
		t.Errorf("%d disks made, there is %v", made-1, n)
	}
	// And for the template itself.
	tight := &Scratch{Dir: full}
	if err := tight.New(t.Context(), filepath.Join(t.TempDir(), "x"), 1<<40); !errors.Is(err, ErrNoSpace) {
		t.Error(err)
	}
	if n := names(t, filepath.Join(full, "templates")); len(n) != 0 {
		t.Error(n)
	}
}

func TestNoMkfs(t *testing.T) {
	if _, err := os.Stat("/usr/sbin/mkfs.ext4"); err == nil {
		if err := spaceError("", ErrNoMkfs); !strings.Contains(err.Error(), "e2fsprogs") {
			t.Error(err)
		}
		t.Skip("mkfs.ext4 is where it is always looked for")
	}
	t.Setenv("PATH", t.TempDir())
	s := &Scratch{Dir: t.TempDir()}
	if err := s.New(t.Context(), filepath.Join(s.Dir, "x"), 1<<30); !errors.Is(err, ErrNoMkfs) {
		t.Error(err)
	}
}

func TestCopySparse(t *testing.T) {
	dir := t.TempDir()
	src, err := os.Create(filepath.Join(dir, "src"))
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	if err := src.Truncate(64<<20 + 123); err != nil {
		t.Fatal(err)
	}
	for _, at := range []int64{0, 4096, 5 << 20, 5<<20 + 300000, 64 << 20} {
		if _, err := src.WriteAt([]byte("data"), at); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := src.WriteAt(make([]byte, 8<<20), 20<<20); err != nil { // zeros that are no hole
		t.Fatal(err)
	}
	dst, err := os.Create(filepath.Join(dir, "dst"))
	if err != nil {
		t.Fatal(err)
	}
	defer dst.Close()
	if err := copySparse(t.Context(), dst, src); err != nil {
		t.Fatal(err)
	}
	a, _ := io.ReadAll(io.NewSectionReader(src, 0, 1<<40))
	b, _ := io.ReadAll(io.NewSectionReader(dst, 0, 1<<40))
	if !bytes.Equal(a, b) {
		t.Error("the copy differs")
	}
	if n := onDisk(t, dst.Name()); n > 64<<10 {
		t.Errorf("%d KiB on disk", n>>10)
	}
}

// TestMount has the kernel mount a disk and, after a crash, mount it again by its journal.
func TestMount(t *testing.T) {
	needMkfs(t)
	s := &Scratch{Dir: t.TempDir()}
	path := filepath.Join(s.Dir, "x")
	if err := s.New(t.Context(), path, 1<<30); err != nil {
		t.Fatal(err)
	}
	mnt := t.TempDir()
	mount := func(image string) error {
		out, err := exec.Command("mount", "-o", "loop", image, mnt).CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	}
	if err := mount(path); err != nil {
		t.Skip("no loop mounts here:", err)
	}
	if err := os.WriteFile(filepath.Join(mnt, "kept"), []byte("x"), 0o600); err != nil {
		t.Error(err)
	}
	if out, err := exec.Command("sync", "-f", mnt).CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
	// What a killed machine leaves: the file as it is while mounted.
	crashed := filepath.Join(s.Dir, "crashed")
	if err := copyInto(t.Context(), path, crashed); err != nil {
		t.Error(err)
	}
	if err := unix.Unmount(mnt, 0); err != nil {
		t.Fatal(err)
	}
	if err := mount(crashed); err != nil {
		t.Fatal("after the crash:", err)
	}
	defer unix.Unmount(mnt, 0)
	if b, err := os.ReadFile(filepath.Join(mnt, "kept")); err != nil || string(b) != "x" {
		t.Error(string(b), err)
	}
}

func BenchmarkNew10GiB(b *testing.B) {
	needMkfs(b)
	s := &Scratch{Dir: b.TempDir()}
	path := filepath.Join(s.Dir, "x")
	for b.Loop() {
		if err := s.New(b.Context(), path, 10<<30); err != nil {
			b.Fatal(err)
		}
		if err := os.Remove(path); err != nil {
			b.Fatal(err)
		}
	}
}

// A copy is the same, sparse, whole or not there, and takes nobody's place.
func TestCopy(t *testing.T) {
	dir := t.TempDir()
	from, to := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	f, err := os.Create(from)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(1 << 30); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("hello"), 500<<20); err != nil {
		t.Fatal(err)
	}
	if err := Copy(t.Context(), from, to); err != nil {
		t.Fatal(err)
	}
	if err := Sync(to); err != nil {
		t.Fatal(err)
	}
	copied, err := os.Open(to)
	if err != nil {
		t.Fatal(err)
	}
	defer copied.Close()
	b := make([]byte, 5)
	if _, err := copied.ReadAt(b, 500<<20); err != nil || string(b) != "hello" {
		t.Errorf("%q, %v", b, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(copied.Fd()), &st); err != nil || st.Size != 1<<30 || st.Blocks*512 > 1<<20 {
		t.Errorf("size %d, %d blocks, %v", st.Size, st.Blocks, err)
	}
	if err := Copy(t.Context(), from, to); !errors.Is(err, os.ErrExist) {
		t.Errorf("over another one: %v", err)
	}
	if err := Copy(t.Context(), filepath.Join(dir, "none"), filepath.Join(dir, "c")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("of none: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	// On a file system with reflinks a copy is made before anybody can cancel it.
	if err := Copy(ctx, from, filepath.Join(dir, "d")); err != nil && !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if left, err := filepath.Glob(filepath.Join(dir, "*.partial")); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}
