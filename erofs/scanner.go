package erofs

import (
	"bytes"
	"errors"
	"io"
	"strings"
)

// maxExtra bounds one extended header: GNU long name, pax records.
const maxExtra = 1 << 20

// entry is one member of the archive with all that its extended headers say of it.
type entry struct {
	header
	nsec   uint32
	xattrs []xattr

	packed int64 // bytes of data in the tar; header.size is the file's size
	sparse bool
	segs   []segment // of a sparse file: where its data goes
}

// scanner yields the entries of a tar stream as Go's archive/tar, and so docker and containerd, understand it; it is
// stricter where that loses nothing.
type scanner struct {
	src  *source
	next entry // reused

	extra              []byte // buffer of extended headers
	pax                pax
	longName, longLink string
	pending            bool // an extended header waits for its entry
	segments           int  // read so far, of all files
}

// scan returns the next entry, valid until the next call, with its data next in src; io.EOF when the stream has been
// read to its end.
func (s *scanner) scan() (*entry, error) {
	s.reset()
	for {
		b, err := s.src.block()
		if err == io.EOF && s.pending {
			return nil, errTruncated
		}
		if err != nil {
			return nil, err
		}
		if isZero(b) {
			return nil, s.end()
		}
		h, err := parseHeader(b)
		if err != nil {
			return nil, err
		}
		switch h.typ {
		case typePax, typePaxGlobal, typeGNUName, typeGNULink:
			if err := s.extended(&h); err != nil {
				return nil, err
			}
		default:
			s.next = entry{header: h}
			if err := s.merge(&s.next); err != nil {
				if errors.Is(err, ErrInvalid) {
					err = invalidf("entry %s: %s", quote(s.next.name), detail(err))
				}
				return nil, err
			}
			return &s.next, nil
		}
	}
}

func (s *scanner) reset() {
	s.pax, s.longName, s.longLink, s.pending = pax{}, "", "", false
}

// end has read one zero block. A second one or the end of the stream must follow; after that anything goes, for
// archives are padded, and the layer's digest covers the padding.
func (s *scanner) end() error {
	if s.pending {
		return errTruncated
	}
	b, err := s.src.block()
	if err != nil {
		return err // io.EOF: one zero block at the end is taken
	}
	if !isZero(b) {
		return invalidf("a lone zero block inside the tar")
	}
	if err := s.src.drain(); err != nil {
		return err
	}
	return io.EOF
}

// extended reads one extended header for the entry to come.
func (s *scanner) extended(h *header) error {
	if h.size > maxExtra {
		return invalidf("an extended header of %d bytes", h.size)
	}
	var err error
	if s.extra, err = s.src.payload(s.extra[:0], h.size); err != nil {
		return err
	}
	s.pending = true
	switch h.typ {
	case typePax:
		return s.pax.parse(s.extra)
	case typePaxGlobal:
		// Checked and ignored, as docker and containerd do; with archive/tar it also ends what came before it.
		var ignored pax
		s.reset()
		return ignored.parse(s.extra)
	case typeGNUName:
		s.longName = cstring(s.extra)
	case typeGNULink:
		s.longLink = cstring(s.extra)
	}
	return nil
}

// merge applies the extended headers to e and reads its sparse map.
func (s *scanner) merge(e *entry) error {
	p := &s.pax
	// The name first: messages carry it.
	setString(&e.name, p.path, s.longName, p.sparseName)
	setString(&e.link, p.linkPath, s.longLink)
	if strings.IndexByte(e.name, 0) >= 0 || strings.IndexByte(e.link, 0) >= 0 {
		return invalidf("a NUL in the name")
	}
	if p.hasSize {
		e.size = p.size
	}
	if p.hasUID {
		e.uid = p.uid
	}
	if p.hasGID {
		e.gid = p.gid
	}
	if p.hasMtime {
		e.mtime, e.nsec = p.mtime, p.nsec
	}
	e.xattrs = sortXattrs(p.xattrs)
	if e.typ == typeRegOld {
		e.typ = typeReg
		if strings.HasSuffix(e.name, "/") {
			e.typ = typeDir
		}
	}
	if headerOnly(e.typ) {
		if e.size = 0; p.hasSparseMap {
			return invalidf("a sparse map on what is no file")
		}
		return nil
	}
	e.packed = e.size
	return s.sparse(e)
}

