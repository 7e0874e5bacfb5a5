package pool

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// What is restored on the spot has the less translated code, the more sandboxes there are and the less memory the host has
// left; what was made ready has all.
func TestDense(t *testing.T) {
	b := newBench(t)
	b.available.Store(15 << 30)
	p := b.filled()
	r := b.start(p)
	if code := b.machine(r).Config.CodeCache; code != 0 {
		t.Errorf("a ready one has a code cache of %d", code)
	}
	b.end(p, r)
	b.close(p)
	b.o.Settings = Settings{} // nothing is made ready
	p = b.open()
	alive := 0
	for _, step := range []struct {
		alive     int
		available int64
		want      int64
	}{
		{0, 64 << 30, 0}, {0, 16 << 30, 0}, {0, 15 << 30, 16 << 20}, {0, 7 << 30, 10 << 20},
		{250, 32 << 30, 0}, {260, 32 << 30, 16 << 20}, {520, 32 << 30, 10 << 20},
	} {
		for ; alive < step.alive; alive++ {
			if err := os.Mkdir(filepath.Join(b.o.Run, fmt.Sprint("box", alive)), 0o700); err != nil {
				t.Fatal(err)
			}
		}
		b.available.Store(step.available)
		r := b.start(p)
		if r == nil {
			t.Fatal("nothing is restored")
		}
		if code := b.machine(r).Config.CodeCache; code != step.want {
			t.Errorf("%d sandboxes, %d GiB left: a code cache of %d, want %d", alive, step.available>>30, code, step.want)
		}
		b.end(p, r)
	}
	for i := range alive {
		if err := os.Remove(filepath.Join(b.o.Run, fmt.Sprint("box", i))); err != nil {
			t.Fatal(err)
		}
	}
}
