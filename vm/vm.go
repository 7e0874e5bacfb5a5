// Package vm is what cradle asks of a virtual machine monitor, and nothing more.
//
// A Driver turns a Config into a running VM. Config is plain data: Check looks at all of it before any side
// effect. What not every monitor can do is a small interface of its own (DiskPlugger, Pauser, …) that a caller
// finds by type assertion; package vm/vmtest checks whatever a driver offers.
package vm

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"sync"
	"time"
)

// Sentinels, to be found with errors.Is.
var (
	ErrInvalid  = errors.New("invalid VM configuration")
	ErrExited   = errors.New("the virtual machine monitor has exited")
	ErrNotFound = errors.New("not found")
)

// Accelerators a Config may ask for.
const (
	AccelAuto = "auto" // kvm where a probe guest runs on it, else tcg
	AccelKVM  = "kvm"
	AccelTCG  = "tcg"
)

// Limits of a Config.
const (
	MinMemory = 48 << 20
	MaxMemory = 16 << 40
	MaxCPUs   = 64
	// MinCodeCache is the least Config.CodeCache; with less, little else is done than translating again.
	MinCodeCache = 8 << 20
	// MaxNICs is how many network interfaces a VM may have: what is left of microvm's eight virtio slots.
	MaxNICs = 4
	// MaxSerial is the longest Disk.Serial: what QEMU's scsi-hd reports in VPD page 0x80.
	MaxSerial = 36
)

// Config is all a driver needs to start a VM. Paths are opened by the caller's process and handed to the
// monitor as descriptors: the monitor itself opens nothing outside Dir.
type Config struct {
	ID     string // letters, digits, '-', '_', '.'; 1 to 64
	Dir    string // existing absolute directory that belongs to this VM alone; sockets and console live there
	CPUs   int    // 1 to MaxCPUs
	Memory int64  // bytes, a multiple of 1 MiB, MinMemory to MaxMemory
	Accel  string // AccelAuto when empty

	Kernel  string   // path of a bzImage
	Initrd  string   // path of a cpio archive
	Cmdline []string // extra words for the kernel; the driver adds console, clock and its own

	Disks []Disk // present from boot on; a Disk may also be plugged later
	NICs  []NIC  // MaxNICs at most; they neither come nor go while the VM lives, and a restored VM has as many as were saved

	// UID and GID the monitor runs as, when the caller may choose (0: the caller's own).
	UID, GID uint32

	// Cgroup is an existing cgroup v2 directory the monitor is started in; empty: the caller's.
	Cgroup string

	// CodeCache bounds what a monitor that emulates the processor keeps of the guest's code in its own, in bytes, a multiple of
	// 1 MiB, MinCodeCache at least; 0: as it sees fit. What does not fit is translated again when it runs again: less of it saves
	// the host's memory and costs time. Of no effect where the processor is the host's.
	CodeCache int64

	// Savable makes a VM without disks whose state a Snapshotter can save. Only drivers that are a Restorer take it.
	Savable bool

	// Forkable makes a VM whose copies, if Forker says that there can be any, may be other users', and Forkable. Its monitor may
	// become another user: nothing of a tenant's may be in it. A copy that is Forkable may not, before it is frozen, and may have
	// a tenant's disks; nothing of a tenant's may run in it, for it is confined less than others where the caller is not root.
	Forkable bool
}

// Disk is a block device of the VM. The guest finds it by its serial. What cannot be written, as the host's file system is
// full, is the guest's error (Linux: ENOSPC); the VM goes on.
type Disk struct {
	Serial   string // 1 to MaxSerial letters and digits
	Path     string // a raw image; its size is a multiple of 512 bytes
	ReadOnly bool
}

// NIC is a network interface of the VM. Its hardware address is api.SlotMAC of its index in Config.NICs, always: guests
// restored from one state find their interfaces by it, and the agent then sets the address that the endpoint was given.
// With neither TAP nor Stream it is connected to nothing: the guest sees a link, what it sends is lost.
//
// A state may be restored over NICs of other kinds than those that it was saved with, in any mixture.
type NIC struct {
	TAP    string // name of an existing TAP device without IFF_MULTI_QUEUE, to which nobody else is attached; the VMM gets its descriptor
	NetNS  string // path of the network namespace the TAP is in; empty: the caller's
	Stream bool   // frames go over a socket of the monitor's, which a Streamer dials: a network without privileges; excludes TAP
}

// Driver starts virtual machines of one monitor.
type Driver interface {
	// Start checks c, starts a monitor and returns once it runs; it does not wait for the guest.
	// ctx bounds the call, never the life of the VM. On error nothing is left behind.
	// Errors: ErrInvalid (wrapped, with the field); otherwise what the monitor said.
	Start(ctx context.Context, c Config) (VM, error)
	// Attach takes over a VM that an earlier process started with the same c and whose monitor still runs.
	// ErrExited when it does not.
	Attach(ctx context.Context, c Config) (VM, error)
	// End ends the VM, the hard way, whose Config.Dir is dir and of which nothing else is known, and returns when its monitor
	// has gone. The monitor need not answer. nil when there is no VM.
	End(dir string) error
	// Accel says which accelerator AccelAuto means on this machine (AccelKVM or AccelTCG) and, for a person,
	// why in one line.
	Accel(ctx context.Context) (accel, why string)
}

