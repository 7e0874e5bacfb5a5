package erofs_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"strings"
)

// A reader of erofs images that shares nothing with the writer, and checks as it goes all that the kernel relies on.

var le = binary.LittleEndian

type image struct {
	b      []byte
	bits   uint
	bs     int64
	meta   int64
	root   uint64
	inodes map[uint64]*node
}

type node struct {
	nid      uint64
	mode     uint16
	uid, gid uint32
	nlink    uint32
	size     int64
	mtime    int64
	nsec     uint32
	rdev     uint32
	layout   int
	xattrs   map[string]string
	target   string

	addr   uint32
	inline int64 // offset of what follows inode and xattrs
	chunk  uint

	names, subdirs uint32 // counted by the walk
}

func (n *node) kind() uint16 { return n.mode & 0o170000 }

func bad(format string, a ...any) error { return fmt.Errorf(format, a...) }

// span is the part of the image, or an error.
func (m *image) span(off, n int64) ([]byte, error) {
	if off < 0 || n < 0 || off > int64(len(m.b)) || n > int64(len(m.b))-off {
		return nil, bad("offset %d+%d lies outside the image of %d", off, n, len(m.b))
	}
	return m.b[off : off+n], nil
}

// walkImage reads everything but the data of regular files: all paths ("" is the root) and their inodes.
func walkImage(b []byte) (*image, map[string]*node, error) {
	m := &image{b: b, inodes: map[uint64]*node{}}
	if len(b) < 4096 || len(b)%4096 != 0 {
		return nil, nil, bad("image of %d bytes", len(b))
	}
	sb := b[1024:]
	if le.Uint32(sb) != 0xE0F5E1E2 {
		return nil, nil, bad("bad magic")
	}
	m.bits = uint(sb[12])
	if m.bits != 9 && m.bits != 12 {
		return nil, nil, bad("block bits %d", m.bits)
	}
	m.bs = 1 << m.bits
	sum := append([]byte(nil), sb[:map[uint]int{9: 512, 12: 3072}[m.bits]]...)
	copy(sum[4:8], "\x00\x00\x00\x00")
	if got := ^crc32.Checksum(sum, crc32.MakeTable(crc32.Castagnoli)); got != le.Uint32(sb[4:]) {
		return nil, nil, bad("superblock checksum")
	}
	if int64(le.Uint32(sb[36:]))<<m.bits != int64(len(b)) {
		return nil, nil, bad("superblock counts %d blocks", le.Uint32(sb[36:]))
	}
	if f := le.Uint32(sb[80:]); f&^4 != 0 || f != 0 && m.bits == 12 {
		return nil, nil, bad("incompatible features %#x", f)
	}
	m.meta = int64(le.Uint32(sb[40:])) << m.bits
	m.root = uint64(le.Uint16(sb[14:]))
	paths := map[string]*node{}
	if err := m.walk(paths); err != nil {
		return nil, nil, err
	}
	if n := le.Uint64(sb[16:]); n != uint64(len(m.inodes)) {
		return nil, nil, bad("superblock counts %d inodes, there are %d", n, len(m.inodes))
	}
	for p, n := range paths {
		want := n.names
		if n.kind() == 0o040000 {
			want = 2 + n.subdirs
		}
		if n.nlink != want {
			return nil, nil, bad("%.100q: nlink %d, want %d", p, n.nlink, want)
		}
	}
	return m, paths, nil
}

func (m *image) walk(paths map[string]*node) error {
	root, err := m.inode(m.root)
	if err != nil {
		return err
	}
	type job struct {
		path        string
		dir, parent *node
	}
	paths[""] = root
	for todo := []job{{"", root, root}}; len(todo) > 0; {
		j := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		ents, err := m.readdir(j.dir)
		if err != nil {
			return bad("%.100q: %w", j.path, err)
		}
		dots := 0
		for _, e := range ents {
			if e.name == "." || e.name == ".." {
				want := map[string]uint64{".": j.dir.nid, "..": j.parent.nid}[e.name]
				if e.nid != want || e.typ != 2 {
					return bad("%.100q: %s is nid %d, want %d", j.path, e.name, e.nid, want)
				}
				dots++
				continue
			}
			p := strings.TrimPrefix(j.path+"/"+e.name, "/")
			n, err := m.inode(e.nid)
			if err != nil {
				return bad("%.100q: %w", p, err)
			}
			if e.typ != ftype(n.mode) {
				return bad("%.100q: entry says type %d, mode %o", p, e.typ, n.mode)
			}
			n.names++
			paths[p] = n
			if n.kind() == 0o040000 {
				if n.names > 1 {
					return bad("%.100q: a directory with two names", p)
				}
				j.dir.subdirs++
				todo = append(todo, job{p, n, j.dir})
			}
		}
		if dots != 2 {
			return bad("%.100q: lacks . or ..", j.path)
		}
	}
	return nil
}

func ftype(mode uint16) byte {
	return map[uint16]byte{0o100000: 1, 0o040000: 2, 0o020000: 3, 0o060000: 4, 0o010000: 5, 0o120000: 7}[mode&0o170000]
}

