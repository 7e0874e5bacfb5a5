// Package pool makes sandboxes start in tens of milliseconds: it saves a booted one of each size as a template, starts
// others from it, and keeps some of them ready.
//
// # Templates
//
// A template is made once per guest, monitor, processor and size (package vm's saved state, with a manifest and its MAC),
// the first time that a sandbox of this size was wanted and had to boot. It is loaded, and checked as a whole, at the first use;
// from then on it lies in this process's memory, sealed, so that no file has to be checked at each restore and no
// monitor can change it. A template that is damaged, or that a restore fails with, is thrown away and made again.
//
// # Parents
//
// Where the monitor can be copied (vm.Forker: software emulation), one sandbox restored from the template is warmed, by running
// containers that do nothing, and frozen (parent.go). All others of the size are copies of it: they share its memory, the
// translated code above all, until they write there, and are there in a few milliseconds. Elsewhere each is restored and warmed.
//
// # Ready sandboxes
//
// A ready one is warm and has an identity of its own (sandbox.Restore). Take gives it away; it never comes back. How many there are follows demand (demand.go) within Settings and the
// host's memory (fill.go). As many are made at a time as there are processors; while a start is in progress (Begin)
// only one, and only of a size that has run out, so that no user waits for somebody else's. Templates are made while
// there is no start, by processes that give way to others. Those of a size that nobody has wanted for a while are
// ended, and their template is let go of.
//
// # Prepared ones
//
// Some of the ready ones are prepared (prepare.go) for the images and configurations that were wanted lately: the container's root
// is there before anybody has asked for it. Such a one is only ever given to who wants just that. Copies need a parent that is
// prepared so, with a writable disk that each copy gets a copy of.
//
// Take with nothing ready copies, or restores, on the spot; without a template it says no, and the caller boots.
//
// # Directories
//
// Each sandbox has its runtime directory below Options.Run. Until Take has returned it is the pool's; after a crash it is
// nobody's: whoever opens the pool's Run first ends the VMs of directories that no record names (Sweep).
package pool

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/cradlevm/cradle/erofs"
	"github.com/cradlevm/cradle/guestos"
	"github.com/cradlevm/cradle/sandbox"
	"github.com/cradlevm/cradle/vm"
)

// Numbers of the pool.
const (
	// believedCost (bytes of the host's memory) is taken for what a ready one costs until one was measured: 30 to 55 MiB are
	// usual under software emulation. believedTemplate is the same for a template. fallbackMemory is the budget where the host does not tell its size.
	believedCost     = 64 << 20
	believedTemplate = 96 << 20
	fallbackMemory   = 1 << 30
	// leastAvailable (bytes) of the host's memory stay available at least.
	leastAvailable = 256 << 20
	// lookAgain is how often the pool looks for what no event tells: time that has gone by, memory that is short.
	lookAgain = 5 * time.Second

	// idleAfter is how long after the last Take a size is still in demand.
	idleAfter = 10 * time.Minute
	// grace is how long after the end of a start the pool still leaves the processors alone: what was started has
	// something to do.
	grace = 100 * time.Millisecond
	// maxFailures in a row, of making templates or sandboxes of a size, end the attempts for failurePause.
	maxFailures  = 3
	failurePause = 5 * time.Minute
	// takeLimit bounds a restore, once it is its turn; then the caller boots.
	takeLimit = 20 * time.Second
)

// Class is a size of sandboxes.
type Class struct {
	CPUs   int   `json:"cpus"`
	Memory int64 `json:"memory"` // bytes
}

// Options of Open.
type Options struct {
	Dir string // of templates, on a disk; made
	Run string // existing; a directory for each sandbox is made in it
	// Scratch is an existing directory for the writable disks of prepared sandboxes, which those who take them move to a place
	// of their own on the same file system. What a crash leaves in it is the caller's to remove.
	Scratch string
	Driver  vm.Driver
	Guest   guestos.Guest
	Settings
	// Usual is the size that is wanted without anybody having asked for one: from the beginning and for good with Keep,
	// else only by Refill.
	Usual Class
	Keep  bool
	Warm  Warm
	Host  Host
	Now   func() time.Time // nil: time.Now
	// TakeUID reserves a user id for a VM, GiveUID returns it.
	TakeUID func() uint32
	GiveUID func(uint32)
	// NICs is how many network interfaces each VM has. MakeNICs makes so many that are connected to nothing yet, DropNICs
	// removes them when the VM has gone.
	NICs     int
	MakeNICs func(count int) ([]vm.NIC, error)
	DropNICs func([]vm.NIC) error
	Log      *slog.Logger
}

