package qemu

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/cradlevm/cradle/api"
	"github.com/cradlevm/cradle/vm"
)

// Names that command line and monitor commands must agree on.
const (
	memoryID = "ram0" // the same whatever backs it, so that any saved state fits any command line
	scsiID   = "scsi0"
)

// Sockets in Dir.
const (
	monitorSocket = "qmp.sock"
	consoleSocket = "console.sock"
	agentSocket   = "agent.sock"
)

// version of QEMU.
type version struct{ major, minor int }

// launch is everything the command line depends on.
type launch struct {
	binary  string
	version version
	id      string
	accel   string // vm.AccelKVM or vm.AccelTCG
	cpus    int
	memory  int64
	cmdline []string
	code    int64 // vm.Config.CodeCache
	tscKHz  int   // 0: unknown
	count   bool  // Options.CountInstructions
	// restore waits for saved state and gives the guest a private copy of ram, which is shared otherwise.
	restore  bool
	forkable bool // it is to be copied: it may change its user and start processes
	nics     []nicArg

	// Descriptor numbers in the child. initrd is -1 when there is none; ram is 0 for anonymous memory.
	kernel, initrd, ram    int
	monitor, console, port int
	record                 int
}

// args is the command line, argv[0] included. The guest does not run yet when QEMU is up (-S): its monitor is
// connected first, the disks are plugged, nothing of the console is missed. A guest that is restored runs as soon as
// its state has been read, which the monitor asks for (-incoming defer).
func (l *launch) args() []string {
	kib := l.memory >> 10
	ram := fmt.Sprintf("memory-backend-ram,id=%s,size=%dK", memoryID, kib)
	if l.ram != 0 {
		share := "on"
		if l.restore {
			share = "off"
		}
		ram = fmt.Sprintf("memory-backend-file,id=%s,size=%dK,share=%s,mem-path=%s", memoryID, kib, share, fdPath(l.ram))
	}
	sandbox := "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
	if l.forkable {
		sandbox = "on,obsolete=deny,resourcecontrol=deny" // copies get the rest: copyFilter
	}
	begin := []string{"-S"}
	if l.restore {
		begin = []string{"-incoming", "defer"}
	}
	args := []string{
		l.binary,
		"-name", l.id,
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-sandbox", sandbox,
		"-machine", l.machine(),
		"-m", fmt.Sprintf("%dK", kib),
		"-object", ram,
		"-smp", fmt.Sprint(l.cpus),
	}
	args = append(args, begin...)
	args = append(args, l.processor()...)
	args = append(args, "-kernel", fdPath(l.kernel))
	if l.initrd >= 0 {
		args = append(args, "-initrd", fdPath(l.initrd))
	}
	args = append(args, "-append", strings.Join(l.kernelWords(), " "))
	for _, c := range []struct {
		id string
		fd int
	}{{"monitor", l.monitor}, {"console", l.console}, {"agent", l.port}} {
		args = append(args, "-chardev", fmt.Sprintf("socket,id=%s,fd=%d,server=on,wait=off", c.id, c.fd))
	}
	args = append(args,
		"-mon", "chardev=monitor,mode=control",
		"-serial", "chardev:console",
		"-device", "virtio-serial-device,max_ports=4",
		"-device", "virtserialport,chardev=agent,name="+api.AgentPortName,
		"-device", "virtio-scsi-device,id="+scsiID,
		"-device", balloonDevice,
	)
	for i, n := range l.nics { // last, so that the other devices are where they are without
		args = append(args, n.args(i)...)
	}
	return args
}

// machine is the microvm machine: no PCI, virtio over MMIO announced by ACPI.
func (l *launch) machine() string {
	// SeaBIOS of 7.2 boots by fw_cfg alone, which saves it the option ROM; 10.0's never leaves the firmware then.
	roms := "off"
	if l.version.major >= 8 {
		roms = "on"
	}
	machine := "microvm,acpi=on,rtc=on,x-option-roms=" + roms + ",dump-guest-core=off,memory-backend=" + memoryID
	if l.accel == vm.AccelTCG && l.version.major < 8 && l.tscKHz > 0 {
		// The old timer wakes QEMU 36 times a second from power-on, more than all that an idle guest does. A kernel whose ACPI
		// tells it of no legacy hardware uses it for nothing but to find out the processor's frequency, if nobody tells it.
		machine += ",pit=off"
	}
	return machine
}

func (l *launch) processor() []string {
	if l.accel == vm.AccelKVM {
		return []string{"-accel", "kvm", "-cpu", "host"}
	}
	// Without a bound, translated code alone can take hundreds of megabytes. A restored guest that has run one
	// container has 31 MiB of it; when the bound is reached QEMU forgets all. With 16 MiB the way there takes half as much
	// processor time again, with 10 as much again.
	code := cmp.Or(l.code, codeCache)
	// TCG does "rep movsb" and "rep stosb" byte by byte: without the bits that call them fast (erms, fsrm) the guest's kernel
	// and C libraries copy and clear by words and vectors.
	// What RDRAND and RDSEED give comes from a generator in QEMU's memory (GnuTLS's, of the thread), which is copied with it, and does not
	// know: the guests of all copies of one VM would get the same numbers.
	args := []string{"-accel", fmt.Sprintf("tcg,tb-size=%d", code>>20), "-cpu", "max,-erms,-fsrm,-rdrand,-rdseed"}
	if l.count {
		args = append(args, "-icount", "shift=0,sleep=off")
	}
	return args
}

