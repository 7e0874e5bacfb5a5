package seccomp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// data is struct seccomp_data.
type data struct {
	number, audit uint32
	args          [maxArgs]uint64
}

// run interprets a program as the kernel does; it fails the test where the kernel would refuse the program.
func run(t testing.TB, prog []byte, d data) (ret uint32, steps int) {
	t.Helper()
	words := make([]byte, 0, 64)
	words = binary.LittleEndian.AppendUint32(words, d.number)
	words = binary.LittleEndian.AppendUint32(words, d.audit)
	words = binary.LittleEndian.AppendUint64(words, 0)
	for _, a := range d.args {
		words = binary.LittleEndian.AppendUint64(words, a)
	}
	n := len(prog) / 8
	var acc uint32
	for pc := 0; pc < n; steps++ {
		i := prog[8*pc:]
		op, jt, jf, k := binary.LittleEndian.Uint16(i), int(i[2]), int(i[3]), binary.LittleEndian.Uint32(i[4:])
		pc++
		cond := func(yes bool) {
			if yes {
				pc += jt
			} else {
				pc += jf
			}
		}
		switch op {
		case opLoad:
			if k%4 != 0 || k > 60 {
				t.Fatalf("load from %d", k)
			}
			acc = binary.LittleEndian.Uint32(words[k:])
		case opAnd:
			acc &= k
		case opJump:
			pc += int(k)
		case opJumpEqual:
			cond(acc == k)
		case opJumpGreater:
			cond(acc > k)
		case opJumpNotLess:
			cond(acc >= k)
		case opReturn:
			return k, steps
		default:
			t.Fatalf("instruction %#x", op)
		}
	}
	t.Fatal("ran off the end")
	return 0, 0
}

// reference evaluates a profile the straightforward way, from names.
func reference(p *specs.LinuxSeccomp, arch string, d data) uint32 {
	known, _ := abis(arch)
	fallback, _ := returnValue(p.DefaultAction, p.DefaultErrnoRet)
	if d.audit == auditX8664 && known[0].audit == auditX8664 && d.number >= x32Bit {
		if slices.Contains(p.Architectures, specs.ArchX32) {
			return retErrno | errnoNoSys
		}
		return retKillThread
	}
	for i, a := range known {
		if a.audit != d.audit {
			continue
		}
		if i > 0 && !slices.Contains(p.Architectures, a.arch) {
			return retKillThread
		}
		return referenceABI(p, a, fallback, d)
	}
	return retKillThread
}

func referenceABI(p *specs.LinuxSeccomp, a abi, fallback uint32, d data) uint32 {
	var highest int64 = -1
	conditional := int64(-1)
	for _, s := range p.Syscalls {
		ret, _ := returnValue(s.Action, s.ErrnoRet)
		for _, name := range s.Names {
			n, direct := a.number(name)
			if direct && n < armPrivate {
				highest = max(highest, int64(n))
			}
			var m mux
			through := false
			if a.muxed != nil {
				m, through = a.muxed(name)
			}
			if through {
				highest = max(highest, int64(m.call))
			}
			if ret == fallback {
				continue
			}
			if direct && n == d.number {
				if len(s.Args) == 0 {
					return ret
				}
				if conditional < 0 && referenceArgs(s.Args, a.wide, d) {
					conditional = int64(ret)
				}
			}
			if through && m.call == d.number && conditional < 0 && uint32(d.args[0]) == uint32(m.selector) &&
				(len(s.Args) == 0 || ret != retAllow && ret != retLog) {
				conditional = int64(ret)
			}
		}
	}
	if conditional >= 0 {
		return uint32(conditional)
	}
	if highest >= 0 && int64(d.number) > highest && fallback != retAllow && fallback != retLog {
		return retErrno | errnoNoSys
	}
	return fallback
}

func referenceArgs(args []specs.LinuxSeccompArg, wide bool, d data) bool {
	holds := func(c specs.LinuxSeccompArg) bool {
		v, x, y := d.args[c.Index], c.Value, c.ValueTwo
		if !wide {
			v, x, y = uint64(uint32(v)), uint64(uint32(x)), uint64(uint32(y))
		}
		switch c.Op {
		case specs.OpEqualTo:
			return v == x
		case specs.OpNotEqual:
			return v != x
		case specs.OpLessThan:
			return v < x
		case specs.OpLessEqual:
			return v <= x
		case specs.OpGreaterThan:
			return v > x
		case specs.OpGreaterEqual:
			return v >= x
		}
		return v&x == y
	}
	count := map[uint]int{}
	for _, c := range args {
		count[c.Index]++
	}
	for _, n := range count {
		if n > 1 { // runc: any of them
			return slices.ContainsFunc(args, holds)
		}
	}
	return !slices.ContainsFunc(args, func(c specs.LinuxSeccompArg) bool { return !holds(c) })
}