// Pool keeps sandboxes ready. All methods may be called from any goroutine.
type Pool struct {
	o     Options
	store *store
	forks bool   // sandboxes can be copied
	layer string // path of the image to warm with

	ctx  context.Context
	stop context.CancelFunc
	work sync.WaitGroup
	wake chan struct{}
	// restoring bounds restores at the same time: more would only take each other's time.
	restoring chan struct{}

	mu        sync.Mutex
	settings  Settings
	classes   map[Class]*class
	starting  int       // starts in progress
	started   time.Time // when the last start ended
	providing bool      // a template is being loaded or made
}

// class is what the pool has of a size.
type class struct {
	Class
	loading  sync.Mutex // held by who loads or makes the template
	template *template  // nil: not loaded
	parent   *parent    // nil: there is none
	unforked bool       // it could not be frozen
	barren   bool       // its copies cannot be parents
	wanted   time.Time  // the last Take
	demand   demand
	failures int       // in a row
	failed   time.Time // the last of them
	ready    []*Ready
	wishes   []*wish // what was wanted of them, the last one first
	filling  int     // being made, the prepared ones included
	epoch    int     // counts drains
	private  int64   // what the one made last has of the host's memory for itself, bytes; 0: none was made yet
	shared   int64   // what the last template took, bytes; 0: there was none yet

	taken, takenPrepared, restored, missed uint64 // as ClassStatus has them
}

// Ready is a sandbox that was taken, or can be.
type Ready struct {
	Sandbox *sandbox.Sandbox
	// Config is what the caller must store to find the sandbox again (sandbox.Attach).
	Config sandbox.Config
	// Warm tells one that was ready from one made on the spot.
	Warm bool
	// Prepared is what it is prepared with, nil when it is not; Scratch is then the path of its writable disk, and PreparedAs the
	// id of the container in it that is prepared.
	Prepared   *Preparation
	PreparedAs string
	Scratch    string

	private int64 // as class has it
}

