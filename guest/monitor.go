package guest

import (
	"fmt"
	"os"
	"strconv"
)

// monitorSlack is how late the Go runtime's monitor may wake up, in nanoseconds: a tick of the guest's clock, at which it
// then does.
const monitorSlack = 4_000_000

// calmMonitor has the kernel wake the runtime's monitor thread (sysmon) when it wakes up anyway. The monitor sleeps 20
// microseconds at a time while anything runs, to take the processor from goroutines that wait in a system call: 25 times per
// process that an emulated guest started, and half of all context switches there were. What may keep others waiting for
// long is not done in a system call here (port), or may take a tick.
func calmMonitor() error {
	thread, err := monitor()
	if err != nil {
		return fmt.Errorf("find the runtime's monitor: %w", err)
	}
	return os.WriteFile(slackFile(thread), []byte(strconv.Itoa(monitorSlack)), 0)
}

// monitor is the thread that the runtime's monitor is: the first that the runtime makes.
func monitor() (thread int, err error) {
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return 0, err
	}
	for _, t := range tasks {
		id, err := strconv.Atoi(t.Name())
		if err == nil && id != os.Getpid() && (thread == 0 || id < thread) {
			thread = id
		}
	}
	if thread == 0 {
		return 0, os.ErrNotExist
	}
	return thread, nil
}

func slackFile(thread int) string { return fmt.Sprintf("/proc/%d/timerslack_ns", thread) }