func compiled(t testing.TB, p *specs.LinuxSeccomp, arch string) []byte {
	t.Helper()
	prog, err := Compile(p, arch)
	if err != nil {
		t.Fatal(err)
	}
	return prog
}

func audits() []uint32 { return []uint32{auditX8664, auditI386, auditARM64, auditARM, 0} }

// TestDefaultProfile compares program and reference for every call of every ABI and many arguments.
func TestDefaultProfile(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for _, arch := range []string{"amd64", "arm64"} {
		for _, caps := range [][]string{nil, {"CAP_SYS_ADMIN"}, {"CAP_SYS_PTRACE", "CAP_SYS_CHROOT", "CAP_BPF"}} {
			p := Default(caps, arch)
			if p == nil || len(p.Syscalls) < 5 {
				t.Fatal("no default profile")
			}
			prog := compiled(t, p, arch)
			longest := 0
			for _, audit := range audits() {
				for n := range uint32(600) {
					// Every number once, and a few far off.
					for _, number := range []uint32{n, n | x32Bit, n%8 + armPrivate, n << 21} {
						if number > 600 && n%8 != 0 && number < x32Bit {
							continue
						}
						d := data{number: number, audit: audit}
						for i := range d.args {
							d.args[i] = interesting(rnd)
						}
						got, steps := run(t, prog, d)
						if want := reference(p, arch, d); got != want {
							t.Fatalf("%s %v: %+v: %#x, want %#x", arch, caps, d, got, want)
						}
						longest = max(longest, steps)
					}
				}
			}
			t.Logf("%s %v: %d instructions, %d at most in a call", arch, caps, len(prog)/8, longest)
			if len(prog)/8 > 320 { // the guest's kernel checks and translates each of them at every start
				t.Errorf("%s %v: %d instructions", arch, caps, len(prog)/8)
			}
		}
	}
}

func interesting(rnd *rand.Rand) uint64 {
	v := []uint64{0, 1, 2, 8, 16, 40, 0x20000, 0x20008, 0xffffffff, 0x10000000, 0x7e020000, 1 << 32, 1<<32 | 8, 1<<63 | 1, ^uint64(0)}
	if rnd.IntN(4) == 0 {
		return rnd.Uint64() >> rnd.IntN(64)
	}
	return v[rnd.IntN(len(v))]
}

func names() []string {
	return []string{"read", "write", "open", "openat", "close", "clone", "clone3", "socket", "bind", "connect", "personality",
		"mount", "ioctl", "semop", "shmat", "socketcall", "ipc", "execve", "prctl", "mseal", "no_such_call", "cacheflush", "writev"}
}

// randomProfile makes a profile from a seed.
func randomProfile(rnd *rand.Rand, arch string) *specs.LinuxSeccomp {
	actions := []specs.LinuxSeccompAction{specs.ActAllow, specs.ActErrno, specs.ActErrno, specs.ActKillProcess, specs.ActKillThread,
		specs.ActTrap, specs.ActTrace, specs.ActLog, specs.ActKill}
	ops := []specs.LinuxSeccompOperator{specs.OpEqualTo, specs.OpNotEqual, specs.OpLessThan, specs.OpLessEqual, specs.OpGreaterThan,
		specs.OpGreaterEqual, specs.OpMaskedEqual}
	errno := func() *uint {
		if rnd.IntN(2) == 0 {
			return nil
		}
		n := uint(rnd.IntN(133))
		return &n
	}
	p := &specs.LinuxSeccomp{DefaultAction: actions[rnd.IntN(len(actions))], DefaultErrnoRet: errno()}
	known, _ := abis(arch)
	for _, a := range known {
		if rnd.IntN(2) == 0 {
			p.Architectures = append(p.Architectures, a.arch)
		}
	}
	if rnd.IntN(2) == 0 {
		p.Architectures = append(p.Architectures, specs.ArchX32)
	}
	many := 12
	if rnd.IntN(10) == 0 {
		many = 150 // long jumps
	}
	for range rnd.IntN(many) {
		s := specs.LinuxSyscall{Action: actions[rnd.IntN(len(actions))], ErrnoRet: errno()}
		for range 1 + rnd.IntN(3) {
			s.Names = append(s.Names, names()[rnd.IntN(len(names()))])
		}
		for range rnd.IntN(4) {
			s.Args = append(s.Args, specs.LinuxSeccompArg{
				Index: uint(rnd.IntN(maxArgs)), Op: ops[rnd.IntN(len(ops))], Value: interesting(rnd), ValueTwo: interesting(rnd) & 0xff,
			})
		}
		p.Syscalls = append(p.Syscalls, s)
	}
	return p
}

