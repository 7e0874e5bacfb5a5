package qemu

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/cradlevm/cradle/vm"
	"golang.org/x/sys/unix"
)

// record is the file Dir/qemu.pid that says which process runs the VM: "PID STARTTIME BOOT\n". The number alone
// could be anybody's by now; its start time on this boot of the machine cannot.
//
// The file is made before the process, which inherits it as an open file (read-only). So a process whose number
// never got written, because the daemon died between the two, is found all the same: it is the one that holds
// the file open.
type record struct {
	path string
	file *os.File // read-only; the process inherits it
}

const recordName = "qemu.pid"

// newRecord makes the empty record of a VM that is about to start.
func newRecord(dir string) (*record, error) {
	path := filepath.Join(dir, recordName)
	// A new inode each time: an earlier process may still hold the old one.
	if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_RDONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	return &record{path: path, file: f}, nil
}

// write completes the record.
func (r *record) write(pid int) error {
	ticks, _ := startTime(pid)
	return os.WriteFile(r.path, fmt.Appendf(nil, "%d %d %s\n", pid, ticks, bootID()), 0o600)
}

func bootID() string {
	b, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b))
}

// findProcess returns the running process of the VM in dir, or vm.ErrExited.
func findProcess(dir string) (*process, error) {
	path := filepath.Join(dir, recordName)
	b, err := os.ReadFile(path)
	if os.IsNotExist(err) {
		return nil, vm.ErrExited
	}
	if err != nil {
		return nil, err
	}
	pid, ticks, ok := parseRecord(string(b))
	if !ok {
		if pid, ok = findHolder(path); !ok {
			return nil, vm.ErrExited
		}
		ticks, _ = startTime(pid)
	}
	p, err := adopt(pid)
	if err != nil {
		return nil, vm.ErrExited
	}
	// Checked only now that the pidfd is held: from here on the number cannot change hands.
	if now, runs := startTime(pid); !runs || now != ticks {
		p.close()
		return nil, vm.ErrExited
	}
	return p, nil
}

// parseRecord reads a complete record of this boot; one of an earlier boot gives a process that cannot be.
func parseRecord(s string) (pid int, ticks uint64, ok bool) {
	fields := strings.Fields(s)
	if len(fields) != 3 || !strings.HasSuffix(s, "\n") {
		return 0, 0, false
	}
	pid, err := strconv.Atoi(fields[0])
	if err != nil || pid <= 1 {
		return 0, 0, false
	}
	if ticks, err = strconv.ParseUint(fields[1], 10, 64); err != nil {
		return 0, 0, false
	}
	if fields[2] != bootID() {
		return 0, 0, false
	}
	return pid, ticks, true
}

// findHolder looks through all processes but this one for one that holds the file at path open.
func findHolder(path string) (pid int, ok bool) {
	var want, got unix.Stat_t
	if unix.Stat(path, &want) != nil {
		return 0, false
	}
	files, _ := filepath.Glob("/proc/[0-9]*/fd/*")
	for _, f := range files {
		if unix.Stat(f, &got) != nil || got.Dev != want.Dev || got.Ino != want.Ino {
			continue
		}
		pid, err := strconv.Atoi(strings.Split(f, "/")[2])
		if err == nil && pid != os.Getpid() {
			return pid, true
		}
	}
	return 0, false
}