func (m *image) inode(nid uint64) (*node, error) {
	if n := m.inodes[nid]; n != nil {
		return n, nil
	}
	off := m.meta + int64(nid)*32
	b, err := m.span(off, 64)
	if err != nil {
		return nil, err
	}
	if off/m.bs != (off+63)/m.bs || nid == 0 {
		return nil, bad("nid %d lies across blocks", nid)
	}
	f := le.Uint16(b)
	n := &node{nid: nid, layout: int(f >> 1), mode: le.Uint16(b[4:]), size: int64(le.Uint64(b[8:])), addr: le.Uint32(b[16:]),
		uid: le.Uint32(b[24:]), gid: le.Uint32(b[28:]), mtime: int64(le.Uint64(b[32:])), nsec: le.Uint32(b[40:]), nlink: le.Uint32(b[44:])}
	if f&1 != 1 || n.size < 0 || n.nsec >= 1e9 || ftype(n.mode) == 0 {
		return nil, bad("nid %d: format %#x size %d mode %o", nid, f, n.size, n.mode)
	}
	n.inline = off + 64
	if c := int64(le.Uint16(b[2:])); c > 0 {
		if err := m.xattrs(n, 12+4*(c-1)); err != nil {
			return nil, bad("nid %d: %w", nid, err)
		}
	}
	switch n.kind() {
	case 0o020000, 0o060000:
		n.rdev = n.addr
	case 0o120000:
		t, err := m.data(n)
		if err != nil || len(t) == 0 {
			return nil, bad("nid %d: symlink of %d bytes: %v", nid, len(t), err)
		}
		n.target = string(t)
	}
	if n.layout == 4 {
		n.chunk = m.bits + uint(le.Uint16(b[16:])&0x1f)
	}
	m.inodes[nid] = n
	return n, nil
}

func (m *image) xattrs(n *node, size int64) error {
	b, err := m.span(n.inline, size)
	if err != nil {
		return err
	}
	n.inline += size
	n.xattrs = map[string]string{}
	if len(b) <= 12 || b[4] != 0 {
		return bad("xattr body of %d bytes", len(b))
	}
	for b = b[12:]; len(b) > 0; {
		nl, vl := int(b[0]), int(le.Uint16(b[2:]))
		step := (4 + nl + vl + 3) &^ 3
		if step > len(b) {
			return bad("xattr reaches out of its inode")
		}
		prefix := map[byte]string{1: "user.", 2: "system.posix_acl_access", 3: "system.posix_acl_default", 4: "trusted.", 6: "security."}[b[1]]
		if prefix == "" {
			return bad("xattr index %d", b[1])
		}
		name := prefix + string(b[4:4+nl])
		if _, twice := n.xattrs[name]; twice {
			return bad("xattr %q twice", name)
		}
		n.xattrs[name] = string(b[4+nl : 4+nl+vl])
		b = b[step:]
	}
	return nil
}

// data is the whole content. Only for what is known to be small.
func (m *image) data(n *node) ([]byte, error) {
	var out bytes.Buffer
	err := m.copyData(&out, n)
	return out.Bytes(), err
}

func (m *image) copyData(w io.Writer, n *node) error {
	switch n.layout {
	case 0:
		b, err := m.span(int64(n.addr)<<m.bits, n.size)
		if err == nil {
			_, err = w.Write(b)
		}
		return err
	case 2:
		tail := n.size % m.bs
		if tail == 0 || n.inline/m.bs != (n.inline+tail-1)/m.bs {
			return bad("inline data of %d bytes at %d lies across blocks", tail, n.inline)
		}
		head, err := m.span(int64(n.addr)<<m.bits, n.size-tail)
		if err != nil {
			return err
		}
		b, err := m.span(n.inline, tail)
		if err != nil {
			return err
		}
		_, err = w.Write(append(append([]byte(nil), head...), b...))
		return err
	case 4:
		return m.copyChunks(w, n)
	}
	return bad("layout %d", n.layout)
}

func (m *image) copyChunks(w io.Writer, n *node) error {
	for off, k := int64(0), int64(0); off < n.size; k++ {
		size := min(1<<n.chunk, n.size-off)
		e, err := m.span((n.inline+3)&^3+4*k, 4)
		if err != nil {
			return err
		}
		var b []byte
		if addr := le.Uint32(e); addr == 1<<32-1 {
			if size > 64<<20 {
				return errHuge
			}
			b = make([]byte, size)
		} else if b, err = m.span(int64(addr)<<m.bits, size); err != nil {
			return err
		}
		if _, err := w.Write(b); err != nil {
			return err
		}
		off += size
	}
	return nil
}

var errHuge = errors.New("a hole too big to expand in a test")

type ent struct {
	name string
	nid  uint64
	typ  byte
}

func (m *image) readdir(n *node) ([]ent, error) {
	data, err := m.data(n)
	if err != nil {
		return nil, err
	}
	var all []ent
	for len(data) > 0 {
		b := data[:min(int64(len(data)), m.bs)]
		data = data[len(b):]
		first := int(le.Uint16(b[8:]))
		if first == 0 || first%12 != 0 || first >= len(b) {
			return nil, bad("directory block begins names at %d", first)
		}
		for i := 0; i < first; i += 12 {
			from, to := int(le.Uint16(b[i+8:])), len(b)
			if i+12 < first {
				to = int(le.Uint16(b[i+20:]))
			}
			if from < first || to <= from || to > len(b) {
				return nil, bad("directory entry's name at %d to %d", from, to)
			}
			name := string(b[from:to])
			if i+12 == first {
				name, _, _ = strings.Cut(name, "\x00")
			}
			if len(name) == 0 || len(name) > 255 || strings.ContainsAny(name, "/\x00") {
				return nil, bad("directory entry %q", name)
			}
			if len(all) > 0 && all[len(all)-1].name >= name {
				return nil, bad("directory entries %q, %q out of order", all[len(all)-1].name, name)
			}
			all = append(all, ent{name, le.Uint64(b[i:]), b[i+10]})
		}
	}
	return all, nil
}
