package erofs

import (
	"bytes"
	"strconv"
	"strings"
)

// pax is what the extended header before an entry says of it. Keywords that no Linux file system keeps are skipped.
type pax struct {
	path, linkPath     string
	size, uid, gid     int64
	hasSize            bool
	hasUID, hasGID     bool
	hasMtime           bool
	mtime              int64
	nsec               uint32
	xattrs             []xattr
	sparseMajor        string
	sparseMinor        string
	sparseName         string
	sparseSize         int64
	hasSparseSize      bool
	sparseMap          []segment
	hasSparseMap       bool
	wantSparseNumBytes bool // format 0.0: an offset was read, its length comes next
}

// parse reads the records "LENGTH KEY=VALUE\n" of an extended header.
func (p *pax) parse(b []byte) error {
	*p = pax{}
	for len(b) > 0 {
		sp := bytes.IndexByte(b, ' ')
		if sp <= 0 || sp > 9 {
			return invalidf("bad pax record")
		}
		n, err := strconv.ParseUint(string(b[:sp]), 10, 31)
		if err != nil || n > uint64(len(b)) || int(n) < sp+3 || b[n-1] != '\n' {
			return invalidf("bad pax record")
		}
		key, value, ok := bytes.Cut(b[sp+1:n-1], []byte{'='})
		if !ok || len(key) == 0 || bytes.IndexByte(key, 0) >= 0 {
			return invalidf("bad pax record")
		}
		if err := p.record(string(key), value); err != nil {
			return err
		}
		b = b[n:]
	}
	if p.wantSparseNumBytes {
		return invalidf("bad pax sparse map")
	}
	return nil
}

func (p *pax) record(key string, value []byte) error {
	if name, ok := strings.CutPrefix(key, "SCHILY.xattr."); ok {
		x, keep, err := newXattr(name, value)
		if keep && err == nil {
			p.xattrs = append(p.xattrs, x)
		}
		return err
	}
	if len(value) == 0 && !strings.HasPrefix(key, "GNU.sparse.") {
		return nil // POSIX: as if the record were not there; what the ustar header says holds
	}
	var f fields
	switch v := string(value); key {
	case "path":
		p.path = v
	case "linkpath":
		p.linkPath = v
	case "size":
		p.size, p.hasSize = f.decimal(v), true
		f.bad = f.bad || p.size < 0
	case "uid":
		p.uid, p.hasUID = f.decimal(v), true
	case "gid":
		p.gid, p.hasGID = f.decimal(v), true
	case "mtime":
		p.mtime, p.nsec = f.time(v)
		p.hasMtime = true
	default:
		if strings.HasPrefix(key, "GNU.sparse.") {
			return p.sparseRecord(key[len("GNU.sparse."):], v)
		}
	}
	if f.bad {
		return invalidf("bad pax record %s", quote(key))
	}
	return nil
}

// sparseRecord keeps the keywords of GNU tar's pax sparse formats 0.0 (offset, numbytes), 0.1 (map) and 1.0.
func (p *pax) sparseRecord(key, v string) error {
	var f fields
	switch key {
	case "major":
		p.sparseMajor = v
	case "minor":
		p.sparseMinor = v
	case "name":
		p.sparseName = v
	case "size", "realsize":
		p.sparseSize, p.hasSparseSize = f.decimal(v), true
	case "offset":
		f.bad = p.wantSparseNumBytes
		p.sparseMap = append(p.sparseMap, segment{logical: f.decimal(v)})
		p.wantSparseNumBytes, p.hasSparseMap = true, true
	case "numbytes":
		if !p.wantSparseNumBytes {
			return invalidf("bad pax sparse map")
		}
		p.sparseMap[len(p.sparseMap)-1].length = f.decimal(v)
		p.wantSparseNumBytes = false
	case "map":
		p.sparseMap, p.hasSparseMap = p.sparseMap[:0], true
		for v != "" {
			var off, n string
			off, v, _ = strings.Cut(v, ",")
			n, v, _ = strings.Cut(v, ",")
			p.sparseMap = append(p.sparseMap, segment{logical: f.decimal(off), length: f.decimal(n)})
		}
	}
	if f.bad {
		return invalidf("bad pax record %s", quote("GNU.sparse."+key))
	}
	return nil
}

// time decodes "[-]SECONDS[.FRACTION]"; what is finer than a nanosecond is cut.
func (p *fields) time(s string) (sec int64, nsec uint32) {
	whole, frac, _ := strings.Cut(s, ".")
	sec = p.decimal(whole)
	for i := range len(frac) {
		if frac[i] < '0' || frac[i] > '9' {
			p.bad = true
		}
	}
	if p.bad {
		return 0, 0
	}
	frac = (frac + "000000000")[:9]
	n, _ := strconv.ParseUint(frac, 10, 32)
	if n > 0 && whole[0] == '-' {
		if sec == -1<<63 {
			p.bad = true
			return 0, 0
		}
		return sec - 1, uint32(1e9 - n)
	}
	return sec, uint32(n)
}