func checkAgainstReference(t testing.TB, seed uint64) {
	t.Helper()
	rnd := rand.New(rand.NewPCG(seed, 7))
	arch := []string{"amd64", "arm64"}[seed%2]
	p := randomProfile(rnd, arch)
	prog, err := Compile(p, arch)
	if err != nil {
		if strings.Contains(err.Error(), "instructions") {
			return
		}
		t.Fatal(err)
	}
	known, _ := abis(arch)
	for range 300 {
		d := data{audit: audits()[rnd.IntN(5)], number: uint32(rnd.IntN(500))}
		if rnd.IntN(2) == 0 {
			a := known[rnd.IntN(len(known))]
			if n, ok := a.number(names()[rnd.IntN(len(names()))]); ok {
				d.audit, d.number = a.audit, n
			}
		}
		if rnd.IntN(16) == 0 {
			d.number |= x32Bit
		}
		for i := range d.args {
			d.args[i] = interesting(rnd)
			// Arguments that rules name, and their neighbours.
			if len(p.Syscalls) > 0 {
				if s := p.Syscalls[rnd.IntN(len(p.Syscalls))]; len(s.Args) > 0 && rnd.IntN(2) == 0 {
					d.args[i] = s.Args[rnd.IntN(len(s.Args))].Value + uint64(rnd.IntN(3)) - 1
				}
			}
		}
		got, _ := run(t, prog, d)
		if want := reference(p, arch, d); got != want {
			t.Fatalf("seed %d: %+v: %#x, want %#x\n%+v", seed, d, got, want, p)
		}
	}
}

func TestRandomProfiles(t *testing.T) {
	for seed := range uint64(500) {
		checkAgainstReference(t, seed)
	}
}

func FuzzProfiles(f *testing.F) {
	f.Add(uint64(1))
	f.Fuzz(func(t *testing.T, seed uint64) { checkAgainstReference(t, seed) })
}

// TestLongJumps has hundreds of rules on one call and on all the others, so that no target is near.
func TestLongJumps(t *testing.T) {
	p := &specs.LinuxSeccomp{DefaultAction: specs.ActErrno}
	for i := range uint64(400) {
		errno := uint(i%100 + 2)
		p.Syscalls = append(p.Syscalls, specs.LinuxSyscall{
			Names: []string{"personality"}, Action: specs.ActErrno, ErrnoRet: &errno,
			Args: []specs.LinuxSeccompArg{{Index: 3, Op: specs.OpEqualTo, Value: i << 30}},
		})
	}
	p.Syscalls = append(p.Syscalls, specs.LinuxSyscall{Names: []string{"read", "write", "mount", "mseal"}, Action: specs.ActAllow})
	prog := compiled(t, p, "amd64")
	number, _ := numberAMD64("personality")
	for i := range uint64(410) {
		d := data{number: number, audit: auditX8664}
		d.args[3] = i << 30
		if got, _ := run(t, prog, d); got != reference(p, "amd64", d) {
			t.Fatalf("%d: %#x", i, got)
		}
	}
	// And more than the kernel takes.
	for range 3 {
		p.Syscalls = append(p.Syscalls, p.Syscalls...)
	}
	if _, err := Compile(p, "amd64"); !errors.Is(err, ErrInvalid) {
		t.Error(err)
	}
}

