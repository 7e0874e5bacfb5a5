package guest

import (
	"context"
	"net"
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"

	"github.com/cradlevm/cradle/api"
	"github.com/cradlevm/cradle/api/wire"
	"golang.org/x/sys/unix"
)

// TestReaper: exits that come before the launch knows its child's number are not lost.
func TestReaper(t *testing.T) {
	if os.Getenv("CRADLE_REAPER_TEST") == "" {
		// The reaper takes every child of its process, so it gets a process of its own.
		cmd := exec.Command(os.Args[0], "-test.run=^TestReaper$", "-test.v")
		cmd.Env = append(os.Environ(), "CRADLE_REAPER_TEST=1")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	r := newReaper()
	stop := make(chan struct{})
	defer close(stop)
	go r.run(stop)
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Add(1)
		err := r.launch(func() (int, error) {
			p, err := os.StartProcess("/bin/sh", []string{"sh", "-c", "exit " + string(rune('0'+i%10))}, &os.ProcAttr{})
			if err != nil {
				return 0, err
			}
			if i%3 == 0 {
				time.Sleep(10 * time.Millisecond)
			}
			return p.Pid, nil
		}, func(ws unix.WaitStatus) {
			if ws.ExitStatus() != i%10 {
				t.Errorf("child %d: %d", i, ws.ExitStatus())
			}
			wg.Done()
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	wg.Wait()
	if len(r.waiters) != 0 || len(r.early) != 0 {
		t.Errorf("%d waiters, %d early exits left", len(r.waiters), len(r.early))
	}
}

// hostAgent serves an agent in this process; what needs a guest of its own cannot be asked of it.
func hostAgent(t *testing.T) *wire.Client {
	a, err := NewAgent()
	if err != nil {
		t.Skip(err)
	}
	guestEnd, hostEnd := net.Pipe()
	go a.Listen(guestEnd)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	c, err := wire.Dial(ctx, hostEnd, wire.Token{1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// TestRequestsFromAnywhere: whatever a request lacks, the answer is an error with a code and the agent lives.
func TestRequestsFromAnywhere(t *testing.T) {
	c := hostAgent(t)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	for _, call := range []struct {
		method string
		params any
		code   api.ErrorCode
	}{
		{"nothing", nil, api.CodeUnsupported},
		{api.MethodCreate, nil, api.CodeInvalid},
		{api.MethodCreate, "text", api.CodeInvalid},
		{api.MethodCreate, api.CreateRequest{ID: "../x"}, api.CodeInvalid},
		{api.MethodCreate, api.CreateRequest{ID: "x"}, api.CodeInvalid},
		{api.MethodCreate, api.CreateRequest{ID: "x", Rootfs: api.Rootfs{Layers: []api.Disk{{FSType: "erofs"}}}}, api.CodeInvalid},
		{api.MethodStart, api.ProcessRef{ID: "x"}, api.CodeNotFound},
		{api.MethodExec, api.ExecRequest{ID: "x"}, api.CodeNotFound},
		{api.MethodWait, api.ProcessRef{ID: "x"}, api.CodeNotFound},
		{api.MethodSignal, api.SignalRequest{Signal: 99}, api.CodeInvalid},
		{api.MethodSignal, api.SignalRequest{Signal: 9}, api.CodeNotFound},
		{api.MethodDelete, api.ProcessRef{ID: "x", Exec: "y"}, api.CodeNotFound},
		{api.MethodStats, nil, api.CodeNotFound},
		{api.MethodOutput, api.OutputRequest{}, api.CodeNotFound},
		{api.MethodStdin, []int{1}, api.CodeInvalid},
		{api.MethodConfigure, api.ConfigureRequest{KernelArgs: "x"}, api.CodeUnsupported},
		{api.MethodConfigure, api.ConfigureRequest{MachineID: "x"}, api.CodeInvalid},
	} {
		if err := c.Call(ctx, call.method, call.params, nil); code(err) != call.code {
			t.Errorf("%s %+v: %v", call.method, call.params, err)
		}
	}
	var ping api.PingResult
	if err := c.Call(ctx, api.MethodPing, nil, &ping); err != nil || ping.Protocol != api.ProtocolVersion || ping.Kernel == "" {
		t.Errorf("%+v, %v", ping, err)
	}
}

func TestGuard(t *testing.T) {
	if err := guard(func() error { panic("oh") }); code(err) != api.CodeInternal {
		t.Error(err)
	}
}

// TestThreadIsNotTheFirst: the process's first thread never ends, so no container may have it.
func TestThreadIsNotTheFirst(t *testing.T) {
	for range 8 {
		th := newThread()
		th.do(func() error {
			if unix.Gettid() == unix.Getpid() {
				t.Error("a container got the first thread")
			}
			return nil
		})
		close(th.quit)
		<-th.done
		if err := th.do(func() error { return nil }); code(err) != api.CodeFailedPrecondition {
			t.Error(err)
		}
	}
}
