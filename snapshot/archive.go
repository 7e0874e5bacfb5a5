package snapshot

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// A snapshot travels as a tar archive that anything reads and nothing has to buffer:
//
//	cradle-snapshot       the head, JSON: its owner's business
//	NAME/0000000000000000 what is in the part NAME from this offset on, hexadecimal; holes are left out
//	NAME/0000000000100000 …
//	NAME/0000000280000000 (empty) the end of the part is here
//	sha256                of everything before: each member's name, length and contents
//
// The sum finds damage, and what was put together from several archives. It is no signature: who made an archive, it does not say.
const (
	headName = "cradle-snapshot"
	sumName  = "sha256"
	// archiveRun is the most of a part that is in one member, bytes; archiveBlock is what offsets in files are multiples of.
	archiveRun   = 1 << 20
	archiveBlock = 4 << 10
)

// ErrArchive means that an archive is damaged, incomplete or not one.
var ErrArchive = errors.New("not a whole snapshot archive")

func badArchive(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrArchive, fmt.Sprintf(format, args...))
}

// ArchiveWriter writes an archive.
type ArchiveWriter struct {
	tw  *tar.Writer
	sum hash.Hash
}

// NewArchiveWriter begins an archive with its head, as JSON.
func NewArchiveWriter(w io.Writer, head any) (*ArchiveWriter, error) {
	b, err := json.Marshal(head)
	if err != nil {
		return nil, fmt.Errorf("write archive: %w", err)
	}
	if len(b) > MaxManifest {
		return nil, fmt.Errorf("write archive: a head of %d bytes", len(b))
	}
	a := &ArchiveWriter{tw: tar.NewWriter(w), sum: sha256.New()}
	return a, a.member(headName, b)
}

func (a *ArchiveWriter) member(name string, content []byte) error {
	hdr := tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o600, Size: int64(len(content)), ModTime: time.Unix(0, 0)}
	if err := a.tw.WriteHeader(&hdr); err != nil {
		return err
	}
	addMember(a.sum, name, content)
	_, err := a.tw.Write(content)
	return err
}

// addMember adds a member to the sum over all.
func addMember(sum hash.Hash, name string, content []byte) {
	fmt.Fprintf(sum, "%s\x00%d\x00", name, len(content))
	sum.Write(content)
}

func (a *ArchiveWriter) run(part string, at int64, content []byte) error {
	return a.member(fmt.Sprintf("%s/%016x", part, at), content)
}

// File writes a part from a file, without its zeros.
func (a *ArchiveWriter) File(ctx context.Context, part string, f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	size, buf := info.Size(), make([]byte, archiveRun)
	for at := int64(0); ; {
		if err := ctx.Err(); err != nil {
			return err
		}
		data, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) { // nothing but a hole is left
			break
		}
		if err != nil {
			return fmt.Errorf("read %s: %w", part, err)
		}
		at = data / archiveBlock * archiveBlock
		n, err := f.ReadAt(buf[:min(archiveRun, size-at)], at)
		if err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("read %s: %w", part, err)
		}
		if n == 0 {
			break
		}
		for from, to := range dataRuns(buf[:n]) {
			if err := a.run(part, at+int64(from), buf[from:to]); err != nil {
				return err
			}
		}
		at += int64(n)
	}
	return a.run(part, size, nil)
}

// dataRuns yields where the blocks that are not all zeros begin and end.
func dataRuns(b []byte) func(yield func(from, to int) bool) {
	var zeros [archiveBlock]byte
	return func(yield func(from, to int) bool) {
		from := -1
		for at := 0; at < len(b); at += archiveBlock {
			block := b[at:min(at+archiveBlock, len(b))]
			switch empty := bytes.Equal(block, zeros[:len(block)]); {
			case empty && from >= 0:
				if !yield(from, at) {
					return
				}
				from = -1
			case !empty && from < 0:
				from = at
			}
		}
		if from >= 0 {
			yield(from, len(b))
		}
	}
}

// Stream writes a part from what write says, whose length nobody knows before.
func (a *ArchiveWriter) Stream(part string, write func(io.Writer) error) error {
	s := streamWriter{a: a, part: part, buf: make([]byte, 0, archiveRun)}
	if err := write(&s); err != nil {
		return err
	}
	if err := s.flush(); err != nil {
		return err
	}
	return a.run(part, s.at, nil)
}

// streamWriter makes members of archiveRun bytes of what it is given.
type streamWriter struct {
	a    *ArchiveWriter
	part string
	at   int64 // of buf in the part
	buf  []byte
}

func (s *streamWriter) Write(p []byte) (written int, err error) {
	for len(p) > 0 {
		n := min(len(p), archiveRun-len(s.buf))
		s.buf, p, written = append(s.buf, p[:n]...), p[n:], written+n
		if len(s.buf) == archiveRun {
			if err := s.flush(); err != nil {
				return written, err
			}
		}
	}
	return written, nil
}

func (s *streamWriter) flush() error {
	if len(s.buf) == 0 {
		return nil
	}
	err := s.a.run(s.part, s.at, s.buf)
	s.at, s.buf = s.at+int64(len(s.buf)), s.buf[:0]
	return err
}

// Close ends the archive; without it none is whole.
func (a *ArchiveWriter) Close() error {
	if err := a.member(sumName, []byte(hex.EncodeToString(a.sum.Sum(nil)))); err != nil {
		return err
	}
	return a.tw.Close()
}

