// Package guestapi is what the test guest and the conformance suite say to one another, over api/wire.
package guestapi

// Methods of the test guest. The comment gives request → result. api.MethodPing is there as well.
const (
	MethodInfo       = "vmtest.info"       // none → Info
	MethodDisks      = "vmtest.disks"      // none → []Disk
	MethodAwait      = "vmtest.await"      // Await → none, once it is so
	MethodRead       = "vmtest.read"       // Extent (Data empty) → Extent with Data
	MethodWrite      = "vmtest.write"      // Extent → none; synced
	MethodDiscard    = "vmtest.discard"    // Extent (Data empty) → none
	MethodPrint      = "vmtest.print"      // Print → none
	MethodKeep       = "vmtest.keep"       // Print → Print: what was kept before
	MethodCount      = "vmtest.count"      // none → int64, which grows all the time, as the guest writes to memory, once it has been asked for
	MethodChurn      = "vmtest.churn"      // none → Churn; memory is written to from the first call on
	MethodProcessors = "vmtest.processors" // none → []Processor, by number, once all have worked and slept
	MethodFill       = "vmtest.fill"       // int64 → none; so many bytes of memory are written to then, and those of an earlier call free
	MethodEcho       = "vmtest.echo"       // none → none, then every byte comes back until the host half-closes
	MethodPanic      = "vmtest.panic"      // none → none, then the kernel panics
	MethodPowerOff   = "vmtest.poweroff"   // none → none, then the machine powers off
	MethodNICs       = "vmtest.nics"       // none → []NIC
	MethodReset      = "vmtest.reset"      // none → none, then the machine restarts

	MethodSendFrame    = "vmtest.sendframe"    // Frame → none; the interface is up then
	MethodReceiveFrame = "vmtest.receiveframe" // Frame (Data empty) → Frame with Data, the next of type FrameType
)

// Info is the size of the machine as its kernel sees it.
type Info struct {
	MemoryBytes int64    `json:"memoryBytes"` // MemTotal: somewhat less than the machine has
	CPUs        int      `json:"cpus"`        // online
	Cmdline     []string `json:"cmdline"`
	PID         int      `json:"pid"`
}

// Disk is one SCSI disk.
type Disk struct {
	Serial   string `json:"serial"`
	Size     int64  `json:"size"` // bytes
	ReadOnly bool   `json:"readOnly"`
	Rotates  bool   `json:"rotates"`
}

// Await waits until the disk is there, or gone.
type Await struct {
	Serial  string `json:"serial"`
	Present bool   `json:"present"`
}

// Extent is a piece of a disk, in bytes; a multiple of 4096 for discards.
type Extent struct {
	Serial string `json:"serial"`
	Offset int64  `json:"offset"`
	Length int64  `json:"length"`
	Data   []byte `json:"data,omitempty"`
}

// NIC is one network interface.
type NIC struct {
	Name string `json:"name"`
	MAC  string `json:"mac"`
}

// Churn is what a guest that writes to page after page of its memory has seen of them.
type Churn struct {
	Pages  int64 `json:"pages"`
	Writes int64 `json:"writes"` // one page each, in turn
	Wrong  int64 `json:"wrong"`  // pages that did not hold what was last written to them
}

// What each processor does for MethodProcessors, so many times: it counts, and then sleeps, for so many nanoseconds.
const (
	Sleeps     = 10
	SleepNanos = 20_000_000
)

// Processor is what one of the machine's has done.
type Processor struct {
	Rounds     int64    `json:"rounds"`     // how far it has counted
	SleptNanos int64    `json:"sleptNanos"` // the shortest sleep
	Random     []uint64 `json:"random"`     // numbers of its own instructions' (RDRAND, RDSEED of x86), 0 where they gave none; empty without
}

// FrameType is the Ethernet type of frames that are received: one that is free for experiments.
const FrameType = 0x88b5

// Frame is an Ethernet frame, header included, through the interface that has this hardware address.
type Frame struct {
	MAC  string `json:"mac"`
	Data []byte `json:"data,omitempty"`
	// Again is how many times more it is sent.
	Again int `json:"again,omitempty"`
}

// Print is a text: to write to the console, to keep, or an address.
type Print struct {
	Text string `json:"text"`
}

// Silent, as a word of the kernel's command line, makes a guest that never opens the agent's port.
const Silent = "vmtest.silent"
