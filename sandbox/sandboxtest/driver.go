// Package sandboxtest is a vm.Driver without virtual machines: each of its machines is a goroutine that speaks the
// agent protocol. Its containers run Go functions. It is for tests of what stands above the driver, in milliseconds
// and with every fault that a guest may have.
package sandboxtest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"

	"github.com/cradlevm/cradle/api"
	"github.com/cradlevm/cradle/api/wire"
	"github.com/cradlevm/cradle/vm"
)

// Driver makes machines. It outlives the daemon under test, as QEMU does: a machine is found again with Attach until
// it ends.
type Driver struct {
	// Programs are what containers can run, by argv[0]; they return the exit code. A name that is none answers
	// CodeCommandNotFound. Basic has a few.
	Programs map[string]func(*Process) int

	mu       sync.Mutex
	machines map[string]*Machine // by directory, while they run
	started  int
	fault    func(*Machine, *wire.Call) bool
	refuse   error
	lost     error
	// unrestorable is FailRestore's, uncheckpointed FailCheckpoint's, unwritten FailWrite's.
	unrestorable, uncheckpointed, unwritten error
	// unsavable is FailSnapshot's, version Upgrade's.
	unsavable error
	version   string
	// forks and unfreezable are Copy's.
	forks       bool
	unfreezable error
	sterile     bool // Sterile's
	// deaf is how many connections nobody answers.
	deaf int
	// kills is what Kill waits for, if not nil.
	kills chan struct{}
}

// New returns a driver whose containers can run the Basic programs.
func New() *Driver { return &Driver{Programs: Basic(), machines: map[string]*Machine{}} }

// Fault has f see every call before the agent does. When f returns true it has dealt with the call itself: answered
// it wrongly, left it unanswered until its context ends, or ended the machine. Nil for honest agents.
func (d *Driver) Fault(f func(*Machine, *wire.Call) bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.fault = f
}

// Refuse makes Start fail; nil ends that.
func (d *Driver) Refuse(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.refuse = err
}

// Lose makes Attach fail although the machine runs; nil ends that.
func (d *Driver) Lose(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.lost = err
}

// Running returns the machines that have not ended.
func (d *Driver) Running() []*Machine {
	d.mu.Lock()
	defer d.mu.Unlock()
	var out []*Machine
	for _, m := range d.machines {
		out = append(out, m)
	}
	return out
}

// Started is how many machines have been started so far.
func (d *Driver) Started() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.started
}

// Machine returns the running machine of a container's id.
func (d *Driver) Machine(id string) *Machine {
	for _, m := range d.Running() {
		if m.Config.ID == id {
			return m
		}
	}
	return nil
}

// Start implements vm.Driver.
func (d *Driver) Start(ctx context.Context, c vm.Config) (vm.VM, error) {
	if err := c.Check(); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.refuse != nil {
		return nil, d.refuse
	}
	if d.machines[c.Dir] != nil {
		return nil, fmt.Errorf("%w: Dir: %s is in use", vm.ErrInvalid, c.Dir)
	}
	m := &Machine{Config: c, driver: d, done: make(chan struct{}), containers: map[string]*guestContainer{}}
	d.machines[c.Dir] = m
	d.started++
	return m, nil
}

// Attach implements vm.Driver.
func (d *Driver) Attach(ctx context.Context, c vm.Config) (vm.VM, error) {
	if err := c.Check(); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.lost != nil {
		return nil, d.lost
	}
	if m := d.machines[c.Dir]; m != nil {
		return m, nil
	}
	return nil, vm.ErrExited
}

// End implements vm.Driver. It needs no answer: Lose is of no effect on it.
func (d *Driver) End(dir string) error {
	d.mu.Lock()
	m := d.machines[dir]
	d.mu.Unlock()
	if m != nil {
		m.Die(nil)
	}
	return nil
}

// Accel implements vm.Driver.
func (*Driver) Accel(context.Context) (accel, why string) { return vm.AccelTCG, "a test" }

