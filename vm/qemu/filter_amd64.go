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

// making are the system calls that it takes to make a copy of a process (package fork). Nothing else needs them.
var making = [...]uint32{unix.SYS_SETRESUID, unix.SYS_SETRESGID, unix.SYS_SETGROUPS, unix.SYS_CAPSET, unix.SYS_SETSID, unix.SYS_SOCKETPAIR}

// denied are those that a monitor never makes: what QEMU itself denies with "-sandbox elevateprivileges=deny,spawn=deny", which a parent
// of copies cannot have, and more.
var denied = [...]uint32{
	unix.SYS_SETUID, unix.SYS_SETGID, unix.SYS_SETPGID, unix.SYS_SETREUID, unix.SYS_SETREGID, unix.SYS_SETFSUID, unix.SYS_SETFSGID,
	unix.SYS_FORK, unix.SYS_VFORK, unix.SYS_EXECVE, unix.SYS_EXECVEAT, unix.SYS_UNSHARE, unix.SYS_SETNS,
	// Copies of one VM may be the same user's.
	unix.SYS_PTRACE, unix.SYS_PROCESS_VM_READV, unix.SYS_PROCESS_VM_WRITEV, unix.SYS_PIDFD_OPEN, unix.SYS_PIDFD_GETFD, unix.SYS_PIDFD_SEND_SIGNAL,
	unix.SYS_TKILL, unix.SYS_SCHED_SETATTR, unix.SYS_IOPRIO_SET,
	// The signals that its descriptor tells of are those of all copies, which share it.
	unix.SYS_SIGNALFD, unix.SYS_SIGNALFD4,
}

// refused fail: a monitor has all sockets that it needs, and could reach by others whatever the host can.
var refused = [...]uint32{unix.SYS_SOCKET, unix.SYS_BIND, unix.SYS_CONNECT}

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

// Instructions of a filter.
const loadWord = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS

func stmt(code uint16, k uint32) unix.SockFilter { return unix.SockFilter{Code: code, K: k} }

func when(code uint16, k uint32, then, otherwise uint8) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_JMP | code | unix.BPF_K, Jt: then, Jf: otherwise, K: k}
}

// unless skips the next instruction unless the loaded word equals k.
func unless(k uint32) unix.SockFilter { return when(unix.BPF_JEQ, k, 0, 1) }

func ret(action uint32) unix.SockFilter { return stmt(unix.BPF_RET|unix.BPF_K, action) }

// among does end if the loaded word is one of some. The kernel tries each number that a system call can have when it takes a filter, so steps count.
func among(some []uint32, end unix.SockFilter) (f []unix.SockFilter) {
	for i, k := range some {
		f = append(f, when(unix.BPF_JEQ, k, uint8(len(some)-i), 0))
	}
	return append(f, stmt(unix.BPF_JMP|unix.BPF_JA, 1), end)
}

// Ends of a filter. kill ends the process.
func kill() unix.SockFilter  { return ret(unix.SECCOMP_RET_KILL_PROCESS) }
func allow() unix.SockFilter { return ret(unix.SECCOMP_RET_ALLOW) }

// common is the beginning of the filters.
func common() []unix.SockFilter {
	f := []unix.SockFilter{
		stmt(loadWord, archAt), when(unix.BPF_JEQ, unix.AUDIT_ARCH_X86_64, 1, 0), kill(),
		stmt(loadWord, callAt), when(unix.BPF_JGE, x32, 0, 1), kill(),
	}
	f = append(f, among(denied[:], kill())...)
	f = append(f, among(absent[:], ret(unix.SECCOMP_RET_ERRNO|uint32(unix.ENOSYS)))...)
	return append(f, among(refused[:], ret(unix.SECCOMP_RET_ERRNO|uint32(unix.EPERM)))...)
}

// still is the end of the filter of a process that makes no other: neither by what a copy takes, nor by clone, but for threads.
func still(f []unix.SockFilter) []unix.SockFilter {
	f = append(f, among(making[:], kill())...)
	return append(f, when(unix.BPF_JEQ, unix.SYS_CLONE, 1, 0), allow(), stmt(loadWord, firstAt), when(unix.BPF_JSET, unix.CLONE_THREAD, 1, 0), kill(), allow())
}

// parentFilter is the filter of a VM that is going to be frozen, and whose guest runs until then. Copies of it, which are other processes, have it,
// too. suspended tells that it is of no effect while they are made (fork.Parent.Unfiltered).
func parentFilter(suspended bool) func(int) []unix.SockFilter {
	return func(int) []unix.SockFilter {
		if suspended {
			return still(common())
		}
		return append(common(), allow())
	}
}

// copyFilter is the seccomp filter that the copy pid gets beside its parent's.
func copyFilter(pid int) []unix.SockFilter {
	f := common()
	for _, number := range own {
		f = append(f, when(unix.BPF_JEQ, number, 0, 4), stmt(loadWord, firstAt), when(unix.BPF_JEQ, uint32(pid), 1, 0), kill(), allow())
	}
	f = append(f, when(unix.BPF_JEQ, unix.SYS_PRLIMIT64, 0, 5), stmt(loadWord, firstAt), // 0 is the copy as well
		when(unix.BPF_JEQ, 0, 2, 0), when(unix.BPF_JEQ, uint32(pid), 1, 0), kill(), allow())
	for number, requests := range ownership {
		f = append(f, when(unix.BPF_JEQ, number, 0, uint8(2+2*len(requests))), stmt(loadWord, nextAt))
		for _, request := range requests {
			f = append(f, unless(request), kill())
		}
		f = append(f, allow())
	}
	return still(f)
}
