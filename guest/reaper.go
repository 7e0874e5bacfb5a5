package guest

import (
	"os"
	"os/signal"
	"sync"

	"golang.org/x/sys/unix"
)

// reaper is the only one in the agent that waits for children: as PID 1 it inherits orphans, and a wait of anyone
// else could take away an exit that belongs to a container.
type reaper struct {
	mu      sync.Mutex
	waiters map[int]func(unix.WaitStatus)
	// A child may be gone before the launch that made it has told its number. While launches are under way,
	// exits that nobody waits for are kept.
	launches int
	early    map[int]unix.WaitStatus
}

func newReaper() *reaper {
	return &reaper{waiters: map[int]func(unix.WaitStatus){}, early: map[int]unix.WaitStatus{}}
}

// run reaps until stop is closed.
func (r *reaper) run(stop <-chan struct{}) {
	chld := make(chan os.Signal, 1)
	signal.Notify(chld, unix.SIGCHLD)
	defer signal.Stop(chld)
	for {
		r.reap()
		select {
		case <-chld:
		case <-stop:
			return
		}
	}
}

// reap collects every child that has exited.
func (r *reaper) reap() {
	for {
		var ws unix.WaitStatus
		pid, err := unix.Wait4(-1, &ws, unix.WNOHANG|unix.WALL, nil)
		if err == unix.EINTR {
			continue
		}
		if pid <= 0 {
			return
		}
		r.mu.Lock()
		done := r.waiters[pid]
		delete(r.waiters, pid)
		if done == nil && r.launches > 0 {
			r.early[pid] = ws
		}
		r.mu.Unlock()
		if done != nil {
			done(ws)
		}
	}
}

// launch calls start, which makes a child and returns its pid, and has done called once when that child exits.
func (r *reaper) launch(start func() (pid int, err error), done func(unix.WaitStatus)) error {
	r.mu.Lock()
	r.launches++
	r.mu.Unlock()
	pid, err := start()
	r.mu.Lock()
	ws, gone := r.early[pid]
	if err == nil {
		if gone {
			delete(r.early, pid)
		} else {
			r.waiters[pid] = done
		}
	}
	if r.launches--; r.launches == 0 {
		clear(r.early)
	}
	r.mu.Unlock()
	if err == nil && gone {
		done(ws)
	}
	return err
}
