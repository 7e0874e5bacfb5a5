package main

import (
	"fmt"
	"sync"

	"golang.org/x/sys/unix"
)

// filling is memory that is held for the host to see it. It comes from the kernel page by page, and goes back to it at once.
type filling struct {
	mu     sync.Mutex
	memory []byte
}

// hold frees what was held before, and writes to each page of so many bytes.
func (f *filling) hold(bytes int64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.memory != nil {
		if err := unix.Munmap(f.memory); err != nil {
			return fmt.Errorf("free memory: %w", err)
		}
		f.memory = nil
	}
	if bytes == 0 {
		return nil
	}
	var err error
	if f.memory, err = unix.Mmap(-1, 0, int(bytes), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS); err != nil {
		return fmt.Errorf("take memory: %w", err)
	}
	for at := int64(0); at < bytes; at += 4096 {
		f.memory[at] = byte(at>>12) | 1
	}
	return nil
}
