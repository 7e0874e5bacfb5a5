package pool

import (
	"bytes"
	"encoding/binary"
)

// A program that does nothing, and on its way there what every program does at its start: it is loaded by an
// interpreter of its own, touches its code, its data and the memory behind it page by page, tells the kernel of its thread as
// C libraries do, maps memory and a file, reads its standard input to the end, writes a byte, has a child and exits. It is put
// together here, from system calls, because no build of cradle should need a C compiler for a few hundred bytes.

// The layout of the program in its file and in memory. It has some code, as real programs have, for the guest's kernel
// reads the first page of a file otherwise than those that follow.
const (
	pageSize  = 4096
	textPages = 32                       // of the file, mapped to be executed
	dataPages = 3                        // of the file, mapped to be written
	bssPages  = 8                        // behind the data, not in the file
	dataStart = 1 << 20                  // address
	dataBytes = dataPages*pageSize - 100 // the rest of the last page is cleared by the loader
)

// Where a system call's argument comes from, beside a number.
type register string

const (
	mapped register = "mapped" // rbx: the memory that was mapped
	opened register = "opened" // r12: the file that was opened
	heap   register = "heap"   // r13: where the heap began
	grown  register = "grown"  // where it is to end
)

// path is an argument that is the address of a path, in the program.
type path string

// step is one system call. Its result is kept in a register when keep says so.
type step struct {
	number int32
	args   []any // int32, register or path
	keep   register
}

// Numbers of x86-64.
const (
	sysRead, sysWrite, sysClose, sysFstat, sysMmap, sysMprotect, sysMunmap, sysBrk = 0, 1, 3, 5, 9, 10, 11, 12
	sysRtSigaction, sysFork, sysWait4, sysReadlink, sysGetuid                      = 13, 57, 61, 89, 102
	sysPrctl, sysArchPrctl, sysSetTidAddress, sysExitGroup, sysOpenat              = 157, 158, 218, 231, 257
	sysSetRobustList, sysPrlimit64, sysGetrandom, sysRseq                          = 273, 302, 318, 334

	atCwd        = -100
	protRead     = 1
	protWrite    = 2
	mapPrivate   = 2
	mapAnonymous = 0x20
	span         = 64 << 10
	growth       = 0x21000 // of the heap, as GNU's C library has it

	setFS         = 0x1002 // ARCH_SET_FS
	setName       = 15     // PR_SET_NAME
	limitStack    = 3      // RLIMIT_STACK
	sigint        = 2
	robustSize    = 24 // struct robust_list_head
	rseqSize      = 32
	rseqSign      = 0x53053053 // RSEQ_SIG
	signalSetSize = 8
)

// noopSteps is the program.
func noopSteps() []step {
	args := func(a ...any) []any { return a }
	n := func(i int32) any { return i }
	mapMemory := step{number: sysMmap, args: args(n(0), n(span), n(protRead|protWrite), n(mapPrivate|mapAnonymous), n(-1), n(0)), keep: mapped}
	return []step{
		{number: sysBrk, args: args(n(0)), keep: heap},
		{number: sysBrk, args: args(grown)},
		mapMemory,
		{number: sysOpenat, args: args(n(atCwd), path(noopPath), n(0), n(0)), keep: opened},
		{number: sysFstat, args: args(opened, mapped)},
		{number: sysRead, args: args(opened, mapped, n(512))},
		{number: sysMmap, args: args(n(0), n(textPages*pageSize), n(protRead), n(mapPrivate), opened, n(0))},
		{number: sysClose, args: args(opened)},
		{number: sysRtSigaction, args: args(n(sigint), n(0), mapped, n(signalSetSize))},
		{number: sysPrlimit64, args: args(n(0), n(limitStack), n(0), mapped)},
		{number: sysReadlink, args: args(path("/proc/self/exe"), mapped, n(512))},
		{number: sysGetrandom, args: args(mapped, n(8), n(0))},
		{number: sysGetuid},
		{number: sysPrctl, args: args(n(setName), path("noop"))},
		{number: sysMprotect, args: args(mapped, n(pageSize), n(protRead))}, // the mapping is parted, and is one again
		{number: sysMprotect, args: args(mapped, n(span), n(protRead))},
		{number: sysMunmap, args: args(mapped, n(span))},
		mapMemory, // where nothing was written: what follows reads there
		{number: sysArchPrctl, args: args(n(setFS), mapped)},
		{number: sysSetTidAddress, args: args(mapped)},
		{number: sysSetRobustList, args: args(mapped, n(robustSize))},
		{number: sysRseq, args: args(mapped, n(rseqSize), n(0), n(rseqSign))},
		{number: sysRead, args: args(n(0), mapped, n(512))},
		{number: sysWrite, args: args(n(1), path("n"), n(1))},
		{number: sysFork},
		{number: sysWait4, args: args(n(-1), n(0), n(0), n(0))}, // the child has none to wait for, and goes on
		{number: sysExitGroup, args: args(n(0))},
	}
}

// loadArgument are, for each argument in turn, the instructions that load it: a number (4 bytes follow), rbx, r12, an address in the
// program (4 bytes follow, the distance from behind them).
var loadArgument = [...]struct{ number, rbx, r12, path []byte }{
	{[]byte{0x48, 0xc7, 0xc7}, []byte{0x48, 0x89, 0xdf}, []byte{0x4c, 0x89, 0xe7}, []byte{0x48, 0x8d, 0x3d}}, // rdi
	{[]byte{0x48, 0xc7, 0xc6}, []byte{0x48, 0x89, 0xde}, []byte{0x4c, 0x89, 0xe6}, []byte{0x48, 0x8d, 0x35}}, // rsi
	{[]byte{0x48, 0xc7, 0xc2}, []byte{0x48, 0x89, 0xda}, nil, nil},                                           // rdx
	{[]byte{0x49, 0xc7, 0xc2}, []byte{0x49, 0x89, 0xda}, nil, nil},                                           // r10
	{[]byte{0x49, 0xc7, 0xc0}, nil, []byte{0x4d, 0x89, 0xe0}, nil},                                           // r8
	{[]byte{0x49, 0xc7, 0xc1}, nil, nil, nil},                                                                // r9
}

