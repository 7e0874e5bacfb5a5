package guest

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// shutdown kills every container, lets their filesystems be unmounted, and writes everything to the disks.
func (a *Agent) shutdown() {
	a.mu.Lock()
	all := slices.Collect(maps.Values(a.containers))
	a.mu.Unlock()
	for _, c := range all {
		if err := c.delete(); err != nil {
			fmt.Printf("cradle-init: shutdown: %v\n", err)
		}
	}
	unix.Sync()
}

// PowerOff ends the machine.
func PowerOff() {
	// The answer to the call that asked for it is still on its way through the port.
	time.Sleep(10 * time.Millisecond)
	unix.Sync()
	unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
}
