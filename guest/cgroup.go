package guest

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const cgroupRoot = "/sys/fs/cgroup"

// wantedControllers are enabled for containers where the kernel has them.
var wantedControllers = [...]string{"memory", "cpu", "pids", "io", "cpuset", "hugetlb"}

// enableControllers hands controllers down to the children of a cgroup, in one write, for each goes over all of them.
// Where that fails, containers run with what there is: a limit that cannot be kept is refused when it is asked for.
func enableControllers(dir string) {
	have, _ := readSmall(dir+"/cgroup.controllers", 256)
	var enable []string
	for _, c := range strings.Fields(string(have)) {
		if slices.Contains(wantedControllers[:], c) {
			enable = append(enable, "+"+c)
		}
	}
	file := dir + "/cgroup.subtree_control"
	if os.WriteFile(file, []byte(strings.Join(enable, " ")), 0) != nil {
		for _, c := range enable {
			os.WriteFile(file, []byte(c), 0)
		}
	}
}

// cgroup is a container's own.
type cgroup struct {
	dir string
	fd  int
}

func newCgroup(id string) (*cgroup, error) {
	c := &cgroup{dir: cgroupRoot + "/container." + id}
	if err := unix.Mkdir(c.dir, 0o755); err != nil {
		return nil, fmt.Errorf("make cgroup: %w", err)
	}
	fd, err := unix.Open(c.dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		unix.Rmdir(c.dir)
		return nil, fmt.Errorf("open cgroup: %w", err)
	}
	c.fd = fd
	return c, nil
}

func (c *cgroup) write(file, value string) error {
	fd, err := unix.Open(c.dir+"/"+file, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	_, err = unix.Write(fd, []byte(value))
	return err
}

// field reads one number of a file of "key value" lines; 0 when it is not there.
func (c *cgroup) field(file, key string) uint64 {
	b, err := readSmall(c.dir+"/"+file, 8192)
	if err != nil {
		return 0
	}
	return value(b, key)
}

// value is a key's in lines of "key value"; 0 when it is not there.
func value(lines []byte, key string) uint64 {
	for line := range bytes.Lines(lines) {
		if v, ok := bytes.CutPrefix(line, []byte(key)); ok && len(v) > 0 && v[0] == ' ' {
			n, _ := strconv.ParseUint(string(bytes.TrimSpace(v)), 10, 64)
			return n
		}
	}
	return 0
}

// number reads a file that holds one number; "max" and a missing file are 0.
func (c *cgroup) number(file string) uint64 {
	b, err := readSmall(c.dir+"/"+file, 64)
	if err != nil {
		return 0
	}
	n, _ := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64)
	return n
}

// oomKills is how often the kernel has killed for memory here.
func (c *cgroup) oomKills() uint64 { return c.field("memory.events", "oom_kill") }

// close gives the descriptor back.
func (c *cgroup) close() {
	if c.fd >= 0 {
		unix.Close(c.fd)
		c.fd = -1
	}
}

// pids lists the processes of the cgroup and of those the container made below it.
func (c *cgroup) pids(limit int) []int {
	var list []int
	walkCgroups(c.dir, 0, func(dir string) {
		b, err := os.ReadFile(dir + "/cgroup.procs")
		if err != nil {
			return
		}
		for line := range bytes.Lines(b) {
			if n, err := strconv.Atoi(strings.TrimSpace(string(line))); err == nil && len(list) < limit {
				list = append(list, n)
			}
		}
	})
	return list
}

// walkCgroups visits dir and what is below, children first is not promised.
func walkCgroups(dir string, depth int, visit func(dir string)) {
	visit(dir)
	if depth > 32 {
		return
	}
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if e.IsDir() {
			walkCgroups(dir+"/"+e.Name(), depth+1, visit)
		}
	}
}

// kill sends SIGKILL to everything in the cgroup.
func (c *cgroup) kill() error {
	err := c.write("cgroup.kill", "1")
	if err == nil || err != unix.ENOENT {
		return err
	}
	for _, pid := range c.pids(1 << 20) { // kernels before 5.14
		unix.Kill(pid, unix.SIGKILL)
	}
	return nil
}

// remove waits for the last process to go, then removes the cgroup and those below it.
func (c *cgroup) remove() error {
	c.close()
	var err error
	pause := time.Millisecond
	for deadline := time.Now().Add(diskTimeout); ; pause = min(2*pause, 100*time.Millisecond) {
		var dirs []string
		walkCgroups(c.dir, 0, func(d string) { dirs = append(dirs, d) })
		for i := len(dirs) - 1; i >= 0; i-- {
			err = unix.Rmdir(dirs[i])
		}
		if err == nil || err == unix.ENOENT {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("remove cgroup: %w", err)
		}
		time.Sleep(pause)
	}
}
