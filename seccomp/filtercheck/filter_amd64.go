package main

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Offsets in struct seccomp_data (linux/seccomp.h).
const (
	callAt  = 0
	archAt  = 4
	firstAt = 16
)

// any is the first argument of rules that do not look at it.
const any = ^uint32(0)

// rule says what comes of a system call.
type rule struct {
	arch, number uint32
	first        uint32 // its first argument's low half, or any
	action       uint32
}

// native is a rule for a system call of this architecture.
func native(number, first, action uint32) rule {
	return rule{unix.AUDIT_ARCH_X86_64, number, first, action}
}

// deny has a system call fail with an error of our own.
func deny(errno uint32) uint32 { return unix.SECCOMP_RET_ERRNO | errno }

// program is a filter whose first rule that fits counts.
func program(otherwise uint32, rules ...rule) (f []unix.SockFilter) {
	load := func(at uint32) { f = append(f, unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: at}) }
	ret := func(action uint32) { f = append(f, unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: action}) }
	for _, r := range rules {
		tests := [][2]uint32{{archAt, r.arch}, {callAt, r.number}, {firstAt, r.first}}
		if r.first == any {
			tests = tests[:2]
		}
		for i, test := range tests {
			load(test[0])
			left := 2*(len(tests)-i) - 1 // instructions of this rule behind the jump
			f = append(f, unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: uint8(left), K: test[1]})
		}
		ret(r.action)
	}
	ret(otherwise)
	return f
}

// install puts a filter on the calling thread, or on all.
func install(flags uintptr, f []unix.SockFilter) error {
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	prog := unix.SockFprog{Len: uint16(len(f)), Filter: &f[0]}
	if _, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, uintptr(unsafe.Pointer(&prog))); errno != 0 {
		return fmt.Errorf("install filter: %w", errno)
	}
	return nil
}

// call makes a system call and tells its error number.
func call(number uint32, first uintptr) uint32 {
	_, _, errno := unix.RawSyscall(uintptr(number), first, 0, 0)
	return uint32(errno)
}

// int80 makes a system call of the 32-bit architecture without arguments.
func int80(number uint32) int32