// loudness is what the kernel prints of its log while it boots: errors; where the emulation's timer can be lost (see
// sandbox.ErrTimer) warnings as well, of which that is one.
func (l *launch) loudness() string {
	if l.accel == vm.AccelTCG {
		return "loglevel=5"
	}
	return "quiet"
}

// codeCache is how much translated code a guest may have unless its Config says so, in bytes.
const codeCache = 64 << 20

// kernelWords is the kernel's command line. reboot=t ends QEMU, by a triple fault and -no-reboot, on whatever
// is not a power-off.
func (l *launch) kernelWords() []string {
	words := []string{"console=ttyS0", "reboot=t", "panic=-1", l.loudness()}
	// A kernel with dummy interfaces built in makes one at boot, which nobody asked for.
	words = append(words, "dummy.numdummies=0")
	// A guest that does nothing is woken by little else than these, and pays for it with processor time of the host's: the
	// compaction of memory that looks twice a second for something to do, the adding up of a processor's counters of memory, which is done
	// each time that it falls idle as well, and probes of neighbours that nobody has asked for.
	words = append(words, "sysctl.vm.compaction_proactiveness=0", "sysctl.vm.stat_interval=3600")
	// Nor does the kernel add up who waited for what (PSI): it would look every two seconds, and memory cgroups' counters, which wait
	// for a processor that is awake, would be added up each time, which gives it a reason to look again.
	words = append(words, "psi=0")
	for _, family := range []string{"ipv4", "ipv6"} {
		words = append(words, "sysctl.net."+family+".neigh.default.interval_probe_time_ms=86400000")
	}
	if l.accel == vm.AccelTCG {
		// Without the frequency, calibration fails on a busy machine and the boot with it.
		if l.tscKHz > 0 {
			words = append(words, "tsc=reliable", fmt.Sprintf("tsc_early_khz=%d", l.tscKHz))
		}
		// The APIC's timer counts nanoseconds of QEMU's clock. Kernels other than cradle's do not know the word: they measure for
		// 100 ms, and a busy host can make them lose the timer (see sandbox.ErrTimer).
		words = append(words, "apic.timer_khz=1000000")
		// What the kernel is to do without, although programs see it. 112, rep_good: it clears a page in 64 steps then, not
		// in 512.
		without := "112"
		if l.version.major < 8 {
			// 7.2 has been seen to double-fault a guest after its kernel's cmpxchg16b (feature 141, cx16). Programs keep it:
			// images built for x86-64-v2 refuse to run otherwise.
			without += ",141"
		}
		words = append(words, "clearcpuid="+without)
		// What the mitigations guard against is the speculation of a processor that this guest does not run on: its indirect
		// jumps are calls into QEMU, and each of the kernel's detours around them is two more. QEMU itself has the host's.
		words = append(words, "mitigations=off")
		// Compiling a container's seccomp filter, and translating what came of it, costs more than interpreting it ever does:
		// the kernel asks the filter about most calls once only, when it is installed.
		words = append(words, "sysctl.net.core.bpf_jit_enable=0")
		// Address randomization makes TCG translate the same code again for each process.
		words = append(words, "norandmaps")
		// Patching the lock prefixes out for one processor costs a page table switch, and so a translation, for each.
		words = append(words, "noreplace-smp")
	}
	return append(words, slices.Clone(l.cmdline)...)
}

// oddMemory is what a guest's memory under TCG has beyond what was asked for, in bytes: as little as QEMU takes that is no
// multiple of 256 KiB. It keeps checkpoints whole.
//
// TCG's processors write to a page without a word once it is marked as written to; who clears the mark must make them
// speak up again. A live migration clears marks 64 at a time where a block of memory can be divided so, and by itself
// otherwise. In the first way it makes the processors speak up only if the clearing has brought a page that was not to be sent
// already (QEMU's cpu_physical_memory_sync_dirty_bitmap, num_dirty: 7.2 as 10.0). At its beginning all pages are to be sent, so it does
// not, and what the guest writes to pages that it had lately written to is lost from then on. In the second way it
// always does, page by page. The conformance suite's Churn fails within a checkpoint or two without this. Under KVM the kernel keeps the marks.
const oddMemory = 8 << 10

// ramSize is how much memory a guest gets, in bytes.
func ramSize(accel string, asked int64) int64 {
	if accel == vm.AccelTCG {
		return asked + oddMemory
	}
	return asked
}

func fdPath(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }
