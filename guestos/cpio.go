package guestos

import (
	"fmt"
	"io"
	"math"
)

// File type bits of a cpio header's mode field, as in stat(2).
const (
	modeDir  = 0o040000
	modeChar = 0o020000
	modeFile = 0o100000
)

// cpioWriter writes the "newc" flavour the kernel unpacks (Documentation/driver-api/early-userspace/buffer-format.rst).
// Owners and times are zero and inode numbers count up, so equal contents give equal bytes.
type cpioWriter struct {
	w     io.Writer
	inode uint32
	size  int64 // bytes written, for padding
	err   error // the first error; later writes do nothing
}

// dir adds a directory.
func (c *cpioWriter) dir(name string, perm uint32) {
	c.header(name, modeDir|perm, 2, 0, 0, 0)
}

// device adds a character device.
func (c *cpioWriter) device(name string, perm, major, minor uint32) {
	c.header(name, modeChar|perm, 1, 0, major, minor)
}

// file adds a regular file of exactly size bytes read from r.
func (c *cpioWriter) file(name string, perm uint32, size int64, r io.Reader) {
	if size < 0 || size > math.MaxUint32 {
		c.fail(fmt.Errorf("%s: %d bytes do not fit a cpio archive", name, size))
		return
	}
	c.header(name, modeFile|perm, 1, uint32(size), 0, 0)
	if c.err != nil {
		return
	}
	n, err := io.CopyN(c.w, r, size)
	c.size += n
	if err != nil {
		c.fail(fmt.Errorf("%s: %w", name, err))
		return
	}
	c.pad(4)
}

// close writes the trailer and reports the first error of all writes.
func (c *cpioWriter) close() error {
	c.inode = 0
	c.header("TRAILER!!!", 0, 1, 0, 0, 0)
	c.pad(512) // cpio's customary block
	return c.err
}

func (c *cpioWriter) header(name string, mode, links, size, major, minor uint32) {
	ino := c.inode
	c.inode++
	// magic ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
	c.write(fmt.Appendf(nil, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%s\x00",
		ino, mode, 0, 0, links, 0, size, 0, 0, major, minor, len(name)+1, 0, name))
	c.pad(4)
}

func (c *cpioWriter) pad(align int64) {
	if rest := c.size % align; rest != 0 {
		c.write(make([]byte, align-rest))
	}
}

func (c *cpioWriter) write(b []byte) {
	if c.err != nil {
		return
	}
	n, err := c.w.Write(b)
	c.size += int64(n)
	c.fail(err)
}

func (c *cpioWriter) fail(err error) {
	if c.err == nil {
		c.err = err
	}
}
