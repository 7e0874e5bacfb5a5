package seccomp

import (
	"encoding/binary"
	"fmt"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// maxInstructions is the kernel's BPF_MAXINSNS.
const maxInstructions = 4096

// Instructions that a filter needs (linux/bpf_common.h).
const (
	opLoad        = 0x20 // BPF_LD | BPF_W | BPF_ABS
	opAnd         = 0x54 // BPF_ALU | BPF_AND | BPF_K
	opJump        = 0x05 // BPF_JMP | BPF_JA
	opJumpEqual   = 0x15 // BPF_JMP | BPF_JEQ | BPF_K
	opJumpGreater = 0x25 // BPF_JMP | BPF_JGT | BPF_K
	opJumpNotLess = 0x35 // BPF_JMP | BPF_JGE | BPF_K
	opReturn      = 0x06 // BPF_RET | BPF_K
)

// Offsets in struct seccomp_data.
const (
	offsetNumber = 0
	offsetArch   = 4
	offsetArgs   = 16
)

type instruction struct {
	op     uint16
	jt, jf uint8
	k      uint32
}

// label is a place in a program: how many instructions there are from it to the end.
type label int

// assembler builds a program from its last instruction to its first, so that all jumps, which go forwards only, have
// targets that exist already, and a jump's distance is known when it is made.
type assembler struct {
	code []instruction // reversed
	rets map[uint32]label
}

func (a *assembler) emit(i instruction) label {
	a.code = append(a.code, i)
	return label(len(a.code))
}

// distance is what a jump emitted next would skip to get to l.
func (a *assembler) distance(l label) int { return len(a.code) - int(l) }

// goTo makes the next instruction emitted be followed by l.
func (a *assembler) goTo(l label) {
	if d := a.distance(l); d > 0 {
		a.emit(instruction{op: opJump, k: uint32(d)})
	}
}

// near returns a place within a conditional jump's reach, 255, that leads to l. One place is kept free for the jump's other
// target, which may need an instruction of its own in between.
func (a *assembler) near(l label) label {
	if a.distance(l) < 255 {
		return l
	}
	return a.emit(instruction{op: opJump, k: uint32(a.distance(l))})
}

// ret is a place that returns value; the last one made, where that is near.
func (a *assembler) ret(value uint32) label {
	if l, ok := a.rets[value]; ok && a.distance(l) < 128 {
		return l
	}
	if a.rets == nil {
		a.rets = map[uint32]label{}
	}
	l := a.emit(instruction{op: opReturn, k: value})
	a.rets[value] = l
	return l
}

// load loads a word of seccomp_data and goes on at l.
func (a *assembler) load(offset uint32, l label) label {
	a.goTo(l)
	return a.emit(instruction{op: opLoad, k: offset})
}

// jump compares the word loaded with k.
func (a *assembler) jump(op uint16, k uint32, yes, no label) label {
	if yes == no {
		return yes
	}
	yes = a.near(yes)
	no = a.near(no)
	return a.emit(instruction{op: op, jt: uint8(a.distance(yes)), jf: uint8(a.distance(no)), k: k})
}

// decide tries the span's rules in turn.
func (a *assembler) decide(s span) label {
	last := len(s.rules) - 1
	next := a.ret(s.rules[last].ret)
	for i := last - 1; i >= 0; i-- {
		match := a.ret(s.rules[i].ret)
		for j := len(s.rules[i].args) - 1; j >= 0; j-- {
			match = a.compare(s.rules[i].args[j], s.wide, match, next)
		}
		next = match
	}
	return next
}

// compare tests one argument, of a wide ABI the high half first.
func (a *assembler) compare(arg specs.LinuxSeccompArg, wide bool, yes, no label) label {
	low, high := uint32(arg.Value), uint32(arg.Value>>32)
	offset := uint32(offsetArgs + 8*arg.Index)
	both := func(op uint16, yes, no label) label {
		// The high halves decide unless they are equal; for equality nothing but equal will do.
		l := a.load(offset, a.jump(op, low, yes, no))
		if !wide {
			return l
		}
		l = a.jump(opJumpEqual, high, l, no)
		if op != opJumpEqual {
			l = a.jump(opJumpGreater, high, yes, l)
		}
		return a.load(offset+4, l)
	}
	switch arg.Op {
	case specs.OpEqualTo:
		return both(opJumpEqual, yes, no)
	case specs.OpNotEqual:
		return both(opJumpEqual, no, yes)
	case specs.OpGreaterThan:
		return both(opJumpGreater, yes, no)
	case specs.OpLessEqual:
		return both(opJumpGreater, no, yes)
	case specs.OpGreaterEqual:
		return both(opJumpNotLess, yes, no)
	case specs.OpLessThan:
		return both(opJumpNotLess, no, yes)
	}
	// Masked equality: Value is the mask, ValueTwo what must be left.
	masked := func(offset, mask, want uint32, yes label) label {
		l := a.jump(opJumpEqual, want, yes, no)
		a.goTo(l)
		return a.load(offset, a.emit(instruction{op: opAnd, k: mask}))
	}
	l := masked(offset, low, uint32(arg.ValueTwo), yes)
	if wide {
		l = masked(offset+4, high, uint32(arg.ValueTwo>>32), l)
	}
	return l
}

// bytes puts the program in order and encodes it.
func (a *assembler) bytes() ([]byte, error) {
	if len(a.code) > maxInstructions {
		return nil, fmt.Errorf("%w: it needs %d instructions, the kernel takes %d", ErrInvalid, len(a.code), maxInstructions)
	}
	out := make([]byte, 0, 8*len(a.code))
	for i := len(a.code) - 1; i >= 0; i-- {
		c := a.code[i]
		out = binary.LittleEndian.AppendUint16(out, c.op)
		out = append(out, c.jt, c.jf)
		out = binary.LittleEndian.AppendUint32(out, c.k)
	}
	return out, nil
}
