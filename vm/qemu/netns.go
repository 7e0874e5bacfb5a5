package qemu

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// noNetwork makes a network namespace that has nothing but a loopback interface, which is down: for monitors, which have all that they need open. It
// is gone with its last process and descriptor. nil where there cannot be one: without CAP_SYS_ADMIN, or in a kernel without such namespaces.
func noNetwork() (*os.File, error) {
	return onThread(func() (*os.File, error) {
		err := unix.Unshare(unix.CLONE_NEWNET)
		if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EINVAL) {
			return nil, nil
		}
		if err != nil {
			return nil, fmt.Errorf("make a network namespace for monitors: %w", err)
		}
		return os.Open("/proc/thread-self/ns/net")
	})
}

// in calls f in a network namespace.
func in[T any](netns *os.File, f func() (T, error)) (T, error) {
	return onThread(func() (T, error) {
		if err := unix.Setns(int(netns.Fd()), unix.CLONE_NEWNET); err != nil {
			var none T
			return none, fmt.Errorf("enter network namespace %s: %w", netns.Name(), err)
		}
		return f()
	})
}

// onThread calls f on a thread that ends afterwards: its namespace is nobody else's. That is never the process's first one, which
// would stay, and keep the namespace.
func onThread[T any](f func() (T, error)) (T, error) {
	type result struct {
		value T
		err   error
	}
	done := make(chan result, 1)
	go func() {
		runtime.LockOSThread()
		var r result
		if unix.Gettid() == unix.Getpid() {
			r.value, r.err = onThread(f) // elsewhere, this one being taken
			runtime.UnlockOSThread()
		} else {
			r.value, r.err = f()
		}
		done <- r
	}()
	r := <-done
	return r.value, r.err
}