// Machine is one running machine. It implements vm.VM and vm.Pauser.
type Machine struct {
	Config vm.Config

	driver *Driver

	mu         sync.Mutex
	conn       net.Conn // the host's connection, the guest's end
	containers map[string]*guestContainer
	disks      map[string]bool // plugged, by serial
	identity   api.ConfigureRequest
	identified []api.IdentifyRequest
	paused     chan struct{} // closed by Resume; nil when not paused
	polite     bool          // ended by Shutdown
	printed    string        // see Print
	frozen     bool          // see Freeze
	ended      bool
	err        error
	done       chan struct{}
}

// Dial implements vm.VM.
func (m *Machine) Dial(ctx context.Context, _ uint32) (net.Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.ended {
		return nil, vm.ErrExited
	}
	if m.conn != nil {
		m.conn.Close()
	}
	host, guest := net.Pipe()
	m.conn = guest
	m.driver.mu.Lock()
	deaf := m.driver.deaf > 0
	m.driver.deaf--
	m.driver.mu.Unlock()
	if deaf {
		go io.Copy(io.Discard, guest)
	} else {
		go m.serve(guest)
	}
	return host, nil
}

// Deafen makes the next connections, so many, ones that nobody answers.
func (d *Driver) Deafen(connections int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.deaf = connections
}

// serve is one session, as the agent has it.
func (m *Machine) serve(conn net.Conn) {
	l := wire.Listen(conn)
	for {
		session, err := l.Accept()
		if err != nil {
			return
		}
		go wire.Serve(session, m.handle)
	}
}

// Wait implements vm.VM.
func (m *Machine) Wait() error { <-m.done; return m.err }

// Done implements vm.VM.
func (m *Machine) Done() <-chan struct{} { return m.done }

// Shutdown implements vm.VM.
func (m *Machine) Shutdown(context.Context) error {
	m.mu.Lock()
	m.polite = !m.ended
	m.mu.Unlock()
	m.Die(nil)
	return nil
}

// Kill implements vm.VM.
func (m *Machine) Kill() error {
	m.driver.mu.Lock()
	held := m.driver.kills
	m.driver.mu.Unlock()
	if held != nil {
		<-held
	}
	m.Die(nil)
	return nil
}

// HoldKills makes every Kill wait until let is called, once.
func (d *Driver) HoldKills() (let func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	held := make(chan struct{})
	d.kills = held
	return func() {
		d.mu.Lock()
		d.kills = nil
		d.mu.Unlock()
		close(held)
	}
}

// Polite reports whether the machine was ended by Shutdown, with its containers deleted before.
func (m *Machine) Polite() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.polite && len(m.containers) == 0
}

// Die ends the machine: err is what Wait returns.
func (m *Machine) Die(err error) {
	m.mu.Lock()
	if m.ended {
		m.mu.Unlock()
		return
	}
	m.ended, m.err = true, err
	if m.conn != nil {
		m.conn.Close()
	}
	if m.paused != nil {
		close(m.paused)
		m.paused = nil
	}
	for _, c := range m.containers {
		c.kill()
	}
	m.mu.Unlock()
	m.driver.mu.Lock()
	delete(m.driver.machines, m.Config.Dir)
	m.driver.mu.Unlock()
	close(m.done)
}

// Break ends the agent session that there is; the machine lives on.
func (m *Machine) Break() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.conn != nil {
		m.conn.Close()
	}
}

// Console implements vm.VM.
func (m *Machine) Console(limit int) []byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := append([]byte("console"), m.printed...)
	return all[max(0, len(all)-limit):]
}

// Print adds to what the guest's console has printed.
func (m *Machine) Print(text string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.printed += text
}

// PID implements vm.VM.
func (*Machine) PID() int { return 4242 }

// Pause implements vm.Pauser: the agent answers nothing until Resume.
func (m *Machine) Pause(context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.ended {
		return errors.New("the machine has ended")
	}
	if m.paused == nil {
		m.paused = make(chan struct{})
	}
	return nil
}

// Resume implements vm.Pauser.
func (m *Machine) Resume(context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.paused != nil {
		close(m.paused)
		m.paused = nil
	}
	return nil
}

// Paused reports whether the machine is paused.
func (m *Machine) Paused() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.paused != nil
}

var (
	_ vm.Driver = (*Driver)(nil)
	_ vm.Pauser = (*Machine)(nil)
)
