package erofs

import (
	"crypto/sha256"
	"hash"
	"os"
)

// indexWriter writes the metadata area as it was placed.
type indexWriter struct {
	out  *output
	p    *placement
	hash hash.Hash // of all inodes and blocks written
	buf  []byte    // reused
}

func newIndexWriter(dst *os.File, p *placement) *indexWriter {
	return &indexWriter{out: newOutput(dst, p.start), p: p, hash: sha256.New()}
}

func (w *indexWriter) write(dirs []*inode) error {
	for _, i := range w.p.order {
		if err := w.inode(i); err != nil {
			return err
		}
	}
	if err := w.out.align(w.p.block); err != nil {
		return err
	}
	for _, i := range w.p.order {
		blocks, _ := w.p.split(i)
		if blocks == 0 {
			continue
		}
		b := w.content(i)
		if n := blocks * w.p.block; int64(len(b)) > n {
			b = b[:n]
		}
		if err := w.put(b); err != nil {
			return err
		}
		if err := w.out.align(w.p.block); err != nil {
			return err
		}
	}
	return w.out.flush()
}

func (w *indexWriter) put(b []byte) error {
	w.hash.Write(b)
	return w.out.write(b)
}

// content is all that the inode carries in the metadata area, valid until the next call.
func (w *indexWriter) content(i *inode) []byte {
	switch {
	case i.sparse != nil:
		return i.sparse.chunkTable(i.size)
	case i.is(modeSymlink):
		return []byte(i.target)
	}
	b := w.buf[:0]
	packDir(i.dir.sorted, int(w.p.block), func(run []dirent, _ int) {
		for int64(len(b))&(w.p.block-1) != 0 {
			b = append(b, 0)
		}
		b = appendRun(b, run)
	})
	w.buf = b
	return b
}

// inode writes struct erofs_inode_extended, the xattrs, and what is inline.
func (w *indexWriter) inode(i *inode) error {
	if err := w.out.seek(w.p.start + int64(i.nid)*slotSize); err != nil {
		return err
	}
	_, tail := w.p.split(i)
	layout := layoutPlain
	u := i.addr
	switch {
	case i.sparse != nil:
		layout, u = layoutChunks, uint32(i.sparse.chunkBits-w.p.bits)
	case tail > 0:
		layout = layoutInline
	case i.is(modeChar), i.is(modeBlock):
		u = i.rdev
	}
	var b [inodeSize]byte
	le.PutUint16(b[0:], uint16(formatExtended|layout<<formatLayoutBit))
	if i.xattrs != nil {
		// i_xattr_icount: the header counts as one, the rest in fours.
		le.PutUint16(b[2:], uint16((len(i.xattrs.body)-xattrHeadSize)/4+1))
	}
	le.PutUint16(b[4:], i.mode)
	le.PutUint64(b[8:], uint64(i.size))
	le.PutUint32(b[16:], u)
	le.PutUint32(b[20:], uint32(i.nid)) // i_ino, for 32-bit stat
	le.PutUint32(b[24:], i.uid)
	le.PutUint32(b[28:], i.gid)
	le.PutUint64(b[32:], uint64(i.mtime))
	le.PutUint32(b[40:], i.nsec)
	le.PutUint32(b[44:], i.nlink)
	if err := w.put(b[:]); err != nil {
		return err
	}
	if i.xattrs != nil {
		if err := w.put(i.xattrs.body); err != nil {
			return err
		}
	}
	if tail == 0 {
		return nil
	}
	c := w.content(i)
	return w.put(c[int64(len(c))-tail:])
}
