package qemu

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"path"
)

// What a migration stream is made of (QEMU's migration/savevm.c and ram.c): numbers are big-endian.
const (
	streamMagic   = 0x5145564d
	streamVersion = 3

	sectionStart         = 1
	sectionPart          = 2
	sectionEnd           = 3
	sectionFull          = 4
	sectionConfiguration = 7
	sectionCommand       = 8
	sectionFooter        = 0x7e

	pageZero     = 0x02
	pageSizes    = 0x04
	pageWhole    = 0x08
	pageEnd      = 0x10
	pageContinue = 0x20

	pageSize = 4 << 10
	pageMask = pageSize - 1
)

// streamSplitter takes a VM's memory out of its migration stream. What is left is a stream with which a VM that has
// this memory already can be restored. The stream is a monitor's, so nothing in it is believed.
//
// It is that of a live migration: a setup section that lists the blocks of memory, others that carry pages, a page again
// each time that the guest has written to it, and at the end, of the guest that has stopped, all other devices.
type streamSplitter struct {
	in     *bufio.Reader
	memory io.WriterAt // of the guest: zeros before
	size   uint64      // of memory, in bytes
	dirty  []uint64    // a bit for each page that has been written to
	state  bytes.Buffer

	section  uint32 // the number of the one live section, of memory
	block    string // the block that pages come from
	complete bool   // memory is

	near func() error // to be called when little of the memory is left; nil: it has been
	left int64        // how many pages have not come yet, until then
}

var errStream = errors.New("QEMU's stream makes no sense")

// splitStream reads a stream to its end: the guest's memory, of that many bytes, goes to memory, the rest is returned. near,
// when not nil, is called once, before the last nearPages (of a small memory, the last half) are read for the first time.
func splitStream(r io.Reader, memory io.WriterAt, size int64, near func() error) (state []byte, err error) {
	pages := size / pageSize
	s := &streamSplitter{in: bufio.NewReaderSize(r, 256<<10), memory: memory, size: uint64(size), dirty: make([]uint64, pages/64+1)}
	s.near, s.left = near, pages-min(nearPages, pages/2)
	if err := s.split(); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	return s.state.Bytes(), nil
}

func (s *streamSplitter) split() error {
	head, err := s.keep(8)
	if err != nil {
		return err
	}
	if binary.BigEndian.Uint32(head) != streamMagic || binary.BigEndian.Uint32(head[4:]) != streamVersion {
		return fmt.Errorf("%w: it begins with %x", errStream, head)
	}
	for !s.complete {
		kind, err := s.in.ReadByte()
		if err != nil {
			return err
		}
		if err := s.one(kind); err != nil {
			return err
		}
	}
	// Devices: as they are.
	if _, err := io.Copy(&s.state, io.LimitReader(s.in, int64(maxState-s.state.Len())+1)); err != nil {
		return err
	}
	return s.bounded()
}

func (s *streamSplitter) bounded() error {
	if s.state.Len() > maxState {
		return fmt.Errorf("%w: more than %d bytes beside the memory", errStream, maxState)
	}
	return nil
}

// one takes one element of the stream.
func (s *streamSplitter) one(kind byte) error {
	switch kind {
	case sectionConfiguration: // the machine's name
		s.state.WriteByte(kind)
		n, err := s.keep(4)
		if err == nil {
			_, err = s.keepText(binary.BigEndian.Uint32(n))
		}
		return err
	case sectionCommand: // number, length and so many bytes
		s.state.WriteByte(kind)
		n, err := s.keep(4)
		if err == nil {
			_, err = s.keep(int(binary.BigEndian.Uint16(n[2:])))
		}
		return err
	case sectionStart, sectionPart, sectionEnd:
		return s.live(kind)
	}
	return fmt.Errorf("%w: element %d before all memory has come", errStream, kind)
}

// live takes a section of memory. It is kept only as far as there is something in it to be kept.
func (s *streamSplitter) live(kind byte) error {
	was := s.state.Len()
	s.state.WriteByte(kind)
	n, err := s.keep(4)
	if err != nil {
		return err
	}
	number := binary.BigEndian.Uint32(n)
	if kind == sectionStart {
		name, err := s.keepName()
		if err != nil {
			return err
		}
		if name != "ram" || s.section != 0 {
			return fmt.Errorf("%w: a section %q", errStream, name)
		}
		s.section = number
		if _, err := s.keep(8); err != nil { // instance and version
			return err
		}
	}
	if number != s.section || number == 0 {
		return fmt.Errorf("%w: section %d", errStream, number)
	}
	kept, err := s.records()
	if err != nil {
		return err
	}
	foot, err := s.keep(5)
	if err != nil {
		return err
	}
	if foot[0] != sectionFooter || binary.BigEndian.Uint32(foot[1:]) != number {
		return fmt.Errorf("%w: section %d ends with %x", errStream, number, foot)
	}
	if kind == sectionPart && !kept {
		s.state.Truncate(was)
	}
	s.complete = kind == sectionEnd
	return nil
}

