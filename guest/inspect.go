package guest

import (
	"bytes"
	"os"
	"strconv"
	"strings"

	"github.com/cradlevm/cradle/api"
	"golang.org/x/sys/unix"
)

// maxProcesses bounds ProcessesResult.
const maxProcesses = 4096

// hz is the unit of the times in /proc/pid/stat; the kernel's interface has never used another.
const hz = 100

// signal sends a signal to one process or to all of a container.
func (a *Agent) signal(r *api.SignalRequest) error {
	if r.Signal < 0 || r.Signal > 64 {
		return api.Errorf(api.CodeInvalid, "signal %d", r.Signal)
	}
	p, err := a.process(&r.ProcessRef)
	if err != nil {
		return err
	}
	if !r.All {
		return p.signal(r.Signal)
	}
	c, err := a.container(r.ID)
	if err != nil {
		return err
	}
	if r.Signal == int(unix.SIGKILL) {
		return c.cgroup.kill()
	}
	for _, pid := range c.cgroup.pids(1 << 20) {
		unix.Kill(pid, unix.Signal(r.Signal))
	}
	return nil
}

// known tells the id of a process that runs or has ended.
func (a *Agent) known(r *api.ProcessRef) (*api.StartResult, error) {
	p, err := a.process(r)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return &api.StartResult{PID: p.pid}, nil
}

// processes lists what runs in a container.
func (c *container) processes() (*api.ProcessesResult, error) {
	if _, err := c.process(""); err != nil {
		return nil, err
	}
	boot := bootSeconds()
	r := &api.ProcessesResult{Processes: []api.Process{}}
	size := 0
	for _, pid := range c.cgroup.pids(maxProcesses) {
		p, ok := readProcess(pid, boot)
		if size += len(p.Command) + 200; ok && size < api.MaxMessage/2 {
			r.Processes = append(r.Processes, p)
		}
	}
	return r, nil
}

// bootSeconds is when the guest booted, by its own clock.
func bootSeconds() int64 {
	var now unix.Timespec
	unix.ClockGettime(unix.CLOCK_REALTIME, &now)
	return now.Nano() - bootTime()
}

// readProcess reads one process from the agent's own /proc; not ok when it has gone in the meantime. Name and arguments are
// what the process says of itself.
func readProcess(pid int, boot int64) (p api.Process, ok bool) {
	dir := "/proc/" + strconv.Itoa(pid)
	var st unix.Stat_t
	stat, err := readSmall(dir+"/stat", 4096)
	if err != nil || unix.Stat(dir, &st) != nil {
		return p, false
	}
	// The name is in parentheses and may contain any byte.
	open, end := bytes.IndexByte(stat, '('), bytes.LastIndexByte(stat, ')')
	if open < 0 || end < open {
		return p, false
	}
	f := strings.Fields(string(stat[end+1:]))
	if len(f) < 20 {
		return p, false
	}
	field := func(n int) int64 { // by its number in proc(5)
		v, _ := strconv.ParseInt(f[n-3], 10, 64)
		return v
	}
	p = api.Process{
		PID: pid, PPID: int(field(4)), UID: st.Uid, TTY: ttyName(field(7)),
		CPUTime: (field(14) + field(15)) * (1e9 / hz), Start: boot + field(22)*(1e9/hz),
	}
	if cmd, _ := readSmall(dir+"/cmdline", 4096); len(cmd) > 0 {
		p.Command = strings.ToValidUTF8(strings.TrimRight(strings.ReplaceAll(string(cmd), "\x00", " "), " "), "?")
	} else {
		p.Command = "[" + strings.ToValidUTF8(string(stat[open+1:end]), "?") + "]"
	}
	return p, true
}

// ttyName names a terminal by its device number, as ps does.
func ttyName(dev int64) string {
	major, minor := unix.Major(uint64(dev)), unix.Minor(uint64(dev))
	switch {
	case dev == 0:
		return "?"
	case major >= 136 && major <= 143:
		return "pts/" + strconv.Itoa(int(major-136)*256+int(minor))
	case major == 4 && minor >= 64:
		return "ttyS" + strconv.Itoa(int(minor-64))
	}
	return strconv.Itoa(int(major)) + ":" + strconv.Itoa(int(minor))
}

// stats reads the container's account.
func (c *container) stats() (*api.StatsResult, error) {
	c.mu.Lock()
	ready := c.state == created || c.state == running
	c.mu.Unlock()
	if !ready {
		return nil, api.Errorf(api.CodeFailedPrecondition, "container %s is busy", c.req.ID)
	}
	g := c.cgroup
	r := &api.StatsResult{
		CPUNanos:       1000 * g.field("cpu.stat", "usage_usec"),
		CPUUserNanos:   1000 * g.field("cpu.stat", "user_usec"),
		CPUSystemNanos: 1000 * g.field("cpu.stat", "system_usec"),
		MemoryBytes:    g.number("memory.current"),
		MemoryLimit:    g.number("memory.max"),
		MemoryFile:     g.field("memory.stat", "inactive_file"),
		Pids:           g.number("pids.current"),
		PidsLimit:      g.number("pids.max"),
	}
	r.BlockReadBytes, r.BlockWriteBytes = blockBytes(g.dir)
	r.NetRxBytes, r.NetTxBytes = netBytes()
	var cpus unix.CPUSet
	if unix.SchedGetaffinity(0, &cpus) == nil {
		r.OnlineCPUs = cpus.Count()
	}
	return r, nil
}

func blockBytes(dir string) (read, written uint64) {
	b, _ := os.ReadFile(dir + "/io.stat")
	for _, word := range strings.Fields(string(b)) {
		key, value, _ := strings.Cut(word, "=")
		n, _ := strconv.ParseUint(value, 10, 64)
		switch key {
		case "rbytes":
			read += n
		case "wbytes":
			written += n
		}
	}
	return read, written
}

// netBytes sums the guest's interfaces; the network is the whole guest's.
func netBytes() (rx, tx uint64) {
	b, _ := os.ReadFile("/proc/net/dev")
	for line := range strings.Lines(string(b)) {
		name, counters, ok := strings.Cut(line, ":")
		f := strings.Fields(counters)
		if !ok || len(f) < 9 || strings.TrimSpace(name) == "lo" {
			continue
		}
		r, _ := strconv.ParseUint(f[0], 10, 64)
		t, _ := strconv.ParseUint(f[8], 10, 64)
		rx, tx = rx+r, tx+t
	}
	return rx, tx
}
