// Package api holds what the parts of cradle say to one another: the agent protocol (this file), the
// names and paths both sides of the virtual machine's wall must agree on, and the /cradle/v1 types.
//
// # The agent protocol
//
// Host and guest share one byte stream (a virtio-serial port on QEMU). Package api/wire opens sessions on it
// and multiplexes streams over a session; every call is a stream of its own:
//
//	host → guest   one Request frame
//	guest → host   one Response frame
//	               then, for the streaming methods only, raw bytes both ways
//
// A frame is a 4-byte big-endian length followed by that many bytes, MaxMessage at most: a response's are JSON, a
// request's as package wire says. A request names its method (the Method constants); its parameters, JSON but for their
// attachment, and the response's result are the types of this file. Everything the guest sends is hostile: the host bounds it, checks it, and never acts on a name or
// path that came from the guest.
//
// # States
//
// A container is created (MethodCreate: its rootfs is mounted, nothing runs), running (MethodStart; MethodRun does
// both), stopped (its first process has exited; its other processes are killed by the kernel with the PID namespace) and
// gone (MethodDelete). Before that it may have been prepared (MethodPrepare): all is there that does not depend on whose it
// is; a MethodCreate or MethodRun that names it (CreateRequest.Prepared) makes it somebody's. An exec is running or stopped,
// and goes with its container or its own MethodDelete.
// A method asked for in another state answers CodeFailedPrecondition; an unknown id, CodeNotFound.
package api

