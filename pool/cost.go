package pool

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"time"
)

// Cost is what a monitor's process takes of this machine.
type Cost struct {
	Private int64         // bytes of memory that would be free without it, swapped ones included
	Shared  int64         // bytes that it uses together with others: those it was copied with, the template's, the monitor's program
	CPU     time.Duration // processor time since it began, its helpers' threads included
}

// CostOf asks Linux what a process takes. An error when it has gone, or is not the caller's to look at.
func CostOf(pid int) (Cost, error) {
	sizes, err := kilobytes(fmt.Sprintf("/proc/%d/smaps_rollup", pid), "Rss")
	if err != nil {
		return Cost{}, err
	}
	private, err := privateMemory(pid)
	if err != nil {
		return Cost{}, err
	}
	cost := Cost{Private: private, Shared: max(0, sizes[0]-private)}
	path := fmt.Sprintf("/proc/%d/stat", pid)
	b, err := os.ReadFile(path)
	if err != nil {
		return Cost{}, err
	}
	if cost.CPU, err = cpuTime(b); err != nil {
		return Cost{}, fmt.Errorf("read %s: %w", path, err)
	}
	return cost, nil
}

// tick is the unit of /proc/PID/stat on every architecture of Linux's that Go knows (USER_HZ).
const tick = 10 * time.Millisecond

// cpuTime reads utime and stime from a /proc/PID/stat: the 14th and the 15th field. The second, a name in parentheses, may
// have anything in it.
func cpuTime(stat []byte) (time.Duration, error) {
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(fields) < 13 {
		return 0, fmt.Errorf("%d fields", len(fields))
	}
	var sum time.Duration
	for _, f := range fields[11:13] {
		n, err := strconv.ParseInt(string(f), 10, 53)
		if err != nil {
			return 0, err
		}
		sum += time.Duration(n) * tick
	}
	return sum, nil
}
