package guest

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// mount is one row of a mount table; it prints as the shell command that does the same.
type mount struct {
	source, target, fstype string
	flags                  uintptr
	data                   string
	optional               bool // the kernel may be built without it
}

func (m mount) String() string {
	return fmt.Sprintf("mount -t %s -o %s %s %s", m.fstype, m.data, m.source, m.target)
}

func (m mount) do() error {
	if err := os.MkdirAll(m.target, 0o755); err != nil {
		return err
	}
	err := unix.Mount(m.source, m.target, m.fstype, m.flags, m.data)
	if err != nil && !(m.optional && err == unix.ENODEV) {
		return fmt.Errorf("%s: %w", m, err)
	}
	return nil
}

const strict = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC

// newRoot is where the agent's own root is put together before it takes the initramfs' place.
const newRoot = "/newroot"

// bootMounts are the agent's own view; containers get other instances. The root is a tmpfs because the initramfs
// cannot be pivoted away from.
var bootMounts = [...]mount{
	{source: "root", target: newRoot, fstype: "tmpfs", flags: unix.MS_NOSUID | unix.MS_NODEV, data: "mode=755"},
	{source: "proc", target: newRoot + "/proc", fstype: "proc", flags: strict},
	{source: "sysfs", target: newRoot + "/sys", fstype: "sysfs", flags: strict},
	{source: "devtmpfs", target: newRoot + "/dev", fstype: "devtmpfs", flags: unix.MS_NOSUID, data: "mode=755"},
	{source: "cgroup2", target: newRoot + "/sys/fs/cgroup", fstype: "cgroup2", flags: strict},
}

// Boot turns PID 1 in an initramfs into a system that the agent can work in.
func Boot() error {
	unix.Umask(0o022)
	for _, m := range bootMounts {
		if err := m.do(); err != nil {
			return err
		}
	}
	logToKernel(newRoot)
	if err := loadModules("/modules"); err != nil {
		return err
	}
	if err := switchRoot(newRoot); err != nil {
		return fmt.Errorf("leave the initramfs: %w", err)
	}
	if err := os.MkdirAll(runDir, 0o700); err != nil {
		return err
	}
	enableControllers(cgroupRoot)
	raiseLimits()
	return loopbackUp()
}

// logToKernel makes what the agent says, the Go runtime's last words included, lines of the kernel's log. Those reach
// the console by polling; a terminal on it would need an interrupt that some machines do not deliver.
func logToKernel(root string) {
	os.WriteFile(root+"/proc/sys/kernel/printk_devkmsg", []byte("on\n"), 0)
	os.WriteFile(root+"/proc/sys/kernel/printk", []byte("4 3 1 4\n"), 0) // lines without a level are errors
	fd, err := unix.Open(root+"/dev/kmsg", unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	unix.Dup3(fd, 1, 0)
	unix.Dup3(fd, 2, 0)
	unix.Close(fd)
}

// switchRoot makes dir the root of the mount namespace for all of the process.
func switchRoot(dir string) error {
	if err := unix.Chdir(dir); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return err
	}
	if err := unix.Chroot("."); err != nil {
		return err
	}
	return unix.Chdir("/")
}

// loadModules inserts the kernel modules that dir/order names, one a line, in that order. A kernel without modules
// has no such file.
func loadModules(dir string) error {
	f, err := os.Open(filepath.Join(dir, "order"))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		name := strings.TrimSpace(lines.Text())
		if name == "" {
			continue
		}
		path := filepath.Join(dir, name)
		if err := loadModule(path); err != nil {
			return fmt.Errorf("load %s: %w", name, err)
		}
		os.Remove(path) // its memory is the initramfs'
	}
	return lines.Err()
}

func loadModule(path string) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	flags := 0
	switch filepath.Ext(path) {
	case ".xz", ".zst", ".gz":
		flags = unix.MODULE_INIT_COMPRESSED_FILE
	}
	if err := unix.FinitModule(fd, "", flags); err != nil && err != unix.EEXIST {
		return err
	}
	return nil
}

// raiseLimits gives the agent room; what containers get is set for each process.
func raiseLimits() {
	for _, r := range []int{unix.RLIMIT_NOFILE, unix.RLIMIT_MEMLOCK} {
		lim := unix.Rlimit{Cur: 1 << 20, Max: 1 << 20}
		unix.Setrlimit(r, &lim)
	}
}

// loopbackUp is `ip link set lo up`.
func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr); err != nil {
		return fmt.Errorf("bring lo up: %w", err)
	}
	return nil
}
