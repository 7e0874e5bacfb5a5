package seccomp

import (
	"fmt"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// abi is one way to make system calls that a kernel has: its table of numbers and how a filter knows it.
type abi struct {
	arch   specs.Arch
	audit  uint32                           // seccomp_data.arch
	wide   bool                             // arguments are compared as 64 bits; otherwise as 32, as libseccomp does
	number func(name string) (uint32, bool) // of a system call
	muxed  func(name string) (mux, bool)    // of one that is also reached through another; may be nil
}

// mux is a system call that is the first argument's value of another: i386's socketcall(2) and ipc(2).
type mux struct {
	call     uint32
	selector uint64
}

// Values of seccomp_data.arch: the ELF machine with flags for 64 bits and little-endian (linux/audit.h).
const (
	auditX8664 = 0xc000003e
	auditI386  = 0x40000003
	auditARM64 = 0xc00000b7
	auditARM   = 0x40000028
)

// x32Bit is set in the numbers of the x32 ABI, which shares x86-64's seccomp_data.arch. It has no table: no guest's kernel
// has the ABI.
const x32Bit = 0x40000000

// armPrivate is where 32-bit Arm's private calls begin.
const armPrivate = 0xf0000

// abis returns those that arch (a GOARCH) has, the native one first.
func abis(arch string) ([]abi, error) {
	switch arch {
	case "amd64":
		return []abi{
			{arch: specs.ArchX86_64, audit: auditX8664, wide: true, number: numberAMD64},
			{arch: specs.ArchX86, audit: auditI386, number: number386, muxed: muxed386},
		}, nil
	case "arm64":
		return []abi{
			{arch: specs.ArchAARCH64, audit: auditARM64, wide: true, number: numberARM64},
			{arch: specs.ArchARM, audit: auditARM, number: numberARMWithPrivate},
		}, nil
	}
	return nil, fmt.Errorf("%w: architecture %q", ErrUnsupported, arch)
}

// numberARMWithPrivate adds 32-bit Arm's private calls, which are no part of the table.
func numberARMWithPrivate(name string) (uint32, bool) {
	switch name {
	case "breakpoint":
		return armPrivate + 1, true
	case "cacheflush":
		return armPrivate + 2, true
	case "set_tls":
		return armPrivate + 5, true
	case "sync_file_range2":
		name = "arm_sync_file_range" // the same call's other name
	}
	return numberARM(name)
}
