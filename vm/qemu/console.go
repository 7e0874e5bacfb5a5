package qemu

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
)

// consoleLimit is how much of the console's end is kept at least, in bytes; the file is at most twice that.
const consoleLimit = 128 << 10

const consoleName = "console.log"

// console keeps the end of what a guest prints in the bounded file Dir/console.log, which outlives VM and
// daemon.
//
// QEMU writes to a socket that this process reads: a socket without reader drops what is written, so a guest
// whose daemon is away neither waits nor fills the disk (a file would, a full pipe would block it, and a ring
// in QEMU's memory would be lost with the panic that one wants to read about).
type console struct {
	path string

	mu   sync.Mutex
	file *os.File
	size int64
}

// openConsole opens the file for more; what is in it stays.
func openConsole(dir string) (*console, error) {
	c := &console{path: filepath.Join(dir, consoleName)}
	f, err := os.OpenFile(c.path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	if c.size, err = f.Seek(0, io.SeekEnd); err != nil {
		f.Close()
		return nil, err
	}
	c.file = f
	return c, nil
}

// Write never fails: a console that cannot be kept must not stop the guest that prints.
func (c *console) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.size+int64(len(p)) > 2*consoleLimit {
		c.shorten()
	}
	n, _ := c.file.Write(p)
	c.size += int64(n)
	return len(p), nil
}

// shorten replaces the file by its own end, in one step so that a crash loses nothing.
func (c *console) shorten() {
	keep := c.tail(consoleLimit)
	next := c.path + ".new"
	f, err := os.OpenFile(next, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|os.O_APPEND, 0o600)
	if err == nil {
		if _, err = f.Write(keep); err == nil {
			err = os.Rename(next, c.path)
		}
		if err == nil {
			c.file.Close()
			c.file, c.size = f, int64(len(keep))
			return
		}
		f.Close()
		os.Remove(next)
	}
	// No room for a copy, presumably. The bound counts for more than the old text.
	c.file.Truncate(0)
	c.size = 0
}

// Tail returns the last bytes, max at most.
func (c *console) Tail(max int) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.tail(int64(max))
}

func (c *console) tail(max int64) []byte {
	f, err := os.Open(c.path)
	if err != nil {
		return nil
	}
	defer f.Close()
	max = min(max, c.size)
	if max <= 0 {
		return nil
	}
	b := make([]byte, max)
	n, _ := f.ReadAt(b, c.size-max)
	return b[:n]
}

// close ends the writing; Tail still works.
func (c *console) close() { c.file.Close() }

// quote is the console's tail as an error's last part, or nothing.
func (c *console) quote(max int) string {
	if tail := c.Tail(max); len(tail) > 0 {
		return fmt.Sprintf("; the console's end:\n%s", tail)
	}
	return ""
}