// Open opens the pool below o.Dir. Errors: a driver that cannot restore; those of the disk.
func Open(ctx context.Context, o Options) (*Pool, error) {
	if err := o.Settings.Check(); err != nil {
		return nil, fmt.Errorf("open pool: %w", err)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	o.Host = o.Host.withDefaults()
	s, err := openStore(ctx, o.Dir, o.Driver, o.Guest.Digest, o.NICs)
	if err != nil {
		return nil, fmt.Errorf("open pool: %w", err)
	}
	form, name := erofs.TarIndex, layerName
	if !o.Guest.Erofs512 {
		form, name = erofs.Full, "plain-"+layerName
	}
	p := &Pool{
		o: o, store: s, layer: filepath.Join(o.Dir, name), classes: map[Class]*class{}, wake: make(chan struct{}, 1),
		restoring: make(chan struct{}, 2*runtime.NumCPU()), settings: o.Settings,
	}
	if f, ok := o.Driver.(vm.Forker); ok {
		p.forks = f.Forks(ctx)
	}
	if o.Keep {
		p.class(o.Usual).wanted = p.now()
		p.started = p.now()
		time.AfterFunc(grace, p.nudge)
	}
	if err := makeLayer(p.layer, form); err != nil {
		return nil, fmt.Errorf("open pool: %w", err)
	}
	p.ctx, p.stop = context.WithCancel(context.WithoutCancel(ctx))
	p.work.Go(p.run)
	return p, nil
}

// Close ends all ready sandboxes. What was taken stays.
func (p *Pool) Close() error {
	p.stop()
	p.work.Wait()
	p.mu.Lock()
	var all []*Ready
	for _, c := range p.classes {
		all = append(all, c.ready...)
		c.ready = nil
		for _, parent := range c.parents() {
			p.retire(parent)
		}
		c.parent, c.wishes = nil, nil
		if c.template != nil {
			c.template.saved.Close()
			c.template = nil
		}
	}
	p.mu.Unlock()
	var errs []error
	for _, r := range all {
		errs = append(errs, p.destroy(r))
	}
	return errors.Join(errs...)
}

// Begin says that a start is in progress, until end is called: the pool does not compete with it for the processors.
func (p *Pool) Begin() (end func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.starting++
	return sync.OnceFunc(func() {
		p.mu.Lock()
		p.starting--
		p.started = p.now()
		p.mu.Unlock()
		time.AfterFunc(grace, p.nudge)
	})
}

func (p *Pool) now() time.Time { return p.o.Now() }

// nudge makes the pool look at what there is to do.
func (p *Pool) nudge() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// class returns the entry of a size. p.mu is held.
func (p *Pool) class(c Class) *class {
	if p.classes[c] == nil {
		p.classes[c] = &class{Class: c}
	}
	return p.classes[c]
}

// Take returns a sandbox of this size, which is the caller's: it has no disks, no containers, and an identity of its own
// but for its hostname. One that is prepared as wanted, which may be nil, has what that says. nil when the caller has to boot
// one itself; the reason, if it is not that there is no template yet, has been logged.
func (p *Pool) Take(ctx context.Context, size Class, wanted *Preparation) *Ready {
	c, r, from := p.take(size, wanted)
	if r != nil {
		return r
	}
	r = p.onTheSpot(ctx, c, from)
	p.mu.Lock()
	defer p.mu.Unlock()
	if r != nil {
		c.restored++
	} else {
		c.missed++
	}
	return r
}

// take counts the demand, and returns one that is ready if there is one, and else the parent to copy, if there is one. A copy that
// is prepared as wanted comes before one that is ready and is not: it takes less of the processors.
func (p *Pool) take(size Class, wanted *Preparation) (*class, *Ready, *parent) {
	p.mu.Lock()
	defer p.mu.Unlock()
	c := p.class(size)
	c.wanted = p.now()
	c.demand.add(c.wanted)
	if wanted != nil {
		p.wish(c, wanted, c.wanted)
		r := c.pick(func(r *Ready) bool { return r.key() == wanted.Key })
		if r == nil {
			r = c.pick(func(r *Ready) bool { return r.does(wanted) })
		}
		if r != nil {
			c.takenPrepared++
			p.nudge()
			return c, r, nil
		}
		if from := c.parentFor(wanted); from != nil {
			return c, nil, from
		}
	}
	r := c.pick(func(r *Ready) bool { return r.Prepared == nil })
	if r != nil {
		p.nudge()
	}
	return c, r, c.parent
}

// pick takes one that fits, nil when there is none. p.mu is held.
func (c *class) pick(fits func(*Ready) bool) *Ready {
	for i, r := range c.ready {
		if !fits(r) {
			continue
		}
		select {
		case <-r.Sandbox.Done(): // its watch is about to find out, and takes it away
		default:
			c.ready = slices.Delete(c.ready, i, i+1)
			c.taken++
			c.failures = 0
			return r
		}
	}
	return nil
}

// onTheSpot makes a sandbox for who waits for it, from a parent if one is given; nil when there is no template, or it is of no use.
func (p *Pool) onTheSpot(ctx context.Context, c *class, from *parent) *Ready {
	if from != nil {
		r, err := p.copy(ctx, c, from)
		if err == nil {
			return r
		}
		if ctx.Err() != nil || errors.As(err, new(hostError)) {
			p.o.Log.Warn("copy on the spot", "err", err)
		} else {
			p.lost(c, from, err)
		}
	}
	t, err := p.loaded(ctx, c)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			p.failed(c, "load template", err)
		}
		return nil
	}
	r, err := p.spawn(ctx, t.Class, origin{source: t.saved, token: t.Token, code: p.codeCache()})
	switch {
	case err == nil:
		p.mu.Lock()
		c.failures = 0
		p.mu.Unlock()
	case ctx.Err() != nil, errors.Is(err, context.DeadlineExceeded): // says more about the machine's load than about the template
		p.o.Log.Warn("restore on the spot", "err", err)
	default:
		p.discard(c, t, err)
	}
	return r
}

