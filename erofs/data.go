package erofs

import (
	"fmt"
	"io"
	"os"
)

// inTar leaves the data of files where it is in the tar: the form TarIndex.
type inTar struct {
	charge func(n int) error
}

func (p inTar) place(i *inode, e *entry, src *source) error {
	i.size = e.size
	at := tarOffset + src.offset()
	switch {
	case e.sparse && len(e.segs) == 1 && e.segs[0].length == e.size: // all of it is there
		e.sparse = false
	case e.sparse && e.size > 0:
		for k := range e.segs {
			e.segs[k].physical = at
			at += e.segs[k].length
		}
		i.sparse = &sparseFile{segs: e.segs, chunkBits: chunkBits(e.segs, e.size)}
		if n := i.sparse.tableSize(i.size); n > 0 {
			if err := p.charge(int(n)); err != nil {
				return err
			}
		}
	}
	if !e.sparse && e.size > 0 {
		var err error
		if i.addr, err = blockAddr(at, tarIndexBits); err != nil {
			return err
		}
	}
	return src.each(e.packed, nil)
}

// inBlocks copies the data of files into blocks of the image: the form Full.
type inBlocks struct {
	out   *output
	holes int64 // bytes of them that sparse files may still add
}

func (p *inBlocks) place(i *inode, e *entry, src *source) (err error) {
	i.size = e.size
	if e.size == 0 {
		return src.each(e.packed, nil)
	}
	if p.holes -= e.size - e.packed; p.holes < 0 {
		return errHoles
	}
	start := p.out.pos()
	if i.addr, err = blockAddr(start, fullBits); err != nil {
		return err
	}
	if !e.sparse {
		err = src.each(e.packed, p.out.write)
	}
	for _, s := range e.segs {
		if err := p.out.seek(start + s.logical); err != nil {
			return err
		}
		if err := src.each(s.length, p.out.write); err != nil {
			return err
		}
	}
	if err != nil {
		return err
	}
	if err := p.out.seek(start + e.size); err != nil {
		return err
	}
	return p.out.align(1 << fullBits)
}

var errHoles = invalidf("sparse files are too long")

func blockAddr(off int64, bits uint8) (uint32, error) {
	if off>>bits >= nullAddr {
		return 0, invalidf("image is too long for %d-byte blocks", 1<<bits)
	}
	return uint32(off >> bits), nil
}

// expand lays the sparse files that cannot be addressed where they are out again behind the tar, holes included, and
// returns where that ends. They may take room bytes. Their data is read back from the image.
func expand(f *os.File, dirs []*inode, off, room int64) (int64, error) {
	buf := []byte(nil)
	for _, d := range dirs {
		for _, e := range d.dir.sorted {
			i := e.inode
			if i.sparse == nil || i.sparse.chunkBits != 0 {
				continue
			}
			off = (off + blockSize - 1) &^ (blockSize - 1)
			if room -= i.size; room < 0 {
				return 0, invalidf("entry %s: %s", quote(e.name), detail(errHoles))
			}
			var err error
			if i.addr, err = blockAddr(off, tarIndexBits); err != nil {
				return 0, err
			}
			if buf == nil {
				buf = make([]byte, bufferSize)
			}
			for _, s := range i.sparse.segs {
				from := io.NewSectionReader(f, s.physical, s.length)
				to := io.NewOffsetWriter(f, off+s.logical)
				// The bare Writer and Reader: with their ReadFrom and WriteTo, buf would go unused.
				if _, err := io.CopyBuffer(struct{ io.Writer }{to}, struct{ io.Reader }{from}, buf); err != nil {
					return 0, fmt.Errorf("expand sparse file: %w", err)
				}
			}
			off += i.size
			i.sparse = nil
		}
	}
	return off, nil
}
