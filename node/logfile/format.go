package logfile

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"time"
)

// MaxLine is the most output one record holds, bytes; a longer line is several records, as docker's json-file has it.
const MaxLine = 16 << 10

// Sizes of the format, bytes.
const (
	fileHeaderSize = 24
	headerSize     = 28
	trailerSize    = 4
	maxRecordSize  = headerSize + MaxLine + trailerSize
)

const fileMagic = "cradlog1"

// Flags of a record.
const (
	flagPartial   = 1 << iota // the record does not end its line
	flagContinues             // the record does not begin its line
	flagCommit                // the last record of its Append: offset counts from here
	knownFlags    = flagPartial | flagContinues | flagCommit
)

// markerStream is the stream of a record without output, which only sets the offset.
const markerStream = 0

// errTorn says that no whole record stands at a position.
var errTorn = errors.New("no whole record")

// entry is a record as it stands in a file.
type entry struct {
	nanos  int64
	offset uint64 // of the journal, after the Append the record is part of
	stream byte
	flags  byte
	data   []byte
}

func (e *entry) size() int64 { return int64(headerSize + len(e.data) + trailerSize) }

// begins reports whether the record is the first of a line.
func (e *entry) begins() bool { return e.stream != markerStream && e.flags&flagContinues == 0 }

func (e *entry) time() time.Time { return time.Unix(0, e.nanos) }

func castagnoli() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) }

// appendEntry encodes e. The length stands at both ends, so that a file can be read backwards.
func appendEntry(b []byte, e *entry) []byte {
	start := len(b)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(e.data)))
	b = binary.LittleEndian.AppendUint32(b, 0) // the checksum's place
	b = binary.LittleEndian.AppendUint64(b, uint64(e.nanos))
	b = binary.LittleEndian.AppendUint64(b, e.offset)
	b = append(b, e.stream, e.flags, 0, 0)
	b = append(b, e.data...)
	binary.LittleEndian.PutUint32(b[start+4:], crc32.Checksum(b[start+8:], castagnoli()))
	return binary.LittleEndian.AppendUint32(b, uint32(len(e.data)))
}

// decodeEntry reads the record at the start of b; its data aliases b. errTorn when there is no whole, sound one.
func decodeEntry(b []byte) (entry, error) {
	if len(b) < headerSize+trailerSize {
		return entry{}, errTorn
	}
	n := int(binary.LittleEndian.Uint32(b))
	if n > MaxLine || len(b) < headerSize+n+trailerSize {
		return entry{}, errTorn
	}
	end := headerSize + n
	if binary.LittleEndian.Uint32(b[end:]) != uint32(n) ||
		binary.LittleEndian.Uint32(b[4:]) != crc32.Checksum(b[8:end], castagnoli()) {
		return entry{}, errTorn
	}
	e := entry{
		nanos:  int64(binary.LittleEndian.Uint64(b[8:])),
		offset: binary.LittleEndian.Uint64(b[16:]),
		stream: b[24],
		flags:  b[25],
		data:   b[headerSize:end:end],
	}
	if e.stream >= streams || e.flags&^knownFlags != 0 {
		return entry{}, errTorn
	}
	return e, nil
}

// decodeLast reads the record that ends where b ends.
func decodeLast(b []byte) (entry, error) {
	if len(b) < headerSize+trailerSize {
		return entry{}, errTorn
	}
	n := int(binary.LittleEndian.Uint32(b[len(b)-trailerSize:]))
	if n > MaxLine || len(b) < headerSize+n+trailerSize {
		return entry{}, errTorn
	}
	return decodeEntry(b[len(b)-headerSize-n-trailerSize:])
}

// state is what a writer must know to go on: it stands at the head of every file, as of the file's beginning.
type state struct {
	offset uint64
	open   [streams]bool // the stream's last line has not ended
}

// streams is how many there are: marker, stdout, stderr.
const streams = 3

func (s *state) after(e *entry) {
	if e.flags&flagCommit != 0 {
		s.offset = e.offset
	}
	if e.stream == markerStream {
		// A new journal: its output begins on a new line.
		if e.offset == 0 {
			s.open = [streams]bool{}
		}
		return
	}
	s.open[e.stream] = e.flags&flagPartial != 0
}

func encodeFileHeader(s state) []byte {
	b := append(make([]byte, 0, fileHeaderSize), fileMagic...)
	b = binary.LittleEndian.AppendUint64(b, s.offset)
	var open uint32
	for i, o := range s.open {
		if o {
			open |= 1 << i
		}
	}
	b = binary.LittleEndian.AppendUint32(b, open)
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli()))
}

func decodeFileHeader(b []byte) (state, error) {
	var s state
	if len(b) < fileHeaderSize || string(b[:8]) != fileMagic ||
		binary.LittleEndian.Uint32(b[20:]) != crc32.Checksum(b[:20], castagnoli()) {
		return s, errTorn
	}
	s.offset = binary.LittleEndian.Uint64(b[8:])
	open := binary.LittleEndian.Uint32(b[16:])
	for i := range s.open {
		s.open[i] = open&(1<<i) != 0
	}
	return s, nil
}
