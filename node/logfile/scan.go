package logfile

import (
	"errors"
	"io"
	"os"
)

// window is how much of a file a reader holds, bytes; a whole record always fits.
const window = 64 << 10

// scanner reads the records of one file forwards, from pos on.
type scanner struct {
	file *os.File
	pos  int64  // of the next record
	buf  []byte // the file from pos on, as far as it is read
	mem  []byte
}

// next returns the record at pos and goes behind it. The file is read up to limit and no further. io.EOF at limit,
// errTorn when something else than a record stands there. The record is valid until the next call.
func (s *scanner) next(limit int64) (entry, error) {
	if s.pos >= limit {
		return entry{}, io.EOF
	}
	e, err := decodeEntry(s.buf)
	if err != nil {
		if err := s.fill(limit); err != nil {
			return entry{}, err
		}
		if e, err = decodeEntry(s.buf); err != nil {
			return entry{}, err
		}
	}
	s.pos += e.size()
	s.buf = s.buf[e.size():]
	return e, nil
}

// fill reads the window at pos.
func (s *scanner) fill(limit int64) error {
	if s.mem == nil {
		s.mem = make([]byte, window)
	}
	n, err := s.file.ReadAt(s.mem[:min(window, limit-s.pos)], s.pos)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	s.buf = s.mem[:n]
	return nil
}

// backScanner reads the records of one file backwards, from end on.
type backScanner struct {
	file *os.File
	end  int64  // of the record to be read next
	buf  []byte // the file up to end, as far as it is read
	mem  []byte
}

// prev returns the record before end and goes before it. io.EOF at the file's first record, errTorn when no record
// ends there.
func (s *backScanner) prev() (entry, error) {
	if s.end <= fileHeaderSize {
		return entry{}, io.EOF
	}
	e, err := decodeLast(s.buf)
	if err != nil {
		if err := s.fill(); err != nil {
			return entry{}, err
		}
		if e, err = decodeLast(s.buf); err != nil {
			return entry{}, err
		}
	}
	s.end -= e.size()
	s.buf = s.buf[:int64(len(s.buf))-e.size()]
	return e, nil
}

func (s *backScanner) fill() error {
	if s.mem == nil {
		s.mem = make([]byte, window)
	}
	from := max(fileHeaderSize, s.end-window)
	n, err := s.file.ReadAt(s.mem[:s.end-from], from)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	s.buf = s.mem[:n]
	return nil
}
