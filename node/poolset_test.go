package node

import (
	"context"
	"testing"

	"github.com/cradlevm/cradle/pool"
)

// What was set of the pool holds under the next daemons, whatever they are started with, until it is forgotten.
func TestPoolSetIsKept(t *testing.T) {
	h := emptyHouse(t)
	open := func(s pool.Settings) {
		t.Helper()
		o := h.options()
		o.Pool, o.PoolSettings = true, s
		var err error
		if h.Node, err = Open(context.Background(), o); err != nil {
			t.Fatal(err)
		}
	}
	want := func(min, max int, memory int64) {
		t.Helper()
		if s := h.pool.Settings(); s != (pool.Settings{Min: min, Max: max, Memory: memory}) {
			t.Errorf("%+v, want %d to %d and %d", s, min, max, memory)
		}
	}
	set := func(c PoolSet) {
		t.Helper()
		if err := h.PoolChange(c); err != nil {
			t.Error(err)
		}
	}
	four, nine, memory := 4, 9, int64(5<<30)
	open(pool.Settings{Min: 0, Max: 2, Memory: 1 << 30})
	defer h.finish()
	set(PoolSet{Change: pool.Change{Drain: true}})
	h.stop()
	open(pool.Settings{Min: 0, Max: 3, Memory: 1 << 30}) // nothing was set
	want(0, 3, 1<<30)
	set(PoolSet{Change: pool.Change{Memory: &memory}})
	h.stop()
	open(pool.Settings{Min: 0, Max: 1}) // the one is not the others
	want(0, 1, memory)
	set(PoolSet{Change: pool.Change{Min: &four}})
	want(4, 4, memory)
	if err := h.PoolChange(PoolSet{Change: pool.Change{Min: &nine, Max: &four}}); err == nil {
		t.Error("nonsense is taken")
	}
	h.stop()
	open(pool.Settings{Min: 0, Max: 2})
	want(4, 4, memory)
	set(PoolSet{Default: true, Change: pool.Change{Max: &nine}})
	want(0, 9, 0)
	h.stop()
	open(pool.Settings{Min: 1, Max: 2})
	want(0, 9, 0)
	set(PoolSet{Default: true})
	want(1, 2, 0)
	h.stop()
	open(pool.Settings{Min: 0, Max: 7})
	want(0, 7, 0)
}
