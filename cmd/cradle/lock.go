package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	rootLockName = "lock"
	runLockName  = "run.lock"

	// lockPatience is how long a starting daemon waits for one that is just ending.
	lockPatience = 20 * time.Second
)

// lockPlaces makes this daemon the only one on c.Root and on c.Run: it ends what it finds there and does not know.
func lockPlaces(ctx context.Context, c daemonConfig) (unlock func(), err error) {
	root, err := lockDir(ctx, c.Root, rootLockName, c.Socket)
	if err != nil {
		return nil, err
	}
	run, err := lockDir(ctx, c.Run, runLockName, c.Socket)
	if err != nil {
		return nil, errors.Join(err, root.Close())
	}
	return func() {
		_ = run.Close()
		_ = root.Close()
	}, nil
}

// lockDir takes the lock of a directory for the daemon that is to listen at socket. The lock file says who holds it: a holder
// that answers is an error at once, one that is ending is waited for.
func lockDir(ctx context.Context, dir, name, socket string) (*os.File, error) {
	path := filepath.Join(dir, name)
	lock, err := tryLock(path)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		if holder, ok := lockHolder(path); ok {
			return nil, fmt.Errorf("another cradle daemon (%s) uses %s", holder, dir)
		}
		wait, cancel := context.WithTimeout(ctx, lockPatience)
		defer cancel()
		lock, err = waitLock(wait, path)
		if errors.Is(err, context.DeadlineExceeded) {
			err = fmt.Errorf("another cradle daemon uses %s and neither answers nor ends", dir)
		}
	}
	if err != nil {
		return nil, err
	}
	err = lock.Truncate(0)
	if err == nil {
		_, err = lock.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"+socket+"\n"), 0)
	}
	if err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return lock, nil
}

// lockHolder reads who wrote the lock file at path; ok only if that daemon answers at its socket.
func lockHolder(path string) (holder string, ok bool) {
	b, err := os.ReadFile(path)
	if err != nil {
		return "", false
	}
	pid, rest, _ := strings.Cut(string(b), "\n")
	socket := strings.TrimSpace(rest)
	if !filepath.IsAbs(socket) {
		return "", false
	}
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return "", false
	}
	_ = conn.Close()
	return fmt.Sprintf("pid %s, socket %s", pid, socket), true
}

// tryLock takes the file's lock at once or fails with EWOULDBLOCK. The lock goes with the returned file.
func tryLock(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	if err := flock(f, syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// waitLock takes the file's lock, waiting for it no longer than ctx. The lock goes with the returned file.
func waitLock(ctx context.Context, path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	locked := make(chan error, 1)
	go func() { locked <- flock(f, syscall.LOCK_EX) }()
	select {
	case err := <-locked:
		if err != nil {
			_ = f.Close()
			return nil, err
		}
		return f, nil
	case <-ctx.Done():
		// The wait cannot be called off; its goroutine lets go of the lock should it still get it.
		go func() {
			<-locked
			_ = f.Close()
		}()
		return nil, context.Cause(ctx)
	}
}

func flock(f *os.File, how int) error {
	for {
		err := syscall.Flock(int(f.Fd()), how)
		if err == nil {
			return nil
		}
		if err != syscall.EINTR {
			return fmt.Errorf("lock %s: %w", f.Name(), err)
		}
	}
}
