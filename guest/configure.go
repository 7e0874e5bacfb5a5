package guest

import (
	"encoding/hex"
	"os"
	"runtime"
	"unsafe"

	"github.com/cradlevm/cradle/api"
	"github.com/cradlevm/cradle/api/wire"
	"golang.org/x/sys/unix"
)

// configure gives the guest the identity the host chose. It must come before anything of the tenant runs.
func (a *Agent) configure(r *api.ConfigureRequest) error {
	switch {
	case r.KernelArgs != "":
		return api.Errorf(api.CodeUnsupported, "kernelArgs")
	case len(r.Seed) != 0 && (len(r.Seed) < 32 || len(r.Seed) > 512):
		return api.Errorf(api.CodeInvalid, "seed of %d bytes, not 32 to 512", len(r.Seed))
	case len(r.Hostname) > 64:
		return api.Errorf(api.CodeInvalid, "hostname of %d bytes", len(r.Hostname))
	case len(r.Token) != 0 && len(r.Token) != len(wire.Token{}):
		return api.Errorf(api.CodeInvalid, "token of %d bytes", len(r.Token))
	case r.UnixNanos < 0:
		return api.Errorf(api.CodeInvalid, "time before 1970")
	}
	if r.MachineID != "" {
		if b, err := hex.DecodeString(r.MachineID); err != nil || len(b) != 16 {
			return api.Errorf(api.CodeInvalid, "machine id is not 32 hex digits")
		}
		if err := os.WriteFile(runDir+"/machine-id", []byte(r.MachineID+"\n"), 0o444); err != nil {
			return err
		}
	}
	if len(r.Seed) > 0 {
		if err := seedRandom(r.Seed); err != nil {
			return err
		}
	}
	if r.UnixNanos > 0 {
		tv := unix.NsecToTimeval(r.UnixNanos)
		if err := unix.Settimeofday(&tv); err != nil {
			return api.Errorf(api.CodeInternal, "set the clock: %w", err)
		}
	}
	if r.Hostname != "" {
		if err := unix.Sethostname([]byte(r.Hostname)); err != nil {
			return api.Errorf(api.CodeInternal, "set the hostname: %w", err)
		}
	}
	if len(r.Token) != 0 {
		a.mu.Lock()
		l := a.listener
		a.mu.Unlock()
		if l == nil {
			return api.Errorf(api.CodeFailedPrecondition, "token: there is no port")
		}
		l.SetToken(wire.Token(r.Token))
	}
	return nil
}

// seedRandom credits seed to the kernel's generator and makes it draw a new key at once: restored clones would
// otherwise hand out the same bytes.
func seedRandom(seed []byte) error {
	fd, err := unix.Open("/dev/urandom", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	const (
		addEntropy = 0x40085203 // RNDADDENTROPY
		reseed     = 0x5207     // RNDRESEEDCRNG
	)
	// struct rand_pool_info: entropy in bits, size in bytes, the bytes.
	var info struct {
		bits, size int32
		data       [512]byte
	}
	info.size = int32(copy(info.data[:], seed))
	info.bits = 8 * info.size
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), addEntropy, uintptr(unsafe.Pointer(&info)))
	runtime.KeepAlive(&info)
	if errno != 0 {
		return api.Errorf(api.CodeInternal, "add entropy: %w", errno)
	}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), reseed, 0); errno != 0 {
		return api.Errorf(api.CodeInternal, "reseed: %w", errno)
	}
	return nil
}
