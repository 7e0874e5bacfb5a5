package fork

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Who is killed while it makes a process or a thread may have made it, and nobody is told its number (PTRACE_EVENT_CLONE never comes).

// orphan finds the copy in whose making the parent was killed: a child of ours that is traced by this thread and is not the parent. 0: there is none.
func (p *Parent) orphan() int {
	paths, _ := filepath.Glob("/proc/self/task/[0-9]*/children")
	traced := fmt.Sprintf("\nTracerPid:\t%d\n", unix.Gettid())
	for _, path := range paths {
		b, _ := os.ReadFile(path) // the thread may have ended
		for _, word := range strings.Fields(string(b)) {
			status, _ := os.ReadFile("/proc/" + word + "/status")
			var pid int
			if _, err := fmt.Sscan(word, &pid); err == nil && pid != p.threads[0].tid && strings.Contains(string(status), traced) {
				return pid
			}
		}
	}
	return 0
}

// pidAt is where struct siginfo of SIGCHLD has the process's number (linux/asm-generic/siginfo.h).
const pidAt = 16

// awaitGroup returns when there is something to wait for of the first thread of a process that leads its group. What there is of others before, it
// waits for: until a thread's end has been waited for, the first one's, which is the process's, cannot be; and the stop of one that has just been made it keeps.
func (t *tracee) awaitGroup() error {
	for {
		var info unix.Siginfo
		err := unix.Waitid(unix.P_PGID, t.tid, &info, unix.WEXITED|unix.WSTOPPED|unix.WNOWAIT|unix.WALL, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return fmt.Errorf("wait for threads of process %d: %w", t.tid, err)
		}
		tid := int(*(*int32)(unsafe.Add(unsafe.Pointer(&info), pidAt)))
		if tid == t.tid {
			return nil
		}
		var ws unix.WaitStatus
		if got, _ := unix.Wait4(tid, &ws, unix.WALL|unix.WNOHANG, nil); got == tid && ws.Stopped() {
			t.made, t.madeAt = tid, ws
		}
	}
}