// records takes what is in a section of memory; kept tells whether some of it was not the guest's memory.
func (s *streamSplitter) records() (kept bool, err error) {
	for {
		was := s.state.Len()
		b, err := s.keep(8)
		if err != nil {
			return kept, err
		}
		word := binary.BigEndian.Uint64(b)
		at := word &^ pageMask
		switch flags := word & pageMask; flags {
		case pageEnd:
			return kept, nil
		case pageSizes:
			kept = true
			if err := s.sizes(at); err != nil {
				return kept, err
			}
		case pageZero, pageWhole, pageZero | pageContinue, pageWhole | pageContinue:
			if flags&pageContinue == 0 {
				if s.block, err = s.keepName(); err != nil {
					return kept, err
				}
			}
			if path.Base(s.block) == memoryID {
				s.state.Truncate(was)
				err = s.page(at, flags&pageZero != 0)
			} else {
				kept = true
				_, err = s.keep(map[bool]int{true: 1, false: pageSize}[flags&pageZero != 0])
			}
			if err != nil {
				return kept, err
			}
		default:
			return kept, fmt.Errorf("%w: page flags %#x", errStream, flags)
		}
	}
}

// sizes takes the list of blocks, which together have total bytes.
func (s *streamSplitter) sizes(total uint64) error {
	found := false
	for total > 0 {
		name, err := s.keepName()
		if err != nil {
			return err
		}
		b, err := s.keep(8)
		if err != nil {
			return err
		}
		size := binary.BigEndian.Uint64(b)
		if path.Base(name) == memoryID {
			if size != s.size || found {
				return fmt.Errorf("%w: a memory of %d bytes", errStream, size)
			}
			found = true
		}
		if size == 0 || size > total {
			return fmt.Errorf("%w: blocks of memory larger than their sum", errStream)
		}
		total -= size
	}
	if !found {
		return fmt.Errorf("%w: no memory in it", errStream)
	}
	return nil
}

// page takes a page of the guest's memory.
func (s *streamSplitter) page(at uint64, zero bool) error {
	if at >= s.size || s.size-at < pageSize {
		return fmt.Errorf("%w: a page at %#x", errStream, at)
	}
	if s.near != nil {
		if s.left--; s.left <= 0 {
			if err := s.near(); err != nil {
				return err
			}
			s.near = nil
		}
	}
	bit := &s.dirty[at/pageSize/64]
	mask := uint64(1) << (at / pageSize % 64)
	if !zero {
		page, err := s.in.Peek(pageSize)
		if err != nil {
			return err
		}
		*bit |= mask
		if _, err := s.memory.WriteAt(page, int64(at)); err != nil {
			return err
		}
		_, err = s.in.Discard(pageSize)
		return err
	}
	fill, err := s.in.ReadByte()
	if err != nil {
		return err
	}
	if fill != 0 {
		return fmt.Errorf("%w: a page full of %#x", errStream, fill)
	}
	if *bit&mask != 0 { // else nobody has touched it, and it takes no memory
		_, err = s.memory.WriteAt(make([]byte, pageSize), int64(at))
	}
	return err
}

// keep reads n bytes that are kept. What it returns is good until the next call.
func (s *streamSplitter) keep(n int) ([]byte, error) {
	if err := s.bounded(); err != nil {
		return nil, err
	}
	s.state.Grow(n)
	b := s.state.AvailableBuffer()[:n]
	if _, err := io.ReadFull(s.in, b); err != nil {
		return nil, err
	}
	s.state.Write(b)
	return b, nil
}

// keepName reads a name with its length before it.
func (s *streamSplitter) keepName() (string, error) {
	n, err := s.keep(1)
	if err != nil {
		return "", err
	}
	return s.keepText(uint32(n[0]))
}

func (s *streamSplitter) keepText(n uint32) (string, error) {
	if n == 0 || n > 255 {
		return "", fmt.Errorf("%w: a name of %d bytes", errStream, n)
	}
	b, err := s.keep(int(n))
	return string(b), err
}
