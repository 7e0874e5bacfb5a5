// Package seccomp compiles OCI seccomp profiles to the classic BPF programs that Linux runs on every system call. The
// host compiles; the guest's agent only installs the bytes, so no profile is parsed as root in front of the tenant.
//
// What a program decides is what runc with libseccomp would decide for the same profile:
//   - A call of an ABI that the profile does not list kills the thread: on amd64 so do i386 calls and x32 numbers unless
//     the profile names SCMP_ARCH_X86 and SCMP_ARCH_X32. The native ABI is always there.
//   - x32 numbers of a profile that names SCMP_ARCH_X32 answer ENOSYS, as they do on a kernel without that ABI where they are
//     allowed. Guests have such kernels.
//   - Where the default action denies, a call with a number higher than any the profile mentions answers ENOSYS: the
//     profile is older than the call, and programs fall back on ENOSYS but give up on EPERM.
//   - Names that no table has are passed over (Unknown lists them).
//   - Arguments are compared as 64 bits, of 32-bit ABIs as 32.
//
// One thing differs: when two rules of one call have conditions that overlap and actions that differ, the first in the
// profile wins; libseccomp's order depends on the arguments' numbers.
//
// A program is the test of the ABI, then per ABI a binary search over ranges of calls with one outcome and few exceptions,
// whose leaves compare arguments where rules have conditions. Docker's default profile is about 300 instructions of the
// kernel's 4096; a call passes about 11, one whose arguments are compared up to 33.
package seccomp

import (
	"errors"
	"fmt"
	"math"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Sentinels, to be found with errors.Is.
var (
	ErrInvalid     = errors.New("invalid seccomp profile")
	ErrUnsupported = errors.New("unsupported in a seccomp profile")
)

// Compile returns p as an array of struct sock_filter, little-endian, for a guest of arch (amd64 or arm64, as GOARCH).
// Errors: ErrInvalid (also for more than 4096 instructions), ErrUnsupported (notify, listeners, flags that the agent does
// not pass on).
func Compile(p *specs.LinuxSeccomp, arch string) ([]byte, error) {
	tables, fallback, err := tabulateAll(p, arch)
	if err != nil {
		return nil, err
	}
	var a assembler
	// From the end to the beginning, so that every jump's target is known: the tests of the ABI come last here.
	next := a.ret(retKillThread)
	for _, t := range slices.Backward(tables) {
		body := a.search(ranges(t, fallback, permissive(fallback)))
		body = a.load(offsetNumber, body)
		next = a.jump(opJumpEqual, t.abi.audit, body, next)
	}
	a.load(offsetArch, next)
	return a.bytes()
}

// Unknown lists the names in p that no ABI of arch has, sorted: calls of other machines, newer calls, or mistakes.
func Unknown(p *specs.LinuxSeccomp, arch string) ([]string, error) {
	tables, _, err := tabulateAll(p, arch)
	if err != nil {
		return nil, err
	}
	missing := map[string]int{}
	for _, t := range tables {
		slices.Sort(t.unknown)
		for _, name := range slices.Compact(t.unknown) {
			missing[name]++
		}
	}
	var out []string
	for name, n := range missing {
		if n == len(tables) {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out, nil
}

// tabulateAll returns the tables of the native ABI and of those that p lists, and the default action.
func tabulateAll(p *specs.LinuxSeccomp, arch string) ([]table, uint32, error) {
	if p.ListenerPath != "" || p.ListenerMetadata != "" {
		return nil, 0, fmt.Errorf("%w: a listener needs a supervisor on the host", ErrUnsupported)
	}
	for _, f := range p.Flags {
		// Without it the kernel is only more careful, about speculation.
		if f != specs.LinuxSeccompFlagSpecAllow {
			return nil, 0, fmt.Errorf("%w: the flag %s", ErrUnsupported, f)
		}
	}
	fallback, err := returnValue(p.DefaultAction, p.DefaultErrnoRet)
	if err != nil {
		return nil, 0, err
	}
	known, err := abis(arch)
	if err != nil {
		return nil, 0, err
	}
	x32 := uint32(retKillThread)
	if slices.Contains(p.Architectures, specs.ArchX32) {
		x32 = retErrno | errnoNoSys
	}
	var out []table
	for i, a := range known {
		if i > 0 && !slices.Contains(p.Architectures, a.arch) {
			continue
		}
		t, err := tabulate(p, a, fallback)
		if err != nil {
			return nil, 0, err
		}
		t.x32 = x32
		out = append(out, t)
	}
	return out, fallback, nil
}

// span is a range of numbers, from first to the next span's, with one outcome.
type span struct {
	first uint32
	rules []rule // the last without conditions
	wide  bool
}

// ranges lays a table out over all numbers.
func ranges(t table, fallback uint32, permissiveDefault bool) []span {
	var out []span
	put := func(first uint32, rules []rule) {
		if n := len(out); n > 0 {
			if out[n-1].first == first {
				out = out[:n-1]
			} else if l := out[n-1]; len(l.rules) == 1 && len(rules) == 1 && l.rules[0].ret == rules[0].ret {
				return // the same outcome goes on
			}
		}
		out = append(out, span{first, rules, t.abi.wide})
	}
	just := func(ret uint32) []rule { return []rule{{nil, ret}} }
	noSys := uint32(retErrno | errnoNoSys)
	// What happens to calls without rules changes once, where those newer than the profile begin.
	other, newer := just(fallback), t.newer
	enter := func(number uint32) {
		if newer != 0 && !permissiveDefault && number >= newer {
			put(newer, just(noSys))
			other, newer = just(noSys), 0
		}
	}
	put(0, other)
	for _, c := range t.calls {
		enter(c.number)
		rules := c.rules
		if len(rules[len(rules)-1].args) > 0 {
			rules = append(slices.Clip(rules), rule{nil, other[0].ret})
		}
		put(c.number, rules)
		put(c.number+1, other)
	}
	enter(math.MaxUint32)
	if t.abi.arch == specs.ArchX86_64 {
		put(x32Bit, just(t.x32))
	}
	return out
}
