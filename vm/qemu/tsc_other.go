//go:build !amd64

package qemu

// tscKHz is unknown (0) where the host has no time stamp counter.
func tscKHz() int { return 0 }
