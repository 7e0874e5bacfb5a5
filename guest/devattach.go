package guest

import (
	"runtime"
	"slices"
	"sync"
	"unsafe"

	"github.com/cradlevm/cradle/api"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// maxDevicePrograms is how many programs are kept loaded.
const maxDevicePrograms = 4

// devicePrograms keeps the first few device filters loaded, for others that ask for the same. Nearly all containers have
// docker's default rules, and for the kernel's verifier a program is the most expensive part of a container's creation.
// A program cannot be changed once it is loaded, so containers may share one.
type devicePrograms struct {
	mu     sync.Mutex
	loaded []loadedProgram
}

type loadedProgram struct {
	code []insn
	fd   int
}

// limit attaches to a cgroup a program that decides on each use of a device by the rules of the spec. Rules that allow
// everything need none.
func (d *devicePrograms) limit(cgroup int, r *specs.LinuxResources) error {
	code, err := deviceRules(r)
	if err != nil || code == nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	i := slices.IndexFunc(d.loaded, func(p loadedProgram) bool { return slices.Equal(p.code, code) })
	if i >= 0 {
		return attachDeviceProgram(cgroup, d.loaded[i].fd)
	}
	fd, err := loadDeviceProgram(code)
	if err != nil {
		return err
	}
	if len(d.loaded) < maxDevicePrograms {
		d.loaded = append(d.loaded, loadedProgram{code, fd})
	} else {
		defer unix.Close(fd) // the cgroup holds the program
	}
	return attachDeviceProgram(cgroup, fd)
}

// loadDeviceProgram returns a descriptor of a program that the kernel has checked.
func loadDeviceProgram(code []insn) (fd int, err error) {
	const license = "Apache-2.0\x00"
	load := struct {
		kind, count       uint32
		code, license     uint64
		logLevel, logSize uint32
		logBuf            uint64
		version, flags    uint32
	}{kind: unix.BPF_PROG_TYPE_CGROUP_DEVICE, count: uint32(len(code)),
		code: uint64(uintptr(unsafe.Pointer(&code[0]))), license: uint64(uintptr(unsafe.Pointer(unsafe.StringData(license))))}
	n, _, errno := unix.Syscall(unix.SYS_BPF, unix.BPF_PROG_LOAD, uintptr(unsafe.Pointer(&load)), unsafe.Sizeof(load))
	runtime.KeepAlive(code)
	if errno == unix.ENOSYS {
		return -1, api.Errorf(api.CodeUnsupported, "linux.resources.devices: the guest's kernel has no BPF")
	}
	if errno != 0 {
		return -1, api.Errorf(api.CodeInternal, "load the device filter: %w", errno)
	}
	return int(n), nil
}

// attachDeviceProgram attaches a loaded program to a cgroup, whose end ends that.
func attachDeviceProgram(cgroup, program int) error {
	attach := struct{ target, prog, kind, flags uint32 }{uint32(cgroup), uint32(program), unix.BPF_CGROUP_DEVICE, unix.BPF_F_ALLOW_MULTI}
	if _, _, errno := unix.Syscall(unix.SYS_BPF, unix.BPF_PROG_ATTACH, uintptr(unsafe.Pointer(&attach)), unsafe.Sizeof(attach)); errno != 0 {
		return api.Errorf(api.CodeInternal, "attach the device filter: %w", errno)
	}
	return nil
}
