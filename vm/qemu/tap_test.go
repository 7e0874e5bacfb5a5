package qemu

import (
	"errors"
	"os"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// TestOnThread: the first thread of the process never goes anywhere.
func TestOnThread(t *testing.T) {
	var all sync.WaitGroup
	for range 100 {
		all.Go(func() {
			_, err := onThread(func() (*os.File, error) {
				if unix.Gettid() == unix.Getpid() {
					return nil, errors.New("on the first thread")
				}
				return nil, nil
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
}
