package qemu_test

import (
	"context"
	"testing"
	"time"

	"github.com/cradlevm/cradle/api"
	"github.com/cradlevm/cradle/api/wire"
	"github.com/cradlevm/cradle/vm"
	"github.com/cradlevm/cradle/vm/qemu"
)

func TestSmoke(t *testing.T) {
	g := testGuest(t)
	d := qemu.New(qemu.Options{})
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	t.Log(d.Accel(ctx))
	for range 5 {
		begin := time.Now()
		c := vm.Config{ID: "smoke", Dir: t.TempDir(), CPUs: 1, Memory: 128 << 20, Kernel: g.Kernel, Initrd: g.Initrd, UID: 12345, GID: 12345}
		v, err := d.Start(ctx, c)
		if err != nil {
			t.Fatal(err)
		}
		started := time.Since(begin)
		conn, err := v.Dial(ctx, api.AgentPort)
		if err != nil {
			t.Fatal(err)
		}
		cl, err := wire.Dial(ctx, conn, wire.Token{1})
		if err != nil {
			t.Fatal(err, string(v.Console(4096)))
		}
		var p api.PingResult
		if err := cl.Call(ctx, api.MethodPing, nil, &p); err != nil {
			t.Fatal(err)
		}
		t.Log(started, time.Since(begin), p)
		t.Log(v.Kill(), v.Wait())
	}
}
