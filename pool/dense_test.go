package pool

import "testing"

// What is restored on the spot has the less translated code, the less memory the host has left; what was made ready has all.
func TestDense(t *testing.T) {
	b := newBench(t)
	b.available.Store(40 << 30)
	p := b.filled()
	r := b.start(p)
	if code := b.machine(r).Config.CodeCache; code != 0 {
		t.Errorf("a ready one has a code cache of %d", code)
	}
	b.end(p, r)
	b.close(p)
	b.o.Settings = Settings{} // nothing is made ready
	p = b.open()
	for available, want := range map[int64]int64{64 << 30: 0, 48 << 30: 0, 47 << 30: 16 << 20, 24 << 30: 16 << 20, 23 << 30: 10 << 20, 0: 10 << 20} {
		b.available.Store(available)
		r := b.start(p)
		if r == nil {
			t.Fatal("nothing is restored")
		}
		if code := b.machine(r).Config.CodeCache; code != want {
			t.Errorf("with %d GiB left: a code cache of %d, want %d", available>>30, code, want)
		}
		b.end(p, r)
	}
}