func setString(to *string, from ...string) {
	for _, v := range from {
		if v != "" {
			*to = v
		}
	}
}

// sparse finds out whether e is a sparse file and reads its map.
func (s *scanner) sparse(e *entry) (err error) {
	p := &s.pax
	switch {
	case e.typ == typeGNUSparse:
		e.typ, e.sparse = typeReg, true
		err = s.readOldSparse(e)
	case p.sparseMajor == "1" && p.sparseMinor == "0" && p.hasSparseSize:
		e.sparse, e.size = true, p.sparseSize
		err = s.readSparse10(e)
	case p.sparseMajor == "" && p.hasSparseMap && p.hasSparseSize:
		e.sparse, e.size, e.segs = true, p.sparseSize, p.sparseMap
		err = s.countSegments(len(e.segs), len(e.segs))
	case p.sparseMajor != "" || p.hasSparseMap:
		err = invalidf("an unknown sparse format")
	}
	if err == nil && e.sparse {
		e.segs, err = checkSparse(e.segs, e.size, e.packed)
	}
	return err
}

// countSegments bounds the segments of one file, total, and of the layer: more is the new ones.
func (s *scanner) countSegments(more, total int) error {
	s.segments += more
	if total > maxSegments || s.segments > 4*maxSegments {
		return invalidf("too many pieces of sparse files")
	}
	return nil
}

// readOldSparse decodes 4 pairs of numbers in the header and 21 in each block that follows it (GNU tar's
// struct oldgnu_header, struct sparse_header).
func (s *scanner) readOldSparse(e *entry) error {
	if e.gnuSparse == nil {
		return invalidf("a GNU sparse file in a tar that is not GNU's")
	}
	var f fields
	e.size = f.number(e.gnuSparse[97:109]) // realsize
	pairs, more := e.gnuSparse[:96], e.gnuSparse[96] != 0
	for {
		n := len(e.segs)
		for ; len(pairs) > 0 && pairs[0] != 0; pairs = pairs[24:] {
			e.segs = append(e.segs, segment{logical: f.number(pairs[:12]), length: f.number(pairs[12:24])})
		}
		if f.bad {
			return invalidf("bad sparse map")
		}
		if err := s.countSegments(len(e.segs)-n, len(e.segs)); err != nil || !more {
			return err
		}
		b, err := s.src.block()
		if err == io.EOF {
			return errTruncated
		} else if err != nil {
			return err
		}
		pairs, more = b[:504], b[504] != 0
	}
}

// readSparse10 decodes the map that precedes the data in format 1.0: decimal numbers, one a line, the count of pairs
// first, padded to a block.
func (s *scanner) readSparse10(e *entry) error {
	var f fields
	var line []byte
	numbers, want := []int64(nil), int64(1)
	for int64(len(numbers)) < want {
		if e.packed < blockSize {
			return invalidf("bad sparse map")
		}
		b, err := s.src.block()
		if err == io.EOF {
			return errTruncated
		} else if err != nil {
			return err
		}
		e.packed -= blockSize
		for int64(len(numbers)) < want {
			i := bytes.IndexByte(b, '\n')
			if i < 0 {
				line = append(line, b...)
				break
			}
			line = append(line, b[:i]...)
			v := f.decimal(string(line))
			if f.bad || v < 0 {
				return invalidf("bad sparse map")
			}
			if numbers = append(numbers, v); len(numbers) == 1 {
				if v > maxSegments {
					return invalidf("too many pieces of sparse files")
				}
				want = 1 + 2*v
			}
			line, b = line[:0], b[i+1:]
		}
		if len(line) > 20 {
			return invalidf("bad sparse map")
		}
	}
	for i := 1; i < len(numbers); i += 2 {
		e.segs = append(e.segs, segment{logical: numbers[i], length: numbers[i+1]})
	}
	return s.countSegments(len(e.segs), len(e.segs))
}