func TestRefusals(t *testing.T) {
	big := uint(70000)
	for name, tc := range map[string]struct {
		p    specs.LinuxSeccomp
		arch string
		want error
	}{
		"notify":   {specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{{Names: []string{"mount"}, Action: specs.ActNotify}}}, "amd64", ErrUnsupported},
		"listener": {specs.LinuxSeccomp{DefaultAction: specs.ActAllow, ListenerPath: "/x"}, "amd64", ErrUnsupported},
		"flag":     {specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Flags: []specs.LinuxSeccompFlag{specs.LinuxSeccompFlagLog}}, "amd64", ErrUnsupported},
		"arch":     {specs.LinuxSeccomp{DefaultAction: specs.ActAllow}, "riscv64", ErrUnsupported},
		"action":   {specs.LinuxSeccomp{DefaultAction: "PERHAPS"}, "amd64", ErrInvalid},
		"errno":    {specs.LinuxSeccomp{DefaultAction: specs.ActErrno, DefaultErrnoRet: &big}, "amd64", ErrInvalid},
		"index":    {specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{{Names: []string{"mount"}, Action: specs.ActErrno, Args: []specs.LinuxSeccompArg{{Index: 6, Op: specs.OpEqualTo}}}}}, "amd64", ErrInvalid},
		"operator": {specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{{Names: []string{"mount"}, Action: specs.ActErrno, Args: []specs.LinuxSeccompArg{{Op: "LIKE"}}}}}, "amd64", ErrInvalid},
	} {
		if _, err := Compile(&tc.p, tc.arch); !errors.Is(err, tc.want) {
			t.Errorf("%s: %v, want %v", name, err, tc.want)
		}
	}
}

func TestParse(t *testing.T) {
	const profile = `{"defaultAction":"SCMP_ACT_ERRNO","archMap":[{"architecture":"SCMP_ARCH_X86_64","subArchitectures":["SCMP_ARCH_X86"]}],"syscalls":[
		{"names":["read"],"action":"SCMP_ACT_ALLOW"},
		{"name":"write","action":"SCMP_ACT_ALLOW"},
		{"names":["mount"],"action":"SCMP_ACT_ALLOW","includes":{"caps":["CAP_SYS_ADMIN"]}},
		{"names":["clone"],"action":"SCMP_ACT_ALLOW","excludes":{"caps":["CAP_SYS_ADMIN"]}},
		{"names":["modify_ldt"],"action":"SCMP_ACT_ALLOW","includes":{"arches":["amd64"]}},
		{"names":["ptrace"],"action":"SCMP_ACT_ALLOW","includes":{"minKernel":"4.8"}},
		{"names":["bpf"],"action":"SCMP_ACT_ALLOW","includes":{"minKernel":"99.0"}}]}`
	list := func(caps []string, arch string) string {
		p, err := Parse([]byte(profile), caps, arch)
		if err != nil {
			t.Fatal(err)
		}
		var out []string
		for _, s := range p.Syscalls {
			out = append(out, s.Names...)
		}
		return fmt.Sprint(out, p.Architectures)
	}
	for got, want := range map[string]string{
		list(nil, "amd64"):                       "[read write clone modify_ldt ptrace] [SCMP_ARCH_X86_64 SCMP_ARCH_X86]",
		list([]string{"CAP_SYS_ADMIN"}, "arm64"): "[read write mount ptrace] []",
	} {
		if got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
	for _, bad := range []string{"", "{", "[]", `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[null]}`,
		`{"defaultAction":"x","architectures":["a"],"archMap":[{}]}`, `{"syscalls":[{"name":"a","names":["b"]}]}`,
		`{"defaultAction":"SCMP_ACT_ALLOW","x":"` + strings.Repeat("x", maxProfile) + `"}`} {
		if _, err := Parse([]byte(bad), nil, "amd64"); !errors.Is(err, ErrInvalid) {
			t.Errorf("%.60s: %v", bad, err)
		}
	}
	if p, err := Parse([]byte("{}"), nil, "amd64"); p != nil || err != nil {
		t.Error(p, err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["read"],"action":"SCMP_ACT_ALLOW","args":[{"index":1,"value":3,"op":"SCMP_CMP_EQ"}]}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := Parse(b, []string{"CAP_KILL"}, "amd64")
		if err != nil || p == nil {
			return
		}
		if prog, err := Compile(p, "amd64"); err == nil {
			run(t, prog, data{number: 1, audit: auditX8664})
		}
	})
}

func TestUnknown(t *testing.T) {
	got, err := Unknown(Default(nil, "amd64"), "amd64")
	if err != nil {
		t.Fatal(err)
	}
	t.Log("docker's names that no table has:", got)
	if slices.Contains(got, "read") || slices.Contains(got, "socketcall") || len(got) > 20 {
		t.Error(got)
	}
}

func BenchmarkDefaultAndCompile(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		compiled(b, Default(nil, "amd64"), "amd64")
	}
}