// touch appends code that reads, or writes, a byte of so many pages from an address on; at is the code's own.
func touch(code []byte, at, from, pages int, write bool) []byte {
	access := []byte{0x8a, 0x06} // mov al, [rsi]
	if write {
		access = []byte{0xc6, 0x06, 1} // mov byte [rsi], 1
	}
	const lea = 7
	code = append(code, 0x48, 0x8d, 0x35) // lea rsi, [rip + distance]
	code = binary.LittleEndian.AppendUint32(code, uint32(from-(at+lea)))
	code = append(code, 0xb9) // mov ecx, pages
	code = binary.LittleEndian.AppendUint32(code, uint32(pages))
	code = append(code, access...)
	code = append(code, 0x48, 0x81, 0xc6, 0, pageSize>>8, 0, 0, 0xff, 0xc9) // add rsi, 4096; dec ecx
	return append(code, 0x75, byte(-len(access)-11))                        // jnz to the access
}

// assemble makes position-independent machine code of steps, to lie at the address start. The paths follow the code.
func assemble(steps []step, start int) []byte {
	var code []byte
	for _, w := range []struct {
		from, pages int
		write       bool
	}{
		{0, textPages, false}, {dataStart, dataPages, false}, {dataStart, dataPages, true},
		{dataStart + dataPages*pageSize, bssPages, false}, {dataStart + dataPages*pageSize, bssPages, true},
	} {
		code = touch(code, start+len(code), w.from, w.pages, w.write)
	}
	type distance struct {
		at int // behind where it must be filled in
		to path
	}
	var distances []distance
	imm := func(i int32) { code = binary.LittleEndian.AppendUint32(code, uint32(i)) }
	for _, s := range steps {
		for i, a := range s.args {
			load := loadArgument[i]
			switch a := a.(type) {
			case path:
				code = append(append(code, load.path...), 0, 0, 0, 0)
				distances = append(distances, distance{len(code), a})
			case int32:
				code = append(code, load.number...)
				imm(a)
			case register:
				switch a {
				case mapped:
					code = append(code, load.rbx...)
				case opened:
					code = append(code, load.r12...)
				case grown:
					code = append(code, 0x49, 0x8d, 0xbd) // lea rdi, [r13 + growth]
					imm(growth)
				}
			}
		}
		code = append(code, 0xb8) // mov eax, number
		imm(s.number)
		code = append(code, 0x0f, 0x05) // syscall
		switch s.keep {
		case mapped:
			code = append(code, 0x48, 0x89, 0xc3, 0xc6, 0x03, 0x0a) // mov rbx, rax; mov byte [rbx], 10
		case opened:
			code = append(code, 0x49, 0x89, 0xc4) // mov r12, rax
		case heap:
			code = append(code, 0x49, 0x89, 0xc5) // mov r13, rax
		}
	}
	for _, d := range distances {
		binary.LittleEndian.PutUint32(code[d.at-4:], uint32(len(code)-d.at))
		code = append(append(code, d.to...), 0)
	}
	return code
}

// ELF's sizes.
const (
	headerSize  = 64
	programSize = 56
)

// entryOf is the address of the code of a program with this interpreter.
func entryOf(interpreter string) int {
	if interpreter == "" {
		return headerSize + 2*programSize
	}
	return headerSize + 3*programSize + len(interpreter) + 1
}

// elf makes an ELF program for x86-64 that runs code; with interpreter, which runs in its place, it needs that file.
func elf(code []byte, interpreter string) []byte {
	type program struct {
		Type, Flags                                uint32
		Offset, Vaddr, Paddr, Filesz, Memsz, Align uint64
	}
	const text, data = textPages * pageSize, dataPages * pageSize
	programs := []program{
		{Type: 1, Flags: 5, Filesz: text, Memsz: text, Align: pageSize},
		{Type: 1, Flags: 6, Offset: text, Vaddr: dataStart, Paddr: dataStart, Filesz: dataBytes, Memsz: data + bssPages*pageSize, Align: pageSize},
	}
	if interpreter != "" {
		at, size := uint64(headerSize+3*programSize), uint64(len(interpreter)+1)
		programs = append([]program{{Type: 3, Flags: 4, Offset: at, Vaddr: at, Paddr: at, Filesz: size, Memsz: size, Align: 1}}, programs...)
	}
	var b bytes.Buffer
	b.Write([]byte{0x7f, 'E', 'L', 'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0})
	le := binary.LittleEndian
	binary.Write(&b, le, struct {
		Type, Machine                                        uint16
		Version                                              uint32
		Entry, Phoff, Shoff                                  uint64
		Flags                                                uint32
		Ehsize, Phentsize, Phnum, Shentsize, Shnum, Shstrndx uint16
	}{3, 62, 1, uint64(entryOf(interpreter)), headerSize, 0, 0, headerSize, programSize, uint16(len(programs)), 0, 0, 0})
	binary.Write(&b, le, programs)
	if interpreter != "" {
		b.WriteString(interpreter + "\x00")
	}
	b.Write(code)
	return append(b.Bytes(), make([]byte, text+data-b.Len())...)
}
