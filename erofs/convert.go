package erofs

import (
	"crypto/sha256"
	"fmt"
	"io"
	"os"
)

const (
	tarIndexBits = 9  // 512-byte blocks: where tar puts data
	fullBits     = 12 // 4,096-byte blocks: the only ones before Linux 6.4 on x86
	// tarOffset is where the tar begins in a TarIndex image, and data in a Full one: behind superOffset and
	// superSize, on a page.
	tarOffset  = 4096
	imageAlign = 4096

	defaultMaxBytes   = 64 << 30
	defaultMaxEntries = 4_000_000
)

func fromTar(dst *os.File, tar io.Reader, o Options) (Info, error) {
	if o.MaxBytes <= 0 {
		o.MaxBytes = defaultMaxBytes
	}
	if o.MaxEntries <= 0 {
		o.MaxEntries = defaultMaxEntries
	}
	out := newOutput(dst, tarOffset)
	l := &layer{
		tree:   newTree(o.MaxEntries),
		xattrs: make(map[string]*xattrSet),
		max:    o.MaxEntries,
	}
	var src *source
	bits := uint8(fullBits)
	switch o.Form {
	case TarIndex:
		bits = tarIndexBits
		src = newSource(tar, o.MaxBytes, out.write)
		l.data = inTar{charge: l.charge}
	case Full:
		src = newSource(tar, o.MaxBytes, nil)
		l.data = &inBlocks{out: out, holes: o.MaxBytes}
	default:
		return Info{}, fmt.Errorf("unknown form %d", o.Form)
	}
	l.scan = &scanner{src: src}
	if err := l.read(); err != nil {
		return Info{}, err
	}
	if err := out.flush(); err != nil {
		return Info{}, err
	}
	info := Info{TarBytes: src.offset()}
	dirs, err := l.finish()
	if err != nil {
		return Info{}, err
	}
	end := out.pos()
	if o.Form == TarIndex {
		if end, err = expand(dst, dirs, end, o.MaxBytes); err != nil {
			return Info{}, err
		}
	}
	p := newPlacement(bits, end)
	if err := p.all(dirs); err != nil {
		return Info{}, err
	}
	w := newIndexWriter(dst, p)
	if err := w.write(dirs); err != nil {
		return Info{}, err
	}
	info.Entries = len(p.order)
	info.ImageBytes = (p.end + imageAlign - 1) &^ (imageAlign - 1)
	if err := dst.Truncate(info.ImageBytes); err != nil {
		return Info{}, fmt.Errorf("write image: %w", err)
	}
	return info, writeFront(dst, p, info, o.Form, w.uuid(src.crc, info.TarBytes))
}

// writeFront writes the superblock and, in a TarIndex image, the record of the tar, last: an image without them is
// no image.
func writeFront(dst *os.File, p *placement, info Info, form Form, uuid [16]byte) error {
	sb := superblock{
		blockBits: p.bits,
		rootNid:   uint16(p.order[0].nid),
		inodes:    uint64(len(p.order)),
		blocks:    uint32(info.ImageBytes >> p.bits),
		metaBlock: uint32(p.start >> p.bits),
		uuid:      uuid,
	}
	if p.chunks {
		sb.incompat |= incompatChunkedFile
	}
	front := make([]byte, superOffset)
	if form == TarIndex {
		copy(front, tarRecord(info.TarBytes))
	}
	front = append(front, sb.encode()...)
	if _, err := dst.WriteAt(front, 0); err != nil {
		return fmt.Errorf("write image: %w", err)
	}
	return nil
}

// uuid derives the volume's name from what is in it. Overlayfs tells lower layers apart by it, and does without some
// of its features where it is zero (ovl_lower_uuid_ok, fs/overlayfs/super.c).
func (w *indexWriter) uuid(crc uint32, n int64) (u [16]byte) {
	var b []byte
	b = le.AppendUint32(b, crc)
	b = le.AppendUint64(b, uint64(n))
	w.hash.Write(b)
	var sum [sha256.Size]byte
	copy(u[:], w.hash.Sum(sum[:0]))
	u[6] = u[6]&0x0f | 0x80 // version 8, RFC 9562: the maker's own
	u[8] = u[8]&0x3f | 0x80
	return u
}
