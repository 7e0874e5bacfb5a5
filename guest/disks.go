package guest

import (
	"bytes"
	"os"
	"strings"
	"time"

	"github.com/cradlevm/cradle/api"
	"golang.org/x/sys/unix"
)

// diskTimeout is how long a disk that the host speaks of may take to appear; far more than it ever does.
const diskTimeout = 30 * time.Second

// findDisks waits until every serial has appeared and returns the device nodes, in the order asked for.
func findDisks(serials []string) ([]string, error) {
	nodes := make([]string, len(serials))
	seen := map[string]string{} // device name → serial
	missing := ""
	err := awaitDevice(diskTimeout, func() (bool, error) {
		bySerial := map[string]string{}
		for _, name := range blockDevices() {
			serial, ok := seen[name]
			if !ok {
				serial = diskSerial(name)
				seen[name] = serial
			}
			bySerial[serial] = name
		}
		missing = ""
		for i, s := range serials {
			name := bySerial[s]
			if name == "" {
				missing = s
				return false, nil
			}
			nodes[i] = "/dev/" + name
		}
		return true, nil
	})
	if err != nil {
		return nil, api.Errorf(api.CodeNotFound, "disk %q: %w", missing, err)
	}
	return nodes, nil
}

// blockDevices lists the names of the virtio and SCSI disks.
func blockDevices() []string {
	d, err := os.Open("/sys/block")
	if err != nil {
		return nil
	}
	defer d.Close()
	names, _ := d.Readdirnames(-1)
	disks := names[:0]
	for _, n := range names {
		if strings.HasPrefix(n, "sd") || strings.HasPrefix(n, "vd") {
			disks = append(disks, n)
		}
	}
	return disks
}

// diskSerial reads the serial number that the host gave a disk.
func diskSerial(name string) string {
	if b, err := readSmall("/sys/block/"+name+"/device/vpd_pg80", 256); err == nil && len(b) > 4 {
		return string(bytes.Trim(b[4:], " \x00\n")) // a header of four bytes comes first
	}
	b, _ := readSmall("/sys/block/"+name+"/serial", 256)
	return string(bytes.TrimSpace(b))
}

// readSmall reads at most limit bytes of a file with as few system calls as possible.
func readSmall(path string, limit int) ([]byte, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	buf := make([]byte, limit)
	n, err := unix.Read(fd, buf)
	if err != nil {
		return nil, err
	}
	return buf[:n], nil
}

// awaitReleased waits until nothing in the guest holds the devices any more, so that the host may unplug them. The
// kernel tells nobody when the last holder goes; opening for exclusive use is how to ask.
func awaitReleased(nodes []string) error {
	pause := time.Millisecond
	for deadline := time.Now().Add(diskTimeout); ; pause = min(2*pause, 100*time.Millisecond) {
		busy := ""
		for _, n := range nodes {
			fd, err := unix.Open(n, unix.O_RDONLY|unix.O_EXCL|unix.O_CLOEXEC, 0)
			if err == nil {
				unix.Close(fd)
			} else if err == unix.EBUSY {
				busy = n
				break
			}
		}
		if busy == "" {
			return nil
		}
		if time.Now().After(deadline) {
			return api.Errorf(api.CodeInternal, "%s is still in use", busy)
		}
		time.Sleep(pause)
	}
}
