package fork

import (
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// Redirect has descriptors of a process, a child of the caller's, refer to the same open file as its descriptor to does (dup2(2)). The
// process stands still meanwhile, and then goes on. It must be waiting in a system call, as for Seize, but only its first thread.
// Errors: ErrUnsupported, ErrBusy, ErrGone, upon all of which it goes on as it was; what the kernel says.
func Redirect(pid int, to int, fds []int) error {
	done := make(chan error)
	go func() {
		// Only the thread that traces may ask. It goes on to do other things.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		done <- redirect(pid, to, fds)
	}()
	if err := <-done; err != nil {
		return fmt.Errorf("redirect descriptors of process %d: %w", pid, err)
	}
	return nil
}

func redirect(pid, to int, fds []int) error {
	t, _, err := seize(pid)
	if t != nil {
		defer t.release()
	}
	if err == nil {
		err = t.rest()
	}
	if err == nil {
		err = t.checkInstruction()
	}
	if err != nil {
		return err
	}
	for _, fd := range fds {
		if _, _, err := t.call(unix.SYS_DUP3, uint64(to), uint64(fd), unix.O_CLOEXEC); err != nil {
			return err
		}
	}
	return nil
}
