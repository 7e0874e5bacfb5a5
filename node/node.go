// Package node is the daemon without its protocols: the registry of containers and their sandboxes, their state on
// disk, their logs and events. It implements dockerapi.Backend.
//
// # Where things are
//
//	Root/state.db              bbolt: one record per container, and
//	Root/state-BOOT.db         for those that are removed at their end (store.go)
//	Root/containers/ID/        scratch.ext4 (the container's writable disk), log/ (its output), execs/ (one file each),
//	                           state/ (what a hibernated one goes on from)
//	Root/ready/                the writable disks of VMs that the pool has prepared
//	Root/warm/KEY/             a warm image (warm.go)
//	Run/s/ID12/                the runtime directory of the container's VM, while there is one
//
// # One container's life
//
// A container's lifecycle changes (start, remove, rename) take its op lock one at a time; mu guards its fields and
// is never held across anything slow. Each start makes a run: a VM, the goroutine that follows it (follow.go),
// and the end of both. A record that names a sandbox means that a VM may exist: it is written before the VM is
// made and cleared after it has gone, so that a daemon that starts knows what an earlier one left. A VM of the pool's is
// nobody's, and ended by a daemon that starts, until the record of a running container names it.
package node

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	cerrdefs "github.com/containerd/errdefs"

	"github.com/cradlevm/cradle/guestos"
	"github.com/cradlevm/cradle/image"
	"github.com/cradlevm/cradle/network"
	"github.com/cradlevm/cradle/node/runspec"
	"github.com/cradlevm/cradle/pool"
	"github.com/cradlevm/cradle/snapshot"
	"github.com/cradlevm/cradle/vm"
	"github.com/cradlevm/cradle/volume"
)

// Options of Open.
type Options struct {
	Root    string // images, containers, state
	Run     string // sockets and runtime files; short, for unix sockets' paths are
	Version string // of the program, for version and info
	Driver  vm.Driver
	Guest   guestos.Guest
	Images  image.Store
	Log     *slog.Logger
	// Pool starts VMs from templates where it can, and keeps some ready as PoolSettings say, or PoolChange has said since. Without it every container
	// boots its VM. With PoolKeep, those for containers without limits are ready before anybody asked, and stay.
	Pool         bool
	PoolSettings pool.Settings
	PoolKeep     bool
	// Networks connects containers that do not say otherwise to the network "bridge", and makes others. Without it, or
	// where it cannot be done, there is only the network "none".
	Networks bool
	// Streams makes the networks as for an ordinary user, whoever the daemon is.
	Streams bool
	// CostOf says what a monitor's process costs the host; nil asks Linux.
	CostOf func(pid int) (pool.Cost, error)
}

// Node is the daemon's state. All methods may be called from any goroutine.
type Node struct {
	options    Options
	store      *store
	pool       *pool.Pool // nil when it could not be opened, or is not wanted
	scratch    volume.Scratch
	volumes    *volume.Store
	networks   *network.Networks // nil when they could not be opened, or are not wanted: noNetworks says why
	noNetworks error
	settings   runspec.Settings
	key        snapshot.Key // signs saved containers
	warmth     *warmth
	unraised   atomic.Bool // see raises
	shelf      *shelf
	events     *eventLog
	timings    *timings
	gate       *gate // starts go through it
	started    time.Time
	unsaved    *unsaved
	setting    sync.Mutex // held by who changes the settings of the pool

	// running counts the goroutines that follow VMs; ctx ends them.
	ctx     context.Context
	stop    context.CancelFunc
	running sync.WaitGroup

	lendMu sync.Mutex
	lent   map[string]lending // by volume

	mu         sync.Mutex
	closed     bool              // nothing new is added to running
	containers map[string]*ctr   // by id
	names      map[string]string // name → id; reserved before the container exists
	execs      map[string]*exec  // by id
	uids       map[uint32]int    // VM user ids in use: by how many
	leaving    map[*run]struct{} // whose containers have been removed, and whose VMs are being ended
}

// firstUID is where the user ids of VMs begin when the daemon whose state is below root runs as root: above everything that distributions,
// systemd and containers hand out (systemd's doc/UIDS-GIDS: 1879048192 to 2147483647 is unused). Each daemon of a host has ids of its own, but for one in a
// thousand: processes of one user can send each other signals, and look into each other.
func firstUID(root string) uint32 {
	const daemons, each = 1000, 100_000
	return 1_900_000_000 + crc32.ChecksumIEEE([]byte(root))%daemons*each
}

