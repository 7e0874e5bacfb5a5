package qemu

import "golang.org/x/sys/unix"

// Offsets in struct seccomp_data (linux/seccomp.h).
const (
	callAt  = 0
	archAt  = 4
	firstAt = 16 // the low half of the first argument
	nextAt  = 24 // and of the second
)

// x32 is set in the numbers of system calls of the x32 ABI.
const x32 = 0x40000000

// denied are the system calls that a parent of copies must be able to make, or whoever copies it, and that a copy never makes: what QEMU itself denies with
// "-sandbox elevateprivileges=deny,spawn=deny".
var denied = [...]uint32{
	unix.SYS_SETUID, unix.SYS_SETGID, unix.SYS_SETPGID, unix.SYS_SETSID, unix.SYS_SETREUID, unix.SYS_SETREGID, unix.SYS_SETRESUID,
	unix.SYS_SETRESGID, unix.SYS_SETFSUID, unix.SYS_SETFSGID, unix.SYS_SETGROUPS, unix.SYS_CAPSET,
	unix.SYS_FORK, unix.SYS_VFORK, unix.SYS_EXECVE, unix.SYS_EXECVEAT,
	// Copies of one VM may be the same user's.
	unix.SYS_PTRACE, unix.SYS_PROCESS_VM_READV, unix.SYS_PROCESS_VM_WRITEV, unix.SYS_PIDFD_OPEN, unix.SYS_PIDFD_GETFD, unix.SYS_PIDFD_SEND_SIGNAL,
	unix.SYS_TKILL, unix.SYS_SCHED_SETATTR, unix.SYS_IOPRIO_SET,
}

// absent are told that there is no such call: C libraries do without clone3, whose flags no filter can see; what is asked for by io_uring no filter sees.
var absent = [...]uint32{unix.SYS_CLONE3, unix.SYS_IO_URING_SETUP}

// own are those whose first argument, a process, must be the copy itself: they could concern others of the same user.
var own = [...]uint32{unix.SYS_KILL, unix.SYS_TGKILL, unix.SYS_RT_SIGQUEUEINFO, unix.SYS_RT_TGSIGQUEUEINFO}

// ownership are, of fcntl and ioctl, the second arguments by which a descriptor is made to send a signal, of any number, to any process of the same user
// (F_SETOWN, F_SETSIG, F_SETOWN_EX; FIOSETOWN, SIOCSPGRP).
var ownership = map[uint32][]uint32{
	unix.SYS_FCNTL: {unix.F_SETOWN, unix.F_SETSIG, unix.F_SETOWN_EX},
	unix.SYS_IOCTL: {0x8901, 0x8902},
}

// copyFilter is the seccomp filter that the copy pid gets beside its parent's. What it denies ends the process.
func copyFilter(pid int) []unix.SockFilter {
	stmt := func(code uint16, k uint32) unix.SockFilter { return unix.SockFilter{Code: code, K: k} }
	// skip jumps over the next instruction unless the loaded word equals k.
	unless := func(k uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 1, K: k}
	}
	const load = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
	ret := func(action uint32) unix.SockFilter { return stmt(unix.BPF_RET|unix.BPF_K, action) }
	kill := ret(unix.SECCOMP_RET_KILL_PROCESS)
	f := []unix.SockFilter{
		stmt(load, archAt),
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jt: 1, K: unix.AUDIT_ARCH_X86_64}, kill,
		stmt(load, callAt),
		{Code: unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K, Jf: 1, K: x32}, kill,
	}
	for _, number := range denied {
		f = append(f, unless(number), kill)
	}
	when := func(code uint16, k uint32, then, otherwise uint8) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | code | unix.BPF_K, Jt: then, Jf: otherwise, K: k}
	}
	for _, number := range own {
		f = append(f, when(unix.BPF_JEQ, number, 0, 4), stmt(load, firstAt), when(unix.BPF_JEQ, uint32(pid), 1, 0), kill, ret(unix.SECCOMP_RET_ALLOW))
	}
	f = append(f, when(unix.BPF_JEQ, unix.SYS_PRLIMIT64, 0, 5), stmt(load, firstAt), // 0 is the copy as well
		when(unix.BPF_JEQ, 0, 2, 0), when(unix.BPF_JEQ, uint32(pid), 1, 0), kill, ret(unix.SECCOMP_RET_ALLOW))
	for number, requests := range ownership {
		f = append(f, when(unix.BPF_JEQ, number, 0, uint8(2+2*len(requests))), stmt(load, nextAt))
		for _, request := range requests {
			f = append(f, unless(request), kill)
		}
		f = append(f, ret(unix.SECCOMP_RET_ALLOW))
	}
	for _, number := range absent {
		f = append(f, unless(number), ret(unix.SECCOMP_RET_ERRNO|uint32(unix.ENOSYS)))
	}
	return append(f,
		unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jt: 1, K: unix.SYS_CLONE}, ret(unix.SECCOMP_RET_ALLOW),
		stmt(load, firstAt), // threads, but no processes
		unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K, Jt: 1, K: unix.CLONE_THREAD}, kill,
		ret(unix.SECCOMP_RET_ALLOW))
}
