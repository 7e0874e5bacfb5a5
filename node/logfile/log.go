// Package logfile keeps a container's output on disk.
//
// # Format
//
// A log is a directory of files named by ascending 16-digit numbers, "0000000000000001.log"; the last one is written, the
// others are finished. The first one, and the directory, are made when there is something to say: most containers that are
// quick say nothing. A file is a header and records, all numbers little-endian:
//
//	header   "cradlog1", uint64 journal offset, uint32 streams whose line is open (bits), uint32 CRC-32C of those
//	record   uint32 length n, uint32 CRC-32C of what follows up to the output's end, int64 Unix nanoseconds,
//	         uint64 journal offset, byte stream, byte flags, 2 zero bytes, n bytes of output, uint32 length n
//
// A record holds at most one line, its newline included. A line longer than MaxLine, or that the process wrote in
// pieces, is several records: Partial says that the line goes on, Continues that it began earlier. 32 bytes of
// overhead a record; concatenated, the records' output is the process's, byte for byte.
//
// # Crashes
//
// One Append is one write. Its last record carries a commit flag and the journal offset after it; Open cuts the last
// file back to the last commit, so an Append is there whole or not at all, and Offset is where the agent's journal
// must be read on: nothing is lost and nothing doubled. What Append wrote survives the death of this process, so the
// agent's output may be acknowledged right after it. Sync is for the power's failing, which no agent survives either.
//
// # Rotation
//
// When the file in use has reached MaxSize a new one is begun, and the oldest goes when there are more than MaxFiles.
// The default is 5 files of 20 MiB, 100 MiB a container: docker's own default has no bound, and one chatty container then
// fills the host's disk.
package logfile

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Defaults of Options.
const (
	DefaultMaxSize  = 20 << 20
	DefaultMaxFiles = 5
)

// Sentinels, to be found with errors.Is.
var (
	ErrClosed  = errors.New("the log is closed")
	ErrCorrupt = errors.New("the log is damaged") // Read: what could be read was; the rest of a file was not
)

// Options of Open; zero values mean the defaults.
type Options struct {
	MaxSize  int64 // of one file, bytes; exceeded by one Append at most
	MaxFiles int   // kept, the one in use included
}

// Log is one container's log. All methods may be called from any goroutine, Append from one at a time for the order's
// sake.
type Log struct {
	dir      string
	maxSize  int64
	maxFiles int

	mu     sync.Mutex
	file   *os.File // nil before the first
	first  uint64   // number of the oldest file
	last   uint64   // number of the file in use
	size   int64    // of the file in use: what readers may read
	torn   bool     // there may be more in it than size, which is to be cut off before anything is appended
	state  state
	closed bool
	grown  chan struct{} // closed when size, last or closed changes; nil when nobody waits
	buf    []byte
}

// Open opens the log in dir and cuts a torn tail off. Where there is none, its first output makes it, in a directory that is
// there. A log is open for writing once.
func Open(dir string, o Options) (*Log, error) {
	l := &Log{dir: dir, maxSize: o.MaxSize, maxFiles: o.MaxFiles}
	if l.maxSize <= 0 {
		l.maxSize = DefaultMaxSize
	}
	if l.maxFiles <= 0 {
		l.maxFiles = DefaultMaxFiles
	}
	if err := l.recover(); err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	return l, nil
}

// recover continues the newest file that has a sound header. A newer one without is what a crash left of a rotation,
// or, when there is more in it, damage that is put aside.
func (l *Log) recover() error {
	for {
		numbers, err := list(l.dir)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		if len(numbers) == 0 {
			l.first = 1
			return nil
		}
		n := numbers[len(numbers)-1]
		f, s, size, err := openTail(l.path(n))
		if err == nil {
			l.file, l.state, l.size = f, s, size
			l.first, l.last = numbers[0], n
			return nil
		}
		if !errors.Is(err, errTorn) {
			return err
		}
		fi, err := os.Stat(l.path(n))
		if err != nil {
			return err
		}
		if fi.Size() <= fileHeaderSize {
			err = os.Remove(l.path(n))
		} else {
			err = os.Rename(l.path(n), l.path(n)+".damaged")
		}
		if err != nil {
			return err
		}
	}
}

// openTail opens a file for writing after its last commit. errTorn when its header is none.
func openTail(path string) (*os.File, state, int64, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_APPEND, 0)
	if err != nil {
		return nil, state{}, 0, err
	}
	fail := func(err error) (*os.File, state, int64, error) {
		f.Close()
		return nil, state{}, 0, err
	}
	head := make([]byte, fileHeaderSize)
	if _, err := io.ReadFull(f, head); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			err = errTorn
		}
		return fail(err)
	}
	committed, err := decodeFileHeader(head)
	if err != nil {
		return fail(err)
	}
	fi, err := f.Stat()
	if err != nil {
		return fail(err)
	}
	at, now := int64(fileHeaderSize), committed
	s := scanner{file: f, pos: at}
	for {
		e, err := s.next(fi.Size())
		if errors.Is(err, errTorn) || errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fail(err)
		}
		now.after(&e)
		if e.flags&flagCommit != 0 {
			at, committed = s.pos, now
		}
	}
	if at < fi.Size() {
		if err := f.Truncate(at); err != nil {
			return fail(err)
		}
	}
	return f, committed, at, nil
}

