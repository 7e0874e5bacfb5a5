//go:build !amd64

package qemu

import "golang.org/x/sys/unix"

// copyFilter is not needed where nothing can be copied.
func copyFilter(int) []unix.SockFilter { return nil }

// parentFilter is not needed either.
func parentFilter(bool) func(int) []unix.SockFilter { return nil }