// VM is one running virtual machine. All methods may be called from any goroutine.
type VM interface {
	// Dial opens the byte stream to the guest's port. There is one stream per port: a second Dial breaks the
	// first. It succeeds whether or not the guest listens yet. ErrExited once the monitor has gone.
	Dial(ctx context.Context, port uint32) (net.Conn, error)
	// Wait returns when the monitor has gone and its resources are free: nil after a guest power-off,
	// Shutdown or Kill; otherwise an error that carries the monitor's last words and the console's tail.
	// Any number of callers may wait; after the end it returns at once, always the same.
	Wait() error
	// Done is closed when Wait would return at once.
	Done() <-chan struct{}
	// Shutdown asks the monitor to end now, cleanly (disks flushed); the guest is not asked. It returns when
	// the monitor has gone or ctx ends.
	Shutdown(ctx context.Context) error
	// Kill ends the monitor the hard way; idempotent; nil when it has already gone.
	Kill() error
	// Console returns the last bytes, max at most, of what the guest's console printed.
	Console(max int) []byte
	// PID of the monitor's process.
	PID() int
}

// DiskPlugger is a VM whose disks come and go while it runs.
type DiskPlugger interface {
	// Plug attaches d. On return the guest has been told; it sees the disk a little later.
	// ErrInvalid when the serial is already there.
	Plug(ctx context.Context, d Disk) error
	// Unplug detaches the disk with this serial. ErrNotFound when there is none.
	Unplug(ctx context.Context, serial string) error
}

// Pauser is a VM whose virtual CPUs can be stopped. Both are idempotent.
type Pauser interface {
	Pause(ctx context.Context) error
	Resume(ctx context.Context) error
}

// Snapshotter is a VM whose state can be saved, if it was started with Config.Savable.
type Snapshotter interface {
	// Snapshot writes the VM's memory and devices into dir, an existing empty directory, and syncs them. All disks must
	// have been unplugged. Its processors stop for good, whatever comes of it: what is left to do is Kill.
	// On error what is in dir is of no use. Errors: ErrInvalid when the VM was not Savable or has disks, ErrExited.
	Snapshot(ctx context.Context, dir string) error
}

// Checkpointer is a VM whose state can be saved while it goes on, however it was started, with its disks.
type Checkpointer interface {
	// Checkpoint saves memory, processors and devices into the host's memory. Once the processors stand still and all
	// writes to disks have reached their files it calls still, which copies the disks; then the VM goes on as it was
	// before, whatever still or the saving has come to. pause is for how long it stood still (0 when it already did; it may
	// run for an instant then, before it is saved).
	// soon, when not nil and the VM runs, is called once before that, with the VM running and most of its memory saved: the
	// moment to make what runs in the guest stand still, which is then for little longer than the VM itself does.
	// still must not call the VM's methods, soon none but Dial, and disks are neither plugged nor unplugged meanwhile.
	// The disks of c in Saved.Restore must be those of now: the same serials, over copies of the files as still saw them.
	// Errors: still's and soon's; ErrExited; what the monitor said.
	Checkpoint(ctx context.Context, soon, still func(context.Context) error) (s Saved, pause time.Duration, err error)
}

// Streamer is a VM whose interfaces may be streams.
type Streamer interface {
	// DialNIC opens the stream of the interface with this index. Each Ethernet frame, either way, comes after its length in
	// bytes as a big-endian uint32. There is one stream per interface: a second DialNIC breaks the first. While there
	// is none, what the guest sends is lost. ErrInvalid when it is no Stream; ErrExited once the monitor has gone.
	DialNIC(ctx context.Context, nic int) (net.Conn, error)
}

// NICCutter is a VM whose interfaces can be parted from their TAPs.
type NICCutter interface {
	// CutNIC parts the interface with this index from its TAP for as long as the VM lives: what its guest sends is lost. It is
	// for a TAP that somebody has deleted, which a monitor may otherwise ask for frames without end. Idempotent.
	// ErrInvalid when the interface has no TAP; ErrExited.
	CutNIC(ctx context.Context, nic int) error
}

// Restorer is a Driver that starts VMs from saved state.
type Restorer interface {
	// StateVersion names, in one line, all that saved state depends on beside the Config: the monitor's version and
	// build, the machine and processor it makes. Only state saved under the same line can be restored.
	StateVersion(ctx context.Context) (string, error)
	// Load reads what Snapshot has written to where no monitor, even one whose guest has broken out into it, can
	// change it. It takes as much of the host's memory as the guest had touched, once for all VMs restored from it.
	Load(ctx context.Context, dir string) (Saved, error)
}

// Forker is a Driver whose VMs may be Freezers.
type Forker interface {
	// Forks tells whether VMs can be frozen on this machine: those that are started with Config.Forkable, and, where the
	// caller is root, all.
	Forks(ctx context.Context) bool
}