import (
	"fmt"
	"math"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

const (
	// ProtocolVersion is compared for equality when a session opens. Raise it on every incompatible change.
	ProtocolVersion = 5

	// AgentPortName is the virtio-serial port that carries the agent protocol; in the guest it is found as
	// /sys/class/virtio-ports/*/name.
	AgentPortName = "cradle.agent.0"

	// AgentPort is the port number handed to vm.VM.Dial (a vsock port where the transport has such numbers).
	AgentPort uint32 = 1024

	// MaxMessage bounds one protocol frame, in bytes. Environment and arguments of one process are at most
	// 2 MiB on Linux (ARG_MAX); the rest is room for JSON.
	MaxMessage = 6 << 20

	// MaxOutputChunk bounds the payload of one output record, in bytes.
	MaxOutputChunk = 32 << 10

	// OutputRing is how much unacknowledged output of one process the agent keeps, in bytes, record headers
	// included. When it is full the agent stops reading the process's pipes, so the writer blocks.
	OutputRing = 1 << 20
)

// Methods of the agent. The comment gives request → result.
const (
	MethodPing      = "ping"      // none → PingResult
	MethodConfigure = "configure" // ConfigureRequest → none; before anything of the tenant runs, and after restore
	MethodPrepare   = "prepare"   // CreateRequest, as CreateRequest.Split makes it → none
	MethodCreate    = "create"    // CreateRequest → none
	MethodWait      = "wait"      // ProcessRef → ExitStatus; answers when the process has exited, at once if it has
	MethodSignal    = "signal"    // SignalRequest → none; with signal 0 StartResult, also of a process that has ended
	MethodResize    = "resize"    // ResizeRequest → none
	MethodDelete    = "delete"    // ProcessRef → none; a container is killed, unmounted and forgotten, also where its disk has no room for its files, which is an error
	MethodProcesses = "processes" // ProcessRef (Exec empty) → ProcessesResult
	MethodStats     = "stats"     // ProcessRef (Exec empty) → StatsResult
	MethodShutdown  = "shutdown"  // none → none; then the agent syncs and powers the machine off

	// MethodStdin is a streaming method: ProcessRef → none, then bytes host → guest until the host
	// half-closes, which closes the process's standard input (a terminal gets its EOF character instead).
	// One at a time per process; a second one waits until the first has gone, then continues after it. A
	// stream that breaks (rather than ends) leaves the standard input open.
	MethodStdin = "stdin"

	// MethodRun, MethodStart and MethodExec are streaming methods that start a process: a container that they make
	// (CreateRequest), one that has been made (ProcessRef, Exec empty), an exec (ExecRequest) → StartResult. What
	// follows is as with MethodOutput from offset 0, so that a process that ends soon is one call from its start to
	// its being forgotten. The process outlives the stream.
	MethodRun   = "run"
	MethodStart = "start"
	MethodExec  = "exec"

	// MethodOutput is a streaming method: OutputRequest → OutputResult, then guest → host output records (see
	// OutputHeaderSize), and host → guest acknowledgements: big-endian uint64 offsets, each saying that
	// everything before it is safe and may be forgotten. When the process has exited and all of its output has been
	// sent, an exit record (see ExitStatus.AppendRecord) follows, and the guest half-closes. The host may then
	// answer with Forget.
	// A new output stream of the same process replaces the one before.
	MethodOutput = "output"
)

// Forget, in the place of an acknowledged offset, says that the host has all there is to know of an exec, which is then
// deleted. Of a container's first process only the output is forgotten.
const Forget = math.MaxUint64

// ErrorCode classifies what an agent's error means to the caller.
type ErrorCode string

const (
	CodeInvalid            ErrorCode = "invalid"              // the request is malformed
	CodeUnsupported        ErrorCode = "unsupported"          // asked for by name, not done here
	CodeNotFound           ErrorCode = "not_found"            // no such container or exec
	CodeExists             ErrorCode = "exists"               // the id is taken
	CodeFailedPrecondition ErrorCode = "failed_precondition"  // not in this state
	CodeCommandNotFound    ErrorCode = "command_not_found"    // docker's exit code 127
	CodeCommandNotRunnable ErrorCode = "command_not_runnable" // docker's exit code 126
	CodeInternal           ErrorCode = "internal"
)

// Error is the failure half of a Response. Message is one sentence for a person and, from a guest, untrusted.
type Error struct {
	Code    ErrorCode `json:"code"`
	Message string    `json:"message"`
}

func (e *Error) Error() string { return e.Message }

// Errorf makes an Error as fmt.Errorf makes an error.
func Errorf(code ErrorCode, format string, args ...any) *Error {
	return &Error{Code: code, Message: fmt.Errorf(format, args...).Error()}
}

// PingResult tells how the guest is.
type PingResult struct {
	Protocol    int    `json:"protocol"`    // ProtocolVersion of the agent
	Kernel      string `json:"kernel"`      // uname -r
	UptimeNanos int64  `json:"uptimeNanos"` // CLOCK_BOOTTIME now
	ReadyNanos  int64  `json:"readyNanos"`  // CLOCK_BOOTTIME when the agent first listened
}

// ConfigureRequest gives a fresh or restored guest its identity. The zero value of a field leaves it as it is.
type ConfigureRequest struct {
	Hostname   string `json:"hostname,omitempty"`
	UnixNanos  int64  `json:"unixNanos,omitempty"`  // CLOCK_REALTIME to set
	Seed       []byte `json:"seed,omitempty"`       // credited to the kernel's RNG, which is then reseeded; 32 to 512 bytes
	MachineID  string `json:"machineId,omitempty"`  // 32 hex digits
	KernelArgs string `json:"kernelArgs,omitempty"` // reserved; must be empty
	// Token, 16 bytes, is what later sessions open with (package wire): guests restored from one template, which
	// knew another one, then share no secret. The session that says so goes on.
	Token []byte `json:"token,omitempty"`
}

// Disk names a block device of the guest by the serial number that the host gave it (vm.Disk.Serial).
type Disk struct {
	Serial string `json:"serial"`
	FSType string `json:"fsType"` // "erofs" or "ext4"
}

// Rootfs says what a container's root directory is made of.
type Rootfs struct {
	// Layers are read-only filesystems, the image's lowest layer first; at least one, at most 500.
	Layers []Disk `json:"layers"`
	// Upper is the writable filesystem that takes the changes; nil means a tmpfs in the guest's memory.
	// The agent keeps the overlay's upper and work directories in the subdirectories "upper" and "work".
	Upper *Disk `json:"upper,omitempty"`
}

// CreateRequest makes a container: mounts its root and prepares its namespaces; nothing of it runs yet.
type CreateRequest struct {
	ID     string `json:"id"`
	Rootfs Rootfs `json:"rootfs"`
	// Spec is the OCI runtime spec (Linux). Root.Path is ignored, Root.Readonly is honoured. Namespaces:
	// pid, mount, ipc, uts, cgroup are always new; network is the guest's own. The agent refuses with
	// CodeUnsupported, by name, whatever it would otherwise have to ignore.
	// Mount types done: tmpfs, proc, sysfs, devpts, mqueue, cgroup, cgroup2, bind of guest-made sources
	// under GuestFiles and (with MountImageVolume) of image volumes.
	Spec *specs.Spec `json:"spec"`
	// User is docker's user[:group], names or numbers, resolved against the image's own /etc/passwd and
	// /etc/group. When set it overrides Spec.Process.User's uid, gid and additional gids.
	User string `json:"user,omitempty"`
	// GroupAdd are docker's --group-add, names or numbers.
	GroupAdd []string `json:"groupAdd,omitempty"`
	// Seccomp is the compiled classic BPF program (an array of struct sock_filter, little-endian) installed
	// before the process starts; empty means none. Spec.Linux.Seccomp must be nil: the host compiles. It is the
	// request's attachment.
	Seccomp []byte `json:"-"`
	// Files are written before the container starts and bind-mounted over their paths: /etc/hosts,
	// /etc/hostname, /etc/resolv.conf.
	Files []File `json:"files,omitempty"`
	// Volumes are paths of the image that are volumes: each becomes a directory outside the overlay, on the
	// upper filesystem, filled at create from what the image has there.
	Volumes []string `json:"volumes,omitempty"`
	// VolumeDisks are volumes on disks of their own, which outlive the container.
	VolumeDisks []VolumeDisk `json:"volumeDisks,omitempty"`
	// Init runs a minimal init (docker's --init) as the container's PID 1: it forwards signals and reaps.
	Init bool `json:"init,omitempty"`
	// StdinOpen: the process gets a pipe (or the terminal) fed by MethodStdin; otherwise /dev/null.
	StdinOpen bool `json:"stdinOpen,omitempty"`
	// Prepared names a prepared container that becomes this one. The request is then the second half of Split.
	Prepared string `json:"prepared,omitempty"`
	// Park, of a MethodPrepare, makes the container's first process, too, with the filter if there is one: nothing of it is told
	// what to run before MethodStart or MethodRun. It is for processes with neither a terminal nor Init nor no_new_privs, and
	// with filters that let pass what comes between the filter and the program.
	Park bool `json:"park,omitempty"`
	// Read, of a MethodPrepare, are paths in the container: of the first that is a file, which is likely to be what is run, 8 MiB are read.
	Read []string `json:"read,omitempty"`
	// Configure is applied first, as MethodConfigure does.
	Configure *ConfigureRequest `json:"configure,omitempty"`
	// Network is applied next, as MethodNetwork does; nil leaves the interfaces as they are. That of a MethodPrepare has no
	// addresses yet.
	Network *NetworkRequest `json:"network,omitempty"`
}

// VolumeDisk is a volume on a disk of its own. Its files are in the directory "data" of the disk's file system, so that what else
// the file system has at its root is not seen.
type VolumeDisk struct {
	Disk
	Path string `json:"path"` // absolute, in the container
	// ReadOnly: the container cannot write to it. The file system is mounted writable all the same.
	ReadOnly bool `json:"readOnly,omitempty"`
	// NoCopy: an empty volume is not filled with what the image has at Path.
	NoCopy bool `json:"noCopy,omitempty"`
}

// Attachment returns the bytes of the request that travel beside its JSON.
func (r CreateRequest) Attachment() []byte { return r.Seccomp }

// Attach puts the attachment in its place.
func (r *CreateRequest) Attach(b []byte) { r.Seccomp = b }

// File is a small file that the host gives a container.
type File struct {
	Path string `json:"path"` // absolute, in the container
	Data []byte `json:"data"` // 1 MiB at most
	Mode uint32 `json:"mode"` // permission bits
	UID  uint32 `json:"uid,omitempty"`
	GID  uint32 `json:"gid,omitempty"`
	// ReadOnly: the container cannot write to it.
	ReadOnly bool `json:"readOnly,omitempty"`
}

// ExecRequest starts another process in a running container. It is as the container's first process, filter, limits and
// all, but for what is said here.
type ExecRequest struct {
	ID           string                   `json:"id"`
	Exec         string                   `json:"exec"`
	Args         []string                 `json:"args"`
	Env          []string                 `json:"env"`                    // all of it; nil: the first process's
	Cwd          string                   `json:"cwd,omitempty"`          // empty: the first process's
	User         string                   `json:"user,omitempty"`         // as CreateRequest.User; empty: the first process's
	Capabilities *specs.LinuxCapabilities `json:"capabilities,omitempty"` // nil: the first process's
	Terminal     bool                     `json:"terminal,omitempty"`
	ConsoleSize  *specs.Box               `json:"consoleSize,omitempty"` // of the terminal, when it is known
	StdinOpen    bool                     `json:"stdinOpen,omitempty"`   // as CreateRequest.StdinOpen
}

// ProcessRef names a container's first process (Exec empty) or an exec.
type ProcessRef struct {
	ID   string `json:"id"`
	Exec string `json:"exec,omitempty"`
}

// StartResult answers MethodRun, MethodStart and MethodExec, and MethodSignal with signal 0.
type StartResult struct {
	PID int `json:"pid"` // in the guest's first PID namespace
	// CreateNanos is how long MethodRun took to make the container, before it started its process: a hint.
	CreateNanos int64 `json:"createNanos,omitempty"`
}

// SignalRequest sends a signal.
type SignalRequest struct {
	ProcessRef
	Signal int  `json:"signal"`        // 0 only asks whether the agent knows the process
	All    bool `json:"all,omitempty"` // to every process of the container
}

// ResizeRequest sets a terminal's size.
type ResizeRequest struct {
	ProcessRef
	Width  uint16 `json:"width"`
	Height uint16 `json:"height"`
}

// OutputRequest opens the output of a process from an offset in its journal: the concatenation of its records,
// headers included. An offset already acknowledged and forgotten answers CodeFailedPrecondition or, with Left, begins
// with the oldest record that is left.
type OutputRequest struct {
	ProcessRef
	Offset uint64 `json:"offset"`
	Left   bool   `json:"left,omitempty"`
}

// OutputResult says where the output begins.
type OutputResult struct {
	Offset uint64 `json:"offset"`
}

// Process is one row of ProcessesResult.
type Process struct {
	PID     int    `json:"pid"` // in the guest's first PID namespace
	PPID    int    `json:"ppid"`
	UID     uint32 `json:"uid"`
	Command string `json:"command"` // argv joined by spaces, or [comm]
	CPUTime int64  `json:"cpuTimeNanos"`
	Start   int64  `json:"startUnixNanos"`
	TTY     string `json:"tty"`
}

// ProcessesResult lists the processes of a container, 4,096 at most.
type ProcessesResult struct {
	Processes []Process `json:"processes"`
}

// StatsResult is the guest's own account of a container, from its cgroup. Bytes and nanoseconds, cumulative
// where not said otherwise.
type StatsResult struct {
	CPUNanos        uint64 `json:"cpuNanos"`
	CPUUserNanos    uint64 `json:"cpuUserNanos"`
	CPUSystemNanos  uint64 `json:"cpuSystemNanos"`
	MemoryBytes     uint64 `json:"memoryBytes"` // now
	MemoryLimit     uint64 `json:"memoryLimit"` // now; 0: none
	MemoryFile      uint64 `json:"memoryFile"`  // inactive file cache, now
	Pids            uint64 `json:"pids"`        // now
	PidsLimit       uint64 `json:"pidsLimit"`   // now; 0: none
	BlockReadBytes  uint64 `json:"blockReadBytes"`
	BlockWriteBytes uint64 `json:"blockWriteBytes"`
	NetRxBytes      uint64 `json:"netRxBytes"`
	NetTxBytes      uint64 `json:"netTxBytes"`
	OnlineCPUs      int    `json:"onlineCpus"`
}
