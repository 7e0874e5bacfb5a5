package guest

import (
	"strconv"
	"strings"

	"github.com/cradlevm/cradle/api"
	"github.com/cradlevm/cradle/guest/launch"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

var rlimitNames = map[string]int{
	"RLIMIT_CPU": 0, "RLIMIT_FSIZE": 1, "RLIMIT_DATA": 2, "RLIMIT_STACK": 3, "RLIMIT_CORE": 4, "RLIMIT_RSS": 5,
	"RLIMIT_NPROC": 6, "RLIMIT_NOFILE": 7, "RLIMIT_MEMLOCK": 8, "RLIMIT_AS": 9, "RLIMIT_LOCKS": 10,
	"RLIMIT_SIGPENDING": 11, "RLIMIT_MSGQUEUE": 12, "RLIMIT_NICE": 13, "RLIMIT_RTPRIO": 14, "RLIMIT_RTTIME": 15,
}

// defaultRlimits undo what the agent set for itself; the spec's come after.
var defaultRlimits = []launch.Rlimit{
	{Resource: unix.RLIMIT_NOFILE, Soft: 1024, Hard: 1 << 20},
	{Resource: unix.RLIMIT_MEMLOCK, Soft: 8 << 20, Hard: 8 << 20},
}

func rlimits(p *specs.Process) ([]launch.Rlimit, error) {
	list := defaultRlimits[:len(defaultRlimits):len(defaultRlimits)]
	for _, r := range p.Rlimits {
		n, ok := rlimitNames[r.Type]
		if !ok {
			return nil, api.Errorf(api.CodeInvalid, "process.rlimits: unknown %.40q", r.Type)
		}
		if r.Soft > r.Hard {
			return nil, api.Errorf(api.CodeInvalid, "process.rlimits: the soft limit of %s is above the hard one", r.Type)
		}
		list = append(list, launch.Rlimit{Resource: n, Soft: r.Soft, Hard: r.Hard})
	}
	return list, nil
}

// capabilities are none when the spec names none: a process must ask for what it may do.
func capabilities(asked *specs.LinuxCapabilities) (*launch.Caps, error) {
	c := &launch.Caps{}
	if asked == nil {
		return c, nil
	}
	for _, set := range []struct {
		names []string
		into  *launch.CapSet
	}{
		{asked.Bounding, &c.Bounding}, {asked.Effective, &c.Effective},
		{asked.Permitted, &c.Permitted}, {asked.Inheritable, &c.Inheritable},
		{asked.Ambient, &c.Ambient},
	} {
		var err error
		if *set.into, err = launch.ParseCaps(set.names); err != nil {
			return nil, api.Errorf(api.CodeInvalid, "process.capabilities: %w", err)
		}
	}
	return c, nil
}

var schedPolicies = map[specs.LinuxSchedulerPolicy]uint32{
	specs.SchedOther: 0, specs.SchedFIFO: 1, specs.SchedRR: 2, specs.SchedBatch: 3, specs.SchedIdle: 5, specs.SchedDeadline: 6,
}

var schedFlags = map[specs.LinuxSchedulerFlag]uint64{
	specs.SchedFlagResetOnFork: 1, specs.SchedFlagReclaim: 2, specs.SchedFlagDLOverrun: 4, specs.SchedFlagKeepPolicy: 8,
	specs.SchedFlagKeepParams: 16, specs.SchedFlagUtilClampMin: 32, specs.SchedFlagUtilClampMax: 64,
}

var ioClasses = map[specs.IOPriorityClass]int{specs.IOPRIO_CLASS_RT: 1, specs.IOPRIO_CLASS_BE: 2, specs.IOPRIO_CLASS_IDLE: 3}

// schedule collects the scheduling attributes. Affinity is for execs, as its name in the spec says.
func schedule(p *specs.Process, exec bool) (s launch.Schedule, err error) {
	if c := p.Scheduler; c != nil {
		policy, ok := schedPolicies[c.Policy]
		if !ok {
			return s, api.Errorf(api.CodeInvalid, "process.scheduler: unknown policy %.40q", c.Policy)
		}
		s.Attr = &unix.SchedAttr{
			Size: unix.SizeofSchedAttr, Policy: policy, Nice: c.Nice, Priority: uint32(c.Priority),
			Runtime: c.Runtime, Deadline: c.Deadline, Period: c.Period,
		}
		for _, f := range c.Flags {
			bit, ok := schedFlags[f]
			if !ok {
				return s, api.Errorf(api.CodeInvalid, "process.scheduler: unknown flag %.40q", f)
			}
			s.Attr.Flags |= bit
		}
	}
	if c := p.IOPriority; c != nil {
		class, ok := ioClasses[c.Class]
		if !ok || c.Priority < 0 || c.Priority > 7 {
			return s, api.Errorf(api.CodeInvalid, "process.ioPriority: class %.40q, priority %d", c.Class, c.Priority)
		}
		s.IOPriority = class<<13 | c.Priority
	}
	if c := p.ExecCPUAffinity; c != nil && exec {
		list := c.Final
		if list == "" {
			list = c.Initial
		}
		if s.CPUs, err = parseCPUs(list); err != nil {
			return s, err
		}
	}
	return s, nil
}

// parseCPUs reads a list such as 0-3,7.
func parseCPUs(list string) (*unix.CPUSet, error) {
	if list == "" {
		return nil, nil
	}
	set := &unix.CPUSet{}
	for _, part := range strings.Split(list, ",") {
		from, to, isRange := strings.Cut(strings.TrimSpace(part), "-")
		if !isRange {
			to = from
		}
		a, err1 := strconv.Atoi(from)
		b, err2 := strconv.Atoi(to)
		if err1 != nil || err2 != nil || a < 0 || b < a || b > 1023 {
			return nil, api.Errorf(api.CodeInvalid, "CPU list %.40q", list)
		}
		for ; a <= b; a++ {
			set.Set(a)
		}
	}
	return set, nil
}

func personality(l *specs.Linux) (*uint32, error) {
	if l.Personality == nil {
		return nil, nil
	}
	var p uint32
	switch l.Personality.Domain {
	case specs.PerLinux:
	case specs.PerLinux32:
		p = 8
	default:
		return nil, api.Errorf(api.CodeInvalid, "linux.personality: unknown domain %.40q", l.Personality.Domain)
	}
	return &p, nil
}
