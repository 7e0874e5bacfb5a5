package erofs

import (
	"bytes"
	"strconv"
	"strings"
)

// header is one tar header block, decoded: POSIX.1-1988 ustar, and GNU tar's variant of it.
type header struct {
	name, link   string
	typ          byte
	mode         int64
	uid, gid     int64
	size         int64
	mtime        int64
	major, minor int64

	gnuSparse []byte // old GNU sparse fields of the block: 4 × 24 bytes, isextended, realsize; valid until the next read
}

// Tar type flags.
const (
	typeReg       = '0'
	typeRegOld    = 0
	typeLink      = '1'
	typeSymlink   = '2'
	typeChar      = '3'
	typeBlock     = '4'
	typeDir       = '5'
	typeFIFO      = '6'
	typeCont      = '7'
	typePax       = 'x'
	typePaxGlobal = 'g'
	typeGNUName   = 'L'
	typeGNULink   = 'K'
	typeGNUSparse = 'S'
)

// headerOnly says that no data follows, whatever the size field says: archive/tar's rule, and so docker's.
func headerOnly(typ byte) bool { return typ >= typeLink && typ <= typeFIFO }

// parseHeader decodes a block that is not zero.
func parseHeader(b []byte) (header, error) {
	var p fields
	sum := p.octal(b[148:156])
	unsigned, signed := checksums(b)
	if p.bad || sum != unsigned && sum != signed {
		return header{}, invalidf("bad header checksum")
	}
	h := header{
		name:  cstring(b[0:100]),
		mode:  p.number(b[100:108]),
		uid:   p.number(b[108:116]),
		gid:   p.number(b[116:124]),
		size:  p.number(b[124:136]),
		mtime: p.number(b[136:148]),
		typ:   b[156],
		link:  cstring(b[157:257]),
	}
	prefix := ""
	switch magic := string(b[257:265]); {
	case strings.HasPrefix(magic, "ustar\x00") && string(b[508:512]) == "tar\x00": // star
		prefix = cstring(b[345:476])
	case strings.HasPrefix(magic, "ustar\x00"):
		prefix = cstring(b[345:500])
	case magic == "ustar  \x00":
		h.gnuSparse = b[386:495]
		prefix = misplacedPrefix(b)
	}
	if h.typ == typeChar || h.typ == typeBlock {
		h.major, h.minor = p.number(b[329:337]), p.number(b[337:345])
	}
	if prefix != "" {
		h.name = prefix + "/" + h.name
	}
	if p.bad || h.size < 0 {
		return header{}, invalidf("entry %s: bad number in header", quote(h.name))
	}
	return h, nil
}

// misplacedPrefix finds the prefix that Go before 1.8, and so old docker, wrote into GNU headers where GNU tar keeps
// access and change times: a field that is no number gives it away.
func misplacedPrefix(b []byte) string {
	var p fields
	for _, f := range [][]byte{b[345:357], b[357:369]} {
		if f[0] != 0 {
			p.number(f)
		}
	}
	if !p.bad {
		return ""
	}
	s := cstring(b[345:500])
	for i := range len(s) {
		if s[i] >= 0x80 {
			return ""
		}
	}
	return s
}

// checksums sums the block with the checksum field as spaces; old tars summed signed bytes.
func checksums(b []byte) (unsigned, signed int64) {
	for i, c := range b {
		if i >= 148 && i < 156 {
			c = ' '
		}
		unsigned += int64(c)
		signed += int64(int8(c))
	}
	return unsigned, signed
}

func cstring(b []byte) string {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	return string(b)
}

// fields decodes numbers and remembers whether one was bad.
type fields struct{ bad bool }

// number decodes an octal field or, when its first bit is set, a big-endian two's-complement one ("base-256").
func (p *fields) number(b []byte) int64 {
	if b[0]&0x80 == 0 {
		return p.octal(b)
	}
	neg := b[0]&0x40 != 0
	v := int64(b[0] & 0x3f)
	if neg {
		v |= ^int64(0x3f)
	}
	for _, c := range b[1:] {
		// The next byte must leave the sign alone.
		if v<<8>>8 != v {
			p.bad = true
			return 0
		}
		v = v<<8 | int64(c)
	}
	return v
}

func (p *fields) octal(b []byte) int64 {
	b = bytes.Trim(b, " \x00")
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	var v int64
	for _, c := range b {
		if c < '0' || c > '7' || v >= 1<<60 {
			p.bad = true
			return 0
		}
		v = v<<3 | int64(c-'0')
	}
	return v
}

// decimal decodes the numbers of pax records.
func (p *fields) decimal(s string) int64 {
	v, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		p.bad = true
	}
	return v
}
