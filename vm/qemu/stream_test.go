package qemu

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"testing"
)

// testMemory is a guest's memory.
type testMemory []byte

func (m testMemory) WriteAt(b []byte, at int64) (int, error) { return copy(m[at:], b), nil }

// testStream makes a stream of a guest with two pages of memory and a block of another kind.
type testStream struct{ bytes.Buffer }

func (s *testStream) u32(n ...uint32) *testStream {
	for _, n := range n {
		s.Write(binary.BigEndian.AppendUint32(nil, n))
	}
	return s
}

func (s *testStream) u64(n uint64) *testStream {
	s.Write(binary.BigEndian.AppendUint64(nil, n))
	return s
}

func (s *testStream) text(t string) *testStream {
	s.WriteString(t)
	return s
}

func (s *testStream) page(at, flags uint64, block string, fill byte) *testStream {
	s.u64(at | flags)
	if block != "" {
		s.text(string(rune(len(block))) + block)
	}
	n := pageSize
	if flags&pageZero != 0 {
		n = 1
	}
	s.Write(bytes.Repeat([]byte{fill}, n))
	return s
}

func (s *testStream) foot() *testStream { return s.u64(pageEnd).text("\x7e").u32(2) }

// setup is everything before the pages.
func (s *testStream) setup(memory uint64) *testStream {
	s.u32(streamMagic, streamVersion).text("\x07").u32(7).text("microvm")
	s.text("\x01").u32(2).text("\x03ram").u32(0, 4)
	s.u64(memory + pageSize | pageSizes).text("\x04ram0").u64(memory).text("\x03rom").u64(pageSize)
	return s.foot()
}

func TestSplitStream(t *testing.T) {
	const devices = "\x04 all the devices \x00"
	var in, want testStream
	in.setup(2 * pageSize)
	want.setup(2 * pageSize)
	in.text("\x02").u32(2).page(0, pageWhole, "ram0", 'a').page(pageSize, pageZero|pageContinue, "", 0).foot()
	in.text("\x02").u32(2).page(0, pageWhole, "rom", 'r').page(pageSize, pageWhole, "ram0", 'b').foot()
	want.text("\x02").u32(2).page(0, pageWhole, "rom", 'r').foot()
	in.text("\x03").u32(2).page(0, pageZero|pageContinue, "", 0).foot().text(devices)
	want.text("\x03").u32(2).foot().text(devices)
	memory := make(testMemory, 2*pageSize)
	state, err := splitStream(bytes.NewReader(in.Bytes()), memory, int64(len(memory)), nil)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(state, want.Bytes()) {
		t.Errorf("the rest is\n%q, want\n%q", state, want.Bytes())
	}
	if !bytes.Equal(memory, append(make([]byte, pageSize), bytes.Repeat([]byte{'b'}, pageSize)...)) {
		t.Error("the memory is not what came last")
	}
	for n := range in.Len() - len(devices) {
		if _, err := splitStream(bytes.NewReader(in.Bytes()[:n]), make(testMemory, 2*pageSize), 2*pageSize, nil); err == nil {
			t.Fatalf("a stream that ends after %d bytes is whole", n)
		}
	}
}

// The reader is held up once, before the second half of a small memory is there, and ends with what that fails with.
func TestSplitStreamNear(t *testing.T) {
	var in testStream
	in.setup(4 * pageSize).text("\x02").u32(2)
	for i := range uint64(4) {
		in.page(i*pageSize, pageWhole, "ram0", byte('a'+i))
	}
	in.foot().text("\x02").u32(2).page(0, pageWhole, "ram0", 'e').foot().text("\x03").u32(2).foot().text("devices")
	memory, calls := make(testMemory, 4*pageSize), 0
	if _, err := splitStream(bytes.NewReader(in.Bytes()), memory, 4*pageSize, func() error {
		if calls++; memory[0] != 'a' || memory[3*pageSize] != 0 {
			t.Errorf("called with %q and %q in the first and the last page", memory[0], memory[3*pageSize])
		}
		return nil
	}); err != nil || calls != 1 || memory[0] != 'e' {
		t.Errorf("%d calls, %v", calls, err)
	}
	refuses := errors.New("refused")
	if _, err := splitStream(bytes.NewReader(in.Bytes()), memory, 4*pageSize, func() error { return refuses }); !errors.Is(err, refuses) {
		t.Errorf("refused: %v", err)
	}
}

func TestSplitStreamRefuses(t *testing.T) {
	start := func() *testStream { return new(testStream).setup(2 * pageSize) }
	part := func() *testStream { return start().text("\x02").u32(2) }
	for name, s := range map[string]*testStream{
		"no stream":       new(testStream).text(strings.Repeat("no", 30)),
		"other version":   new(testStream).u32(streamMagic, 2),
		"other memory":    new(testStream).setup(3 * pageSize),
		"devices early":   start().text("\x04 devices"),
		"other section":   start().text("\x01").u32(3).text("\x05block").u32(0, 1),
		"section of none": start().text("\x02").u32(9).foot(),
		"memory again":    start().text("\x01").u32(2).text("\x03ram").u32(0, 4),
		"page beyond":     part().page(2*pageSize, pageWhole, "ram0", 1),
		"page far beyond": part().page(^uint64(pageMask), pageWhole, "ram0", 1),
		"page of ones":    part().page(0, pageZero, "ram0", 1),
		"odd flags":       part().page(0, 0x40, "ram0", 1),
		"no name":         part().u64(pageWhole).text("\x00"),
		"other footer":    part().u64(pageEnd).text("\x7e").u32(3),
		"no footer":       part().u64(pageEnd).text("\x00").u32(2),
		"endless blocks":  new(testStream).u32(streamMagic, streamVersion).text("\x01").u32(2).text("\x03ram").u32(0, 4).u64(pageSize | pageSizes).text("\x01x").u64(1 << 60),
	} {
		_, err := splitStream(io.MultiReader(bytes.NewReader(s.Bytes()), strings.NewReader(strings.Repeat("\x00", 9000))), make(testMemory, 2*pageSize), 2*pageSize, nil)
		if !errors.Is(err, errStream) {
			t.Errorf("%s: %v, want %v", name, err, errStream)
		}
	}
	// What is kept is bounded.
	s := part()
	for s.Len() < maxState+2*pageSize {
		s.page(0, pageWhole, "rom", 1)
	}
	if _, err := splitStream(bytes.NewReader(s.Bytes()), make(testMemory, 2*pageSize), 2*pageSize, nil); !errors.Is(err, errStream) {
		t.Errorf("too much beside the memory: %v", err)
	}
}

func FuzzSplitStream(f *testing.F) {
	f.Add(new(testStream).setup(2 * pageSize).text("\x03").u32(2).foot().text("devices").Bytes())
	f.Fuzz(func(t *testing.T, b []byte) {
		splitStream(bytes.NewReader(b), make(testMemory, 2*pageSize), 2*pageSize, nil)
	})
}
