package guest

import (
	"github.com/cradlevm/cradle/api"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// insn is one eBPF instruction.
type insn struct {
	op   uint8
	regs uint8 // source << 4 | destination
	off  int16
	imm  int32
}

// Opcodes of the few instructions a device filter needs.
const (
	opLoadW  = 0x61 // dst = *(u32 *)(src + off)
	opMov32  = 0xbc // dst = (u32) src
	opMovImm = 0xb7 // dst = imm
	opAndImm = 0x54 // dst = (u32) dst & imm
	opShrImm = 0x74 // dst = (u32) dst >> imm
	opJneImm = 0x56 // if (u32) dst != imm goto off
	opJneReg = 0x5e // if (u32) dst != (u32) src goto off
	opJeqImm = 0x16 // if (u32) dst == imm goto off
	opExit   = 0x95

	devBlock = 1 // struct bpf_cgroup_dev_ctx: access_type's low half
	devChar  = 2
	accMknod = 1 // and its high half
	accRead  = 2
	accWrite = 4
	accAll   = accMknod | accRead | accWrite
	maxRules = 512
)

// neededDevices can be used by every container, as the runtime spec demands; terminals belong to them.
var neededDevices = []specs.LinuxDeviceCgroup{
	device("c", 1, 3, "rwm"), device("c", 1, 5, "rwm"), device("c", 1, 7, "rwm"), device("c", 1, 8, "rwm"),
	device("c", 1, 9, "rwm"), device("c", 5, 0, "rwm"), device("c", 5, 1, "rwm"), device("c", 5, 2, "rwm"),
	{Allow: true, Type: "c", Major: pointer(int64(136)), Access: "rwm"}, // /dev/pts
	{Allow: true, Type: "c", Access: "m"}, {Allow: true, Type: "b", Access: "m"},
}

func device(kind string, major, minor int64, access string) specs.LinuxDeviceCgroup {
	return specs.LinuxDeviceCgroup{Allow: true, Type: kind, Major: &major, Minor: &minor, Access: access}
}

func pointer[T any](v T) *T { return &v }

// deviceRules compiles the rules of a spec, the last that matches winning. nil: they allow everything, or there are none.
func deviceRules(r *specs.LinuxResources) ([]insn, error) {
	if r == nil || len(r.Devices) == 0 {
		return nil, nil
	}
	if len(r.Devices) > maxRules {
		return nil, api.Errorf(api.CodeInvalid, "linux.resources.devices: %d rules", len(r.Devices))
	}
	last := r.Devices[len(r.Devices)-1]
	if last.Allow && (last.Type == "" || last.Type == "a") && last.Major == nil && last.Minor == nil && access(last.Access) == accAll {
		return nil, nil
	}
	return deviceProgram(append(r.Devices[:len(r.Devices):len(r.Devices)], neededDevices...))
}

// deviceProgram tests the rules from the last to the first; what none matches is refused.
func deviceProgram(rules []specs.LinuxDeviceCgroup) ([]insn, error) {
	// r1 is the context; r2 the kind of device, r3 the access asked for, r4 major, r5 minor.
	code := []insn{
		{opLoadW, 1<<4 | 2, 0, 0}, {opMov32, 2<<4 | 3, 0, 0}, {opAndImm, 2, 0, 0xffff}, {opShrImm, 3, 0, 16},
		{opLoadW, 1<<4 | 4, 4, 0}, {opLoadW, 1<<4 | 5, 8, 0},
	}
	for i := len(rules) - 1; i >= 0; i-- {
		r := rules[i]
		var tests []insn
		switch r.Type {
		case "", "a":
		case "c":
			tests = append(tests, insn{opJneImm, 2, 0, devChar})
		case "b":
			tests = append(tests, insn{opJneImm, 2, 0, devBlock})
		default:
			return nil, api.Errorf(api.CodeInvalid, "linux.resources.devices: type %.10q", r.Type)
		}
		if acc := access(r.Access); r.Allow {
			// All that is asked for must be allowed.
			if acc != accAll {
				tests = append(tests, insn{opMov32, 3<<4 | 6, 0, 0}, insn{opAndImm, 6, 0, acc}, insn{opJneReg, 3<<4 | 6, 0, 0})
			}
		} else if acc != accAll {
			// One refused kind of access is enough; skip the rule when none is asked for.
			tests = append(tests, insn{opMov32, 3<<4 | 6, 0, 0}, insn{opAndImm, 6, 0, acc}, insn{opJeqImm, 6, 0, 0})
		}
		if r.Major != nil && *r.Major >= 0 {
			tests = append(tests, insn{opJneImm, 4, 0, int32(*r.Major)})
		}
		if r.Minor != nil && *r.Minor >= 0 {
			tests = append(tests, insn{opJneImm, 5, 0, int32(*r.Minor)})
		}
		verdict := int32(0)
		if r.Allow {
			verdict = 1
		}
		tests = append(tests, insn{opMovImm, 0, 0, verdict}, insn{opExit, 0, 0, 0})
		for j := range tests {
			switch tests[j].op {
			case opJneImm, opJneReg, opJeqImm:
				tests[j].off = int16(len(tests) - j - 1)
			}
		}
		code = append(code, tests...)
		if len(tests) == 2 {
			return code, nil // matches everything: what comes before cannot matter, nor be reached
		}
	}
	return append(code, insn{opMovImm, 0, 0, 0}, insn{opExit, 0, 0, 0}), nil
}

func access(s string) (a int32) {
	for _, c := range s {
		switch c {
		case 'r':
			a |= accRead
		case 'w':
			a |= accWrite
		case 'm':
			a |= accMknod
		}
	}
	return a
}
