package seccomp

import (
	"cmp"
	"fmt"
	"math"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// The kernel's return values of a filter (linux/seccomp.h).
const (
	retKillProcess = 0x80000000
	retKillThread  = 0x00000000
	retTrap        = 0x00030000
	retErrno       = 0x00050000
	retTrace       = 0x7ff00000
	retLog         = 0x7ffc0000
	retAllow       = 0x7fff0000
)

const (
	errnoPerm  = 1  // EPERM, docker's and runc's default
	errnoNoSys = 38 // ENOSYS
	maxArgs    = 6
)

// rule is one rule of a profile for one system call: all conditions must hold.
type rule struct {
	args []specs.LinuxSeccompArg
	ret  uint32
}

// callRules are the rules of one system call, in the order they are tried; the last may have no conditions.
type callRules struct {
	number uint32
	rules  []rule
}

// table is what a filter does with the calls of one ABI.
type table struct {
	abi     abi
	calls   []callRules // ascending
	x32     uint32      // what is done with x32 numbers, which x86-64's table has beside its own
	newer   uint32      // from this number on calls are newer than the profile; 0: it mentions none
	unknown []string    // names that this ABI has not
}

// tabulate sorts a profile's rules by call, after runc and libseccomp:
//   - a rule that does what is done anyway is dropped;
//   - a rule without conditions goes before all others of its call, the first such before the rest;
//   - a rule with two conditions on one argument is as many rules as it has conditions;
//   - otherwise the profile's order holds.
//
// Of i386's socketcall and ipc the arguments are behind a pointer. A rule with conditions for a call made through them
// therefore allows nothing there, but whatever it denies is denied whatever the arguments are.
func tabulate(p *specs.LinuxSeccomp, a abi, fallback uint32) (table, error) {
	t := table{abi: a}
	found := map[uint32]*callRules{}
	add := func(number uint32, r rule) {
		c := found[number]
		if c == nil {
			c = &callRules{number: number}
			found[number] = c
		}
		last := len(c.rules) - 1
		switch {
		case last >= 0 && len(c.rules[last].args) == 0:
			// Settled.
		case len(r.args) == 0:
			c.rules = []rule{r}
		default:
			c.rules = append(c.rules, r)
		}
	}
	for i := range p.Syscalls {
		s := &p.Syscalls[i]
		ret, err := returnValue(s.Action, s.ErrnoRet)
		if err != nil {
			return t, err
		}
		if err := checkArgs(s); err != nil {
			return t, err
		}
		for _, name := range s.Names {
			number, direct := a.number(name)
			if direct {
				t.mention(number)
			}
			var m mux
			through := false
			if a.muxed != nil {
				if m, through = a.muxed(name); through {
					t.mention(m.call)
				}
			}
			if !direct && !through {
				t.unknown = append(t.unknown, name)
			}
			if ret == fallback {
				continue
			}
			for _, args := range alternatives(s.Args) {
				if direct {
					add(number, rule{args, ret})
				}
				if through && (len(args) == 0 || !permissive(ret)) {
					selected := specs.LinuxSeccompArg{Index: 0, Op: specs.OpEqualTo, Value: m.selector}
					add(m.call, rule{[]specs.LinuxSeccompArg{selected}, ret})
				}
			}
		}
	}
	for _, c := range found {
		t.calls = append(t.calls, *c)
	}
	slices.SortFunc(t.calls, func(x, y callRules) int { return cmp.Compare(x.number, y.number) })
	return t, nil
}

// mention notes a number that the profile knows. Arm's private calls are numbered far from the others.
func (t *table) mention(number uint32) {
	if number < armPrivate {
		t.newer = max(t.newer, number+1)
	}
}

// alternatives splits conditions as runc does: together, unless one argument has several.
func alternatives(args []specs.LinuxSeccompArg) [][]specs.LinuxSeccompArg {
	var seen [maxArgs]bool
	for _, a := range args {
		if seen[a.Index] {
			out := make([][]specs.LinuxSeccompArg, len(args))
			for i := range args {
				out[i] = args[i : i+1]
			}
			return out
		}
		seen[a.Index] = true
	}
	return [][]specs.LinuxSeccompArg{args}
}

func checkArgs(s *specs.LinuxSyscall) error {
	for _, a := range s.Args {
		if a.Index >= maxArgs {
			return fmt.Errorf("%w: system calls have no argument %d (%v)", ErrInvalid, a.Index, s.Names)
		}
		switch a.Op {
		case specs.OpNotEqual, specs.OpLessThan, specs.OpLessEqual, specs.OpEqualTo, specs.OpGreaterEqual,
			specs.OpGreaterThan, specs.OpMaskedEqual:
		default:
			return fmt.Errorf("%w: operator %q (%v)", ErrInvalid, a.Op, s.Names)
		}
	}
	return nil
}

// returnValue is the kernel's word for an action.
func returnValue(action specs.LinuxSeccompAction, errno *uint) (uint32, error) {
	data := uint32(errnoPerm)
	if errno != nil {
		if *errno > math.MaxUint16 {
			return 0, fmt.Errorf("%w: errnoRet %d is more than 65535", ErrInvalid, *errno)
		}
		data = uint32(*errno)
	}
	switch action {
	case specs.ActKill, specs.ActKillThread:
		return retKillThread, nil
	case specs.ActKillProcess:
		return retKillProcess, nil
	case specs.ActTrap:
		return retTrap, nil
	case specs.ActErrno:
		return retErrno | data, nil
	case specs.ActTrace:
		return retTrace | data, nil
	case specs.ActLog:
		return retLog, nil
	case specs.ActAllow:
		return retAllow, nil
	case specs.ActNotify:
		return 0, fmt.Errorf("%w: the action %s needs a supervisor on the host", ErrUnsupported, action)
	}
	return 0, fmt.Errorf("%w: action %q", ErrInvalid, action)
}

// permissive values let the call happen. Tracing does not count: the tracer decides.
func permissive(ret uint32) bool { return ret == retAllow || ret == retLog }