// loaded returns the template of a size, loading it if need be. fs.ErrNotExist when there is none.
func (p *Pool) loaded(ctx context.Context, c *class) (*template, error) {
	p.mu.Lock()
	t := c.template
	p.mu.Unlock()
	if t != nil {
		return t, nil
	}
	if !c.loading.TryLock() { // who holds it may take seconds to make one
		return nil, fs.ErrNotExist
	}
	defer c.loading.Unlock()
	return p.loadLocked(ctx, c)
}

// loadLocked is loaded for one who holds c.loading.
func (p *Pool) loadLocked(ctx context.Context, c *class) (*template, error) {
	p.mu.Lock()
	t := c.template
	p.mu.Unlock()
	if t != nil {
		return t, nil
	}
	t, err := p.store.load(ctx, c.Class)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) && ctx.Err() == nil {
			err = errors.Join(err, p.store.drop(c.Class))
		}
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	c.template, c.shared = t, t.size
	return t, nil
}

// discard throws away a template that a restore has failed with, unless it was the caller's patience that ended.
func (p *Pool) discard(c *class, t *template, why error) {
	if errors.Is(why, context.Canceled) {
		return
	}
	if errors.As(why, new(hostError)) {
		p.failed(c, "restore", why)
		return
	}
	p.mu.Lock()
	current := c.template == t
	if current {
		c.template = nil
		p.retire(c.parent)
		c.parent = nil
	}
	p.mu.Unlock()
	if !current {
		return
	}
	p.failed(c, "restore", errors.Join(why, p.store.drop(c.Class)))
	// Others may be restoring from it: their files are their own, and what is not in use any more is freed.
	t.saved.Close()
}

// failed counts and logs.
func (p *Pool) failed(c *class, what string, err error) {
	if p.ctx.Err() != nil {
		return
	}
	p.mu.Lock()
	c.failures++
	c.failed = p.now()
	last := c.failures >= maxFailures
	p.mu.Unlock()
	p.o.Log.Warn("the pool could not provide what it should; containers start more slowly", "reason", what, "err", err, "cpus", c.CPUs, "memory", c.Memory, "retry", !last)
}

// hostError is a failure that is not the template's: a disk that is full.
type hostError struct{ error }

func (e hostError) Unwrap() error { return e.error }

// config describes a new sandbox and makes its runtime directory.
func (p *Pool) config(size Class) (sandbox.Config, error) {
	var id [6]byte
	rand.Read(id[:])
	name := hex.EncodeToString(id[:])
	dir := filepath.Join(p.o.Run, name)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return sandbox.Config{}, err
	}
	var nics []vm.NIC
	if p.o.NICs > 0 {
		var err error
		if nics, err = p.o.MakeNICs(p.o.NICs); err != nil {
			return sandbox.Config{}, errors.Join(err, os.Remove(dir))
		}
	}
	uid := p.o.TakeUID()
	return sandbox.Config{
		Token: sandbox.NewToken(),
		VM: vm.Config{
			ID: name, Dir: dir, CPUs: size.CPUs, Memory: size.Memory, NICs: nics,
			Kernel: p.o.Guest.Kernel, Initrd: p.o.Guest.Initrd, UID: uid, GID: uid,
		},
	}, nil
}

// forget takes back what config did.
func (p *Pool) forget(c sandbox.Config) error {
	p.o.GiveUID(c.VM.UID)
	err := os.RemoveAll(c.VM.Dir)
	if len(c.VM.NICs) > 0 {
		err = errors.Join(err, p.o.DropNICs(c.VM.NICs))
	}
	return err
}

// destroy ends a sandbox that nobody has taken.
func (p *Pool) destroy(r *Ready) error {
	return errors.Join(r.Sandbox.Kill(), p.clear(r))
}

// clear is forget for a sandbox that has ended.
func (p *Pool) clear(r *Ready) error {
	err := p.forget(r.Config)
	if r.Scratch != "" {
		if gone := os.Remove(r.Scratch); !errors.Is(gone, fs.ErrNotExist) {
			err = errors.Join(err, gone)
		}
	}
	return err
}