// Freezer is a VM that others go on from without its state being saved: copies of its monitor, with all of the guest in it, that
// share memory with it until they write there.
type Freezer interface {
	// Freeze makes the VM stand still for good, what it has written to its disks being in
	// their files. A Source that goes on from there is returned, and its Close ends the VM, as Kill does. The VM's end, by
	// whatever cause, is the source's. On error all that is left to do is Kill.
	// Errors: errors.ErrUnsupported, where this monitor cannot be copied; ErrExited.
	Freeze(ctx context.Context) (Source, error)
}

// Source is what any number of VMs may be started from, also at the same time.
type Source interface {
	// Restore is Driver.Start, except that the guest goes on from where the source is. Its memory is private to it,
	// copied when written. c must have the CPUs, Memory, Accel, and as many NICs as the VM that the source was made of, of the same
	// kinds and, unless it was Forkable, with the same UID and GID, if that was frozen; its Kernel (which does not boot); and its disks: the same serials, the writable ones over copies of the
	// files as they were then (none after Snapshot). Savable, Initrd and Cmdline do not matter, nor does CodeCache after Freeze. The
	// guest runs, also one that stood still.
	// Errors: as Start; what the monitor said when it does not take the state; errors.ErrUnsupported where copies cannot be Forkable. On
	// error nothing is left behind.
	Restore(ctx context.Context, c Config) (VM, error)
	// Close forgets the source; VMs restored from it go on.
	Close() error
}

// Saved is loaded state.
type Saved interface {
	Source
	// Digest is a hex sha256 over all of it. It depends on the contents only, not on where a file has holes. For a
	// checkpoint, all of the memory is read for it, once.
	Digest() string
	// Write writes it into dir, an existing empty directory, so that Restorer.Load finds it there, and syncs it.
	// On error what is in dir is of no use.
	Write(ctx context.Context, dir string) error
}

var (
	idPattern     = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$`) })
	serialPattern = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[A-Za-z0-9]{1,36}$`) })
	wordPattern   = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[\x21-\x7e]+$`) })
)

// Check reports the first thing in c that no driver could accept, as ErrInvalid with the field's name.
func (c *Config) Check() error {
	bad := func(field, format string, args ...any) error {
		return fmt.Errorf("%w: %s: %s", ErrInvalid, field, fmt.Sprintf(format, args...))
	}
	if !idPattern().MatchString(c.ID) {
		return bad("ID", "%q is not 1 to 64 letters, digits, '-', '_' or '.'", c.ID)
	}
	if !filepath.IsAbs(c.Dir) {
		return bad("Dir", "%q is not absolute", c.Dir)
	}
	if fi, err := os.Stat(c.Dir); err != nil {
		return bad("Dir", "%v", err)
	} else if !fi.IsDir() {
		return bad("Dir", "%s is not a directory", c.Dir)
	}
	if c.CPUs < 1 || c.CPUs > MaxCPUs {
		return bad("CPUs", "%d is not between 1 and %d", c.CPUs, MaxCPUs)
	}
	if c.Memory < MinMemory || c.Memory > MaxMemory || c.Memory%(1<<20) != 0 {
		return bad("Memory", "%d bytes is not a whole number of MiB between %d MiB and %d GiB", c.Memory, MinMemory>>20, int64(MaxMemory)>>30)
	}
	switch c.Accel {
	case "", AccelAuto, AccelKVM, AccelTCG:
	default:
		return bad("Accel", "%q is none of auto, kvm, tcg", c.Accel)
	}
	if c.CodeCache != 0 && (c.CodeCache < MinCodeCache || c.CodeCache%(1<<20) != 0) {
		return bad("CodeCache", "%d bytes is neither 0 nor a whole number of MiB from %d MiB", c.CodeCache, MinCodeCache>>20)
	}
	if c.Kernel == "" {
		return bad("Kernel", "no kernel given")
	}
	for _, w := range c.Cmdline {
		if !wordPattern().MatchString(w) {
			return bad("Cmdline", "%q is not one printable word", w)
		}
	}
	seen := map[string]bool{}
	for _, d := range c.Disks {
		if err := d.Check(); err != nil {
			return err
		}
		if seen[d.Serial] {
			return bad("Disks", "serial %s is there twice", d.Serial)
		}
		seen[d.Serial] = true
	}
	if c.Savable && len(c.Disks) != 0 {
		return bad("Savable", "a VM with disks cannot be saved")
	}
	return checkNICs(c.NICs)
}

// Check reports what is wrong with d, as ErrInvalid.
func (d *Disk) Check() error {
	if !serialPattern().MatchString(d.Serial) {
		return fmt.Errorf("%w: disk serial %q is not 1 to %d letters and digits", ErrInvalid, d.Serial, MaxSerial)
	}
	if d.Path == "" {
		return fmt.Errorf("%w: disk %s has no path", ErrInvalid, d.Serial)
	}
	return nil
}