// begin makes file n the one in use. On error the one before stays.
func (l *Log) begin(n uint64) error {
	open := func() (*os.File, error) {
		return os.OpenFile(l.path(n), os.O_RDWR|os.O_APPEND|os.O_CREATE|os.O_EXCL, 0o600)
	}
	f, err := open()
	if n == 1 && errors.Is(err, os.ErrNotExist) {
		if err = os.Mkdir(l.dir, 0o700); err == nil {
			f, err = open()
		}
	}
	if err != nil {
		return err
	}
	if _, err := f.Write(encodeFileHeader(l.state)); err != nil {
		f.Close()
		os.Remove(f.Name())
		return err
	}
	if l.file != nil {
		l.file.Close()
	}
	l.file, l.last, l.size = f, n, fileHeaderSize
	return nil
}

// rotate begins the next file and removes those too many.
func (l *Log) rotate() error {
	if err := l.begin(l.last + 1); err != nil {
		return err
	}
	for l.last-l.first+1 > uint64(l.maxFiles) {
		if err := os.Remove(l.path(l.first)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		l.first++
	}
	return nil
}

// Offset is the agent's journal offset after the last Append: where its output must be read on.
func (l *Log) Offset() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.state.offset
}

// Append adds output of a stream (api.Stdout or api.Stderr) that came at a time, and the journal offset after it. All of
// it is kept or, on error, none. Errors: ErrClosed, the file system's.
func (l *Log) Append(stream byte, data []byte, at time.Time, nextOffset uint64) error {
	if stream == markerStream || stream >= streams {
		return fmt.Errorf("append to log: no stream %d", stream)
	}
	return l.append(stream, data, at, nextOffset)
}

// Restart says that the container's next process begins: its journal starts again at offset 0, its output on a new
// line. Errors: as Append.
func (l *Log) Restart(at time.Time) error { return l.RestartAt(at, 0) }

// RestartAt is Restart for a process whose journal is at an offset already.
func (l *Log) RestartAt(at time.Time, offset uint64) error {
	return l.append(markerStream, nil, at, offset)
}

func (l *Log) append(stream byte, data []byte, at time.Time, nextOffset uint64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return ErrClosed
	}
	if l.file == nil {
		if len(data) == 0 && nextOffset == 0 { // as it is without a word
			return nil
		}
		if err := l.begin(1); err != nil {
			return fmt.Errorf("begin log: %w", err)
		}
	}
	if l.torn {
		if err := l.file.Truncate(l.size); err != nil {
			return fmt.Errorf("append to log: %w", err)
		}
		l.torn = false
	}
	if l.size >= l.maxSize {
		if err := l.rotate(); err != nil {
			return fmt.Errorf("rotate log: %w", err)
		}
	}
	next := l.state
	l.buf = l.buf[:0]
	for first := true; first || len(data) > 0; first = false {
		e := entry{nanos: at.UnixNano(), offset: nextOffset, stream: stream}
		e.data, data = cutLine(data)
		if next.open[stream] {
			e.flags |= flagContinues
		}
		if len(e.data) == 0 {
			// Nothing was written: only the offset moves.
			e.stream, e.flags = markerStream, 0
		} else if e.data[len(e.data)-1] != '\n' {
			e.flags |= flagPartial
		}
		if len(data) == 0 {
			e.flags |= flagCommit
		}
		next.after(&e)
		l.buf = appendEntry(l.buf, &e)
	}
	if err := l.write(l.buf); err != nil {
		return fmt.Errorf("append to log: %w", err)
	}
	l.size += int64(len(l.buf))
	l.state = next
	if cap(l.buf) > 1<<20 {
		l.buf = nil
	}
	l.wake()
	return nil
}

// write adds to the file all of b or nothing. A part that was written, when the disk is full, readers do not see, and it is cut
// off again; at the latest before something else comes after it. l.mu is held.
func (l *Log) write(b []byte) error {
	n, err := l.file.Write(b)
	if err != nil && n > 0 {
		l.torn = l.file.Truncate(l.size) != nil
	}
	return err
}

// cutLine splits data after its first newline, or at MaxLine.
func cutLine(data []byte) (line, rest []byte) {
	n := min(len(data), MaxLine)
	if i := bytes.IndexByte(data[:n], '\n'); i >= 0 {
		n = i + 1
	}
	return data[:n], data[n:]
}

// Sync writes all that was appended through to the disk. Errors: ErrClosed, the disk's.
func (l *Log) Sync() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return ErrClosed
	}
	if l.file == nil {
		return nil
	}
	if err := l.file.Sync(); err != nil {
		return fmt.Errorf("sync log: %w", err)
	}
	return nil
}

// Close ends the log: nothing is appended any more, and who follows it ends after the last record. Reading goes on
// working. Idempotent.
func (l *Log) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.finish()
}

func (l *Log) finish() error {
	if l.closed {
		return nil
	}
	l.closed = true
	l.wake()
	if l.file == nil {
		return nil
	}
	return l.file.Close()
}

// wake tells waiting readers that there is something new. l.mu is held.
func (l *Log) wake() {
	if l.grown != nil {
		close(l.grown)
		l.grown = nil
	}
}

func (l *Log) path(n uint64) string { return filepath.Join(l.dir, fmt.Sprintf("%016d.log", n)) }

// list returns the numbers of the files in dir, ascending; the last unbroken run of them. Other files are not ours.
func list(dir string) ([]uint64, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var out []uint64
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), ".log")
		if !ok || len(name) != 16 || !e.Type().IsRegular() {
			continue
		}
		if n, err := strconv.ParseUint(name, 10, 63); err == nil && n > 0 {
			out = append(out, n)
		}
	}
	slices.Sort(out)
	for i := len(out) - 1; i > 0; i-- {
		if out[i-1] != out[i]-1 {
			return out[i:], nil
		}
	}
	return out, nil
}
