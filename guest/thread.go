package guest

import (
	"fmt"
	"runtime"
	"runtime/debug"
	"sync"

	"github.com/cradlevm/cradle/api"
	"github.com/cradlevm/cradle/api/wire"
	"golang.org/x/sys/unix"
)

// thread is an OS thread that lives inside of a container: in its mount namespace, with its root directory as its
// own. Whatever touches the container's files runs here, so that no symbolic link of a hostile image leads
// anywhere but into the container itself; and processes of the container are cloned from here, so that they are
// born where they belong. It is never given back to the Go runtime: closing it ends it.
type thread struct {
	work chan func()
	quit chan struct{}
	done chan struct{}
	once sync.Once

	// What processes cloned from here need not do themselves; the thread's own to read and to write.
	joined   bool // they are born in the container's PID namespace
	confined bool // the bounding set is the container's
}

func newThread() *thread {
	t := &thread{work: make(chan func()), quit: make(chan struct{}), done: make(chan struct{})}
	go t.run()
	return t
}

func (t *thread) run() {
	runtime.LockOSThread() // never unlocked: the thread ends with this goroutine
	if unix.Gettid() == unix.Getpid() {
		// The process's first thread cannot end. A goroutine started while this one holds it gets another.
		moved := make(chan struct{})
		go func() {
			runtime.LockOSThread()
			close(moved)
			t.loop()
		}()
		<-moved
		runtime.UnlockOSThread()
		return
	}
	t.loop()
}

func (t *thread) loop() {
	defer close(t.done)
	wire.MakeRoom()
	for {
		select {
		case f := <-t.work:
			f()
		case <-t.quit:
			return
		}
	}
}

// do runs f on the thread and returns its error. A panic of f is an error.
func (t *thread) do(f func() error) error {
	result := make(chan error, 1)
	select {
	case t.work <- func() { result <- guard(f) }:
		return <-result
	case <-t.done:
		return api.Errorf(api.CodeFailedPrecondition, "the container is gone")
	}
}

// leave takes the thread out of its mount namespace and ends it, once. Were it the namespace's last user, all of its
// mounts are gone when leave returns.
func (t *thread) leave(home int) {
	t.once.Do(func() {
		t.do(func() error { return unix.Setns(home, unix.CLONE_NEWNS) })
		close(t.quit)
	})
	<-t.done
}

// guard turns a panic into an error: nothing a caller or a container does may end PID 1.
func guard(f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			fmt.Printf("cradle-init: panic: %v\n%s", p, debug.Stack())
			err = api.Errorf(api.CodeInternal, "agent panic: %v", p)
		}
	}()
	return f()
}
