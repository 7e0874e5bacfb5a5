package seccomp

// The tables of this file are short and settled for good; they are switches, as the generated ones are, because a
// profile looks hundreds of names up.

// muxed386 finds the calls that i386 programs make through socketcall(2) and ipc(2), by the selector's values in
// linux/net.h and linux/ipc.h.
func muxed386(name string) (mux, bool) {
	const socketcall, ipc = 102, 117
	switch name {
	case "socket":
		return mux{socketcall, 1}, true
	case "bind":
		return mux{socketcall, 2}, true
	case "connect":
		return mux{socketcall, 3}, true
	case "listen":
		return mux{socketcall, 4}, true
	case "accept":
		return mux{socketcall, 5}, true
	case "getsockname":
		return mux{socketcall, 6}, true
	case "getpeername":
		return mux{socketcall, 7}, true
	case "socketpair":
		return mux{socketcall, 8}, true
	case "send":
		return mux{socketcall, 9}, true
	case "recv":
		return mux{socketcall, 10}, true
	case "sendto":
		return mux{socketcall, 11}, true
	case "recvfrom":
		return mux{socketcall, 12}, true
	case "shutdown":
		return mux{socketcall, 13}, true
	case "setsockopt":
		return mux{socketcall, 14}, true
	case "getsockopt":
		return mux{socketcall, 15}, true
	case "sendmsg":
		return mux{socketcall, 16}, true
	case "recvmsg":
		return mux{socketcall, 17}, true
	case "accept4":
		return mux{socketcall, 18}, true
	case "recvmmsg":
		return mux{socketcall, 19}, true
	case "sendmmsg":
		return mux{socketcall, 20}, true
	case "semop":
		return mux{ipc, 1}, true
	case "semget":
		return mux{ipc, 2}, true
	case "semctl":
		return mux{ipc, 3}, true
	case "semtimedop":
		return mux{ipc, 4}, true
	case "msgsnd":
		return mux{ipc, 11}, true
	case "msgrcv":
		return mux{ipc, 12}, true
	case "msgget":
		return mux{ipc, 13}, true
	case "msgctl":
		return mux{ipc, 14}, true
	case "shmat":
		return mux{ipc, 21}, true
	case "shmdt":
		return mux{ipc, 22}, true
	case "shmget":
		return mux{ipc, 23}, true
	case "shmctl":
		return mux{ipc, 24}, true
	}
	return mux{}, false
}