// ArchiveReader reads an archive, from anybody: its names are checked, its parts bounded, and nothing that it says leads anywhere.
type ArchiveReader struct {
	tr   *tar.Reader
	sum  hash.Hash
	buf  []byte
	part string // that is being read
	// The member that was read last, and belongs to part.
	at      int64
	content []byte
}

// partName is what a part may be called.
var partName = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[a-z][a-z0-9.]{0,31}$`) })

// NewArchiveReader reads the head into the value that head points to. Errors: ErrArchive, r's.
func NewArchiveReader(r io.Reader, head any) (*ArchiveReader, error) {
	a := &ArchiveReader{tr: tar.NewReader(r), sum: sha256.New()}
	name, content, err := a.member(MaxManifest)
	if err != nil {
		return nil, err
	}
	if name != headName {
		return nil, badArchive("it begins with %q", name)
	}
	if err := json.Unmarshal(content, head); err != nil {
		return nil, badArchive("its head: %v", err)
	}
	a.buf = make([]byte, archiveRun)
	return a, nil
}

// member reads a whole member of max bytes at most.
func (a *ArchiveReader) member(max int64) (name string, content []byte, err error) {
	hdr, err := a.tr.Next()
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "", nil, badArchive("it ends early")
	case errors.Is(err, tar.ErrHeader):
		return "", nil, badArchive("%v", err)
	case err != nil:
		return "", nil, err
	case hdr.Typeflag != tar.TypeReg:
		return "", nil, badArchive("%q is no file", hdr.Name)
	case hdr.Size > max:
		return "", nil, badArchive("%q has %d bytes", hdr.Name, hdr.Size)
	}
	if a.buf == nil || hdr.Size > int64(len(a.buf)) {
		content, err = io.ReadAll(io.LimitReader(a.tr, hdr.Size)) // takes what comes, not what is promised
	} else {
		content = a.buf[:hdr.Size]
		_, err = io.ReadFull(a.tr, content)
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || err == nil && int64(len(content)) != hdr.Size {
		return "", nil, badArchive("it ends early")
	}
	if err == nil && hdr.Name != sumName {
		addMember(a.sum, hdr.Name, content)
	}
	return hdr.Name, content, err
}

// Next goes to the next part, which File or Stream then reads. io.EOF at the end of an archive that is whole; ErrArchive.
func (a *ArchiveReader) Next() (part string, err error) {
	if a.part != "" {
		return "", fmt.Errorf("read archive: part %s was not read", a.part)
	}
	name, content, err := a.member(archiveRun)
	if err != nil {
		return "", err
	}
	if name == sumName {
		if string(content) != hex.EncodeToString(a.sum.Sum(nil)) {
			return "", badArchive("its sum is wrong")
		}
		return "", io.EOF
	}
	part, _, _ = strings.Cut(name, "/")
	if !partName().MatchString(part) {
		return "", badArchive("a member %q", name)
	}
	a.part = part
	return part, a.take(name, content, 0)
}

// take notes a member of the part, which must not begin before least.
func (a *ArchiveReader) take(name string, content []byte, least int64) error {
	digits, ours := strings.CutPrefix(name, a.part+"/")
	at, err := strconv.ParseInt(digits, 16, 64)
	if !ours || err != nil || len(digits) != 16 || at < least {
		return badArchive("a member %q of part %s", name, a.part)
	}
	a.at, a.content = at, content
	return nil
}

// advance reads the member after the one that take noted.
func (a *ArchiveReader) advance() error {
	least := a.at + int64(len(a.content))
	name, content, err := a.member(archiveRun)
	if err != nil {
		return err
	}
	return a.take(name, content, least)
}

// File writes the part to a new file, with holes where there are zeros, and syncs it. It has max bytes at most.
func (a *ArchiveReader) File(ctx context.Context, path string, max int64) (err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return badArchive("part %s is there twice", a.part)
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	for ; len(a.content) > 0; err = a.advance() {
		if err = errors.Join(err, ctx.Err()); err != nil {
			return err
		}
		if a.at%archiveBlock != 0 || a.at > max-int64(len(a.content)) {
			return badArchive("%d bytes at %d of part %s, which may have %d", len(a.content), a.at, a.part, max)
		}
		for from, to := range dataRuns(a.content) {
			if _, err := f.WriteAt(a.content[from:to], a.at+int64(from)); err != nil {
				return err
			}
		}
	}
	if err != nil {
		return err
	}
	if a.at > max {
		return badArchive("part %s has %d bytes, and may have %d", a.part, a.at, max)
	}
	a.part = ""
	if err := f.Truncate(a.at); err != nil {
		return err
	}
	return f.Sync()
}

// Stream gives the part to read, which is without holes. What read leaves of it is passed over.
func (a *ArchiveReader) Stream(read func(io.Reader) error) error {
	s := streamReader{a: a}
	if err := read(&s); err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, &s); err != nil {
		return err
	}
	a.part = ""
	return nil
}

// streamReader reads a part that must be contiguous.
type streamReader struct {
	a  *ArchiveReader
	at int64 // of what is read next
}

func (s *streamReader) Read(p []byte) (int, error) {
	for {
		a := s.a
		if end := a.at + int64(len(a.content)); s.at > end || s.at < a.at {
			return 0, badArchive("part %s has a hole at %d", a.part, s.at)
		} else if s.at < end {
			n := copy(p, a.content[s.at-a.at:])
			s.at += int64(n)
			return n, nil
		}
		if len(a.content) == 0 {
			return 0, io.EOF
		}
		if err := a.advance(); err != nil {
			return 0, err
		}
	}
}
