package node

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
)

const many = 200

// all200 calls f at once from many goroutines and returns how many had no error. Every error must be one a client can
// understand.
func all200(t *testing.T, f func(i int) error) int {
	t.Helper()
	var won atomic.Int32
	var all sync.WaitGroup
	begin := make(chan struct{})
	for i := range many {
		all.Go(func() {
			<-begin
			switch err := f(i); {
			case err == nil:
				won.Add(1)
			case !cerrdefs.IsConflict(err) && !cerrdefs.IsNotFound(err) && !cerrdefs.IsNotModified(err) && !cerrdefs.IsInvalidArgument(err):
				t.Errorf("%d: %v", i, err)
			}
		})
	}
	close(begin)
	all.Wait()
	return int(won.Load())
}

// Of 200 who want the same, exactly one has it.
func TestManyOfOneName(t *testing.T) {
	h := newHouse(t)
	ctx := context.Background()
	for range 3 {
		one := func(what string, f func(i int) error) {
			t.Helper()
			if n := all200(t, f); n != 1 {
				t.Errorf("%d of %d won: %s", n, many, what)
			}
		}
		one("create", func(int) error { _, err := h.tryCreate("a", "sleep"); return err })
		one("rename", func(int) error { return h.ContainerRename(ctx, "a", "b") })
		one("start", func(int) error { return h.ContainerStart(ctx, "b") })
		if n := len(h.driver.Running()); n != 1 {
			t.Errorf("%d machines run", n)
		}
		// Docker answers every stop that finds the container running; all who come later are told that it was not.
		if n := all200(t, func(int) error { return h.ContainerStop(ctx, "b", "", nil) }); n < 1 {
			t.Error("no stop won")
		}
		h.wantState("b", container.StateExited, 143)
		h.torn("b")
		if n := all200(t, func(int) error { return h.ContainerRemove(ctx, "b", false, false) }); n < 1 {
			t.Error("no removal won")
		}
		h.empty()
	}
}

// Everything at once, on one name: no deadlock, no leak, and a house that works afterwards.
func TestManyOfEverything(t *testing.T) {
	h := newHouse(t)
	before := runtime.NumGoroutine()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	now := 0
	all200(t, func(i int) error {
		name := []string{"a", "b"}[i/8%2]
		switch i % 8 {
		case 0:
			_, err := h.tryCreate(name, "sleep", autoRemove)
			return err
		case 1:
			_, err := h.tryCreate(name, "exit 1", restartPolicy(container.RestartPolicyAlways, 0))
			return err
		case 2, 3:
			return h.ContainerStart(ctx, name)
		case 4:
			return h.ContainerStop(ctx, name, "", &now)
		case 5:
			return h.ContainerRename(ctx, "a", "b")
		case 6:
			return h.ContainerRestart(ctx, name, "", &now)
		default:
			return h.ContainerRemove(ctx, name, true, false)
		}
	})
	if ctx.Err() != nil {
		t.Error("it took too long")
	}
	if err := h.Reset(context.Background()); err != nil {
		t.Error(err)
	}
	h.empty()
	h.run("c", "sleep")
	if err := h.ContainerRemove(ctx, "c", true, false); err != nil {
		t.Error(err)
	}
	for begun := time.Now(); runtime.NumGoroutine() > before; time.Sleep(time.Millisecond) {
		if time.Since(begun) > 10*time.Second {
			buf := make([]byte, 1<<20)
			t.Fatalf("%d goroutines, %d before:\n%s", runtime.NumGoroutine(), before, buf[:runtime.Stack(buf, true)])
		}
	}
}

// Each of many has its own user id, and what it prints.
func TestManyContainers(t *testing.T) {
	h := newHouse(t)
	var all sync.WaitGroup
	for i := range 50 {
		all.Go(func() {
			name := fmt.Sprintf("c%d", i)
			id, err := h.tryCreate(name, fmt.Sprintf("exit %d", i))
			if err == nil {
				err = h.ContainerStart(context.Background(), id)
			}
			if err != nil {
				t.Error(err)
				return
			}
			ch, err := h.ContainerWait(context.Background(), id, container.WaitConditionNotRunning)
			if err != nil {
				t.Error(err)
				return
			}
			if r := <-ch; r.StatusCode != i {
				t.Errorf("%s: exit code %d", name, r.StatusCode)
			}
		})
	}
	all.Wait()
}