// Open reads the state below o.Root and takes up what an earlier daemon left: running VMs are found again, ended
// ones are cleaned up.
func Open(ctx context.Context, o Options) (*Node, error) {
	for _, dir := range []string{filepath.Join(o.Root, "containers"), filepath.Join(o.Root, readyName), filepath.Join(o.Run, "s")} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return nil, fmt.Errorf("open node: %w", err)
		}
	}
	st, err := openStore(o.Root)
	if err != nil {
		return nil, err
	}
	n := &Node{
		options: o, store: st, scratch: volume.Scratch{Dir: filepath.Join(o.Root, "scratch")},
		settings: runspec.Settings{Arch: runtime.GOARCH, MaxCPUs: runtime.NumCPU(), Filters: runspec.NewFilters()},
		events:   newEventLog(), timings: newTimings(), gate: newGate(), started: time.Now(),
		containers: map[string]*ctr{}, names: map[string]string{}, execs: map[string]*exec{}, uids: map[uint32]int{},
		leaving: map[*run]struct{}{}, lent: map[string]lending{}, unsaved: newUnsaved(),
	}
	if n.volumes, err = volume.OpenStore(filepath.Join(o.Root, "volumes"), &n.scratch); err != nil {
		return nil, errors.Join(err, st.Close())
	}
	key, replaced, err := snapshot.OpenKey(filepath.Join(o.Root, "snapshot.key"))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open node: %w", err), st.Close())
	}
	if n.key = key; replaced {
		o.Log.Error("snapshot.key was damaged, and is another one now: what was saved before, hibernated containers included, is not believed any more", "root", o.Root)
	}
	n.timings.metrics.registry.MustRegister(newPoolMetrics(n.PoolStatus))
	if n.warmth, err = openWarmth(filepath.Join(o.Root, "warm")); err != nil {
		return nil, errors.Join(err, st.Close())
	}
	if n.shelf, err = openShelf(filepath.Join(o.Root, "snapshots")); err != nil {
		return nil, errors.Join(err, st.Close())
	}
	n.ctx, n.stop = context.WithCancel(context.WithoutCancel(ctx))
	n.running.Add(1)
	go n.saveLater()
	if err := n.recover(ctx); err != nil {
		return nil, errors.Join(err, n.Close())
	}
	return n, nil
}

// Close leaves the VMs running and forgets them; the next Open finds them again.
func (n *Node) Close() error {
	n.mu.Lock()
	n.closed = true
	n.mu.Unlock()
	n.stop()
	n.running.Wait()
	n.saveAgain()
	n.closeDesks()
	n.warmth.close()
	var ended error
	if n.pool != nil {
		ended = n.pool.Close()
	}
	if n.networks != nil {
		ended = errors.Join(ended, n.networks.Close())
	}
	for _, c := range n.all() {
		c.closeLog()
		c.mu.Lock()
		if c.run != nil {
			c.run.vm.Disconnect()
		}
		c.mu.Unlock()
	}
	return errors.Join(ended, n.store.Close())
}

// enter keeps Close waiting until running.Done is called; it fails when the node is being closed.
func (n *Node) enter() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return errClosing
	}
	n.running.Add(1)
	return nil
}

var errClosing = &classed{"the daemon is ending", cerrdefs.ErrUnavailable}

// Busy reports whether anything would be missed if the daemon ended now: a container that runs or is about to, or a
// warm image in the making.
func (n *Node) Busy() bool {
	if n.warmth.busy() {
		return true
	}
	for _, c := range n.all() {
		if c.isActive() {
			return true
		}
	}
	return false
}

// Reset kills and removes every container, and waits for the VMs of those that have been removed before.
func (n *Node) Reset(ctx context.Context) error {
	var errs []error
	for _, c := range n.all() {
		if err := n.ContainerRemove(ctx, c.id, true, true); err != nil && !cerrdefs.IsNotFound(err) {
			errs = append(errs, err)
		}
	}
	n.mu.Lock()
	leaving := slices.Collect(maps.Keys(n.leaving))
	n.mu.Unlock()
	for _, r := range leaving {
		<-r.torn // an end of a VM has its limits
	}
	if n.networks != nil {
		errs = append(errs, n.networks.Reset(ctx))
	}
	return errors.Join(errs...)
}

// all returns the containers there are now, in no order.
func (n *Node) all() []*ctr {
	n.mu.Lock()
	defer n.mu.Unlock()
	out := make([]*ctr, 0, len(n.containers))
	for _, c := range n.containers {
		out = append(out, c)
	}
	return out
}

// find returns the container of this name, id, or unambiguous id prefix.
func (n *Node) find(name string) (*ctr, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if c := n.containers[name]; c != nil {
		return c, nil
	}
	if id := n.names[strings.TrimPrefix(name, "/")]; id != "" && n.containers[id] != nil {
		return n.containers[id], nil
	}
	var found *ctr
	for id, c := range n.containers {
		if name == "" || !strings.HasPrefix(id, name) {
			continue
		}
		if found != nil {
			return nil, fmt.Errorf("multiple IDs found with provided prefix: %s: %w", name, cerrdefs.ErrInvalidArgument)
		}
		found = c
	}
	if found == nil {
		return nil, notFound("No such container: %s", name)
	}
	return found, nil
}

// takeUID reserves a user id for a VM: 0 when the daemon may not choose.
func (n *Node) takeUID() uint32 {
	if os.Geteuid() != 0 {
		return 0
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for uid := firstUID(n.options.Root); ; uid++ {
		if n.uids[uid] == 0 {
			n.uids[uid] = 1
			return uid
		}
	}
}

// shareUID reserves a user id that a VM already has for another.
func (n *Node) shareUID(uid uint32) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.uids[uid]++
}

// giveUID returns a user id for one of the VMs that have it.
func (n *Node) giveUID(uid uint32) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.uids[uid]--; n.uids[uid] <= 0 {
		delete(n.uids, uid)
	}
}

// classed is an error with docker's words and a class of errdefs: the class does not show in the text.
type classed struct {
	text  string
	class error
}

func (e *classed) Error() string { return e.text }
func (e *classed) Unwrap() error { return e.class }

func notFound(format string, args ...any) error {
	return &classed{fmt.Sprintf(format, args...), cerrdefs.ErrNotFound}
}

func conflict(format string, args ...any) error {
	return &classed{fmt.Sprintf(format, args...), cerrdefs.ErrConflict}
}

func invalid(format string, args ...any) error {
	return &classed{fmt.Sprintf(format, args...), cerrdefs.ErrInvalidArgument}
}

func unsupported(format string, args ...any) error {
	return &classed{fmt.Sprintf(format, args...), cerrdefs.ErrNotImplemented}
}
