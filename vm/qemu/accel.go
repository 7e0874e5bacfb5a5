package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"sync"
	"time"

	"github.com/cradlevm/cradle/vm"
	"golang.org/x/sys/unix"
)

// accelerator is what AccelAuto means here, and why.
type accelerator struct{ name, why string }

// Accel implements vm.Driver. The machine is looked at once; a first call that tries KVM takes up to 3 seconds.
func (d *Driver) Accel(context.Context) (accel, why string) {
	a := d.accel()
	return a.name, a.why
}

// choose resolves what a Config asks for.
func (d *Driver) choose(asked string) (string, error) {
	if asked == vm.AccelTCG {
		return vm.AccelTCG, nil
	}
	a := d.accel()
	if asked == vm.AccelKVM && a.name != vm.AccelKVM {
		return "", fmt.Errorf("%w: Accel: KVM cannot be used: %s", vm.ErrInvalid, a.why)
	}
	return a.name, nil
}

var virtFlag = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`(?m)^flags\s*:.*\b(vmx|svm)\b`) })

// findAccelerator decides between KVM and TCG. That /dev/kvm opens proves nothing: on some nested hosts it does
// and no stock kernel ever boots.
func (d *Driver) findAccelerator() accelerator {
	const slow = ": using software emulation (TCG), expect it to be slow"
	info, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return accelerator{vm.AccelTCG, fmt.Sprintf("cannot tell whether there is hardware virtualization (%v)%s", err, slow)}
	}
	if !virtFlag().Match(info) {
		return accelerator{vm.AccelTCG, "no hardware virtualization on this machine (no vmx/svm)" + slow}
	}
	if err := unix.Access("/dev/kvm", unix.R_OK|unix.W_OK); err != nil {
		return accelerator{vm.AccelTCG, fmt.Sprintf("/dev/kvm cannot be used (%v; is the kvm module loaded, and are you in the group kvm?)%s", err, slow)}
	}
	q, err := d.qemu()
	if err == nil {
		err = q.probe(vm.AccelKVM)
	}
	if err != nil {
		return accelerator{vm.AccelTCG, fmt.Sprintf("a test guest does not run on KVM (%v)%s", err, slow)}
	}
	return accelerator{vm.AccelKVM, "hardware virtualization (KVM)"}
}

// probeTime bounds the probe guest, which needs some 50 ms.
const probeTime = 3 * time.Second

// probe runs a guest of two instructions, its firmware being the whole program, and returns nil when it has
// answered.
func (q *installation) probe(accel string) error {
	const (
		firmwareSize = 64 << 10
		exitPort     = 0xf4
		answer       = 0x2a
		exitStatus   = answer<<1 | 1 // how isa-debug-exit makes a status of it
	)
	image := make([]byte, firmwareSize)
	// The processor starts 16 bytes below the end of the firmware.
	copy(image[firmwareSize-16:], []byte{
		0xb0, answer, // mov al, answer
		0xe6, exitPort, // out exitPort, al
		0xf4, 0xeb, 0xfd, // hlt; jmp to it
	})
	f, err := boundedFile(firmwareSize)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.WriteAt(image, 0); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), probeTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, q.binary, "-machine", "microvm", "-accel", accel, "-m", "16M",
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-bios", fdPath(3),
		"-device", fmt.Sprintf("isa-debug-exit,iobase=%#x,iosize=1", exitPort))
	cmd.ExtraFiles = []*os.File{f}
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("no answer within %v", probeTime)
	case errors.As(err, &exit) && exit.ExitCode() == exitStatus:
		return nil
	case err == nil:
		return errors.New("it ended without an answer")
	default:
		return fmt.Errorf("%w: %.200s", err, out)
	}
}
