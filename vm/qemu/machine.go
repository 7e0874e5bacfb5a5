package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/cradlevm/cradle/api"
	"github.com/cradlevm/cradle/vm"
)

// machine is one running QEMU. It implements vm.VM and all the powers that package vm has a name for.
type machine struct {
	driver      *Driver
	id, dir     string
	nics        []vm.NIC
	proc        *process
	mon         *monitor
	console     *console
	consoleConn *net.UnixConn

	disks     diskTable
	deletions deletions
	migration migration
	ram       *os.File // the guest's memory; nil when Snapshot cannot save it
	cpus      int
	forkable  *forkable // nil when an earlier process has started it

	// steady is held to write by who needs the devices and the processors left as they are, to read by who changes them.
	steady sync.RWMutex

	mu      sync.Mutex
	asked   bool                 // Shutdown or Kill has been called: the end is no error
	frozen  bool                 // Freeze has been called: the monitor listens to nobody any more
	reason  string               // the monitor's word for why the guest ended; empty when it has not said
	streams map[string]net.Conn  // the one connection to each socket
	early   net.Conn             // to the agent's, for the first who dials; see parent.Restore
	stood   map[string]time.Time // when it last stopped and resumed, by the event's name

	done chan struct{}
	err  error // what Wait returns; set before done is closed
}

// open connects to a running QEMU and takes charge of it. On failure the process is not touched.
func (d *Driver) open(ctx context.Context, c vm.Config, proc *process) (_ *machine, err error) {
	m := &machine{driver: d, id: c.ID, dir: c.Dir, nics: c.NICs, cpus: c.CPUs, proc: proc, done: make(chan struct{}), streams: map[string]net.Conn{}}
	m.stood = map[string]time.Time{}
	m.disks.disks = map[string]*diskEntry{}
	m.deletions.waiting = map[string]chan struct{}{}
	var undone undo
	defer func() {
		if err != nil {
			undone.run()
		}
	}()
	if m.console, err = openConsole(c.Dir); err != nil {
		return nil, err
	}
	undone.push(m.console.close)
	if m.consoleConn, err = connect(ctx, c.Dir, consoleSocket); err != nil {
		return nil, err
	}
	undone.push(func() { m.consoleConn.Close() })
	conn, err := connect(ctx, c.Dir, monitorSocket)
	if err != nil {
		return nil, err
	}
	if m.mon, err = openMonitor(ctx, conn, m.event); err != nil {
		return nil, err
	}
	return m, nil
}

// abandon lets go of a QEMU whose watch has not begun.
func (m *machine) abandon() {
	if m.early != nil {
		m.early.Close()
	}
	m.mon.close()
	m.consoleConn.Close()
	m.console.close()
}

// state is the monitor's word for what the machine does.
func (m *machine) state(ctx context.Context) (string, error) {
	value, err := m.mon.call(ctx, "query-status", nil)
	if err != nil {
		return "", err
	}
	var status struct {
		Status string `json:"status"`
	}
	if err := json.Unmarshal(value, &status); err != nil {
		return "", fmt.Errorf("QEMU query-status: %w", err)
	}
	return status.Status, nil
}

// event takes the monitor's events.
func (m *machine) event(e event) {
	switch e.Name {
	case "DEVICE_DELETED":
		var data struct {
			Device string `json:"device"`
		}
		if json.Unmarshal(e.Data, &data) == nil && data.Device != "" {
			m.deletions.happened(data.Device)
		}
	case "MIGRATION", "MIGRATION_PASS":
		m.migration.event(e)
	case "STOP", "RESUME":
		m.mu.Lock()
		m.stood[e.Name] = e.At
		m.mu.Unlock()
	case "SHUTDOWN":
		var data struct {
			Reason string `json:"reason"`
		}
		if json.Unmarshal(e.Data, &data) == nil {
			m.mu.Lock()
			m.reason = data.Reason
			m.mu.Unlock()
		}
	}
}

// watch follows the machine to its end. It owns the connections from here on.
func (m *machine) watch() {
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		io.Copy(m.console, m.consoleConn)
	}()
	gone := make(chan struct{})
	go m.follow(gone)
	status := m.proc.wait()
	close(gone)
	// QEMU had the only other ends: both readers come to theirs.
	<-m.mon.done
	<-drained
	m.consoleConn.Close()
	m.console.close()
	m.mu.Lock()
	for _, conn := range m.streams {
		conn.Close()
	}
	m.err = m.verdict(status)
	m.mu.Unlock()
	m.proc.close()
	if m.ram != nil {
		m.ram.Close()
	}
	removeTraces(m.dir)
	close(m.done)
}

// follow ends a QEMU that lives on without its monitor: nothing could lead it any more.
func (m *machine) follow(gone <-chan struct{}) {
	<-m.mon.done
	m.mu.Lock()
	frozen := m.frozen
	m.mu.Unlock()
	if frozen {
		return
	}
	select {
	case <-gone:
	case <-time.After(lingerLimit):
		m.proc.kill()
	}
}

// lingerLimit is how long QEMU may take to go once it has closed its monitor. Disks are flushed by then.
const lingerLimit = 10 * time.Second

// verdict says how the machine has ended. m.mu is held.
func (m *machine) verdict(status *syscall.WaitStatus) error {
	if m.asked || m.reason == "guest-shutdown" {
		return nil
	}
	how := "ended by itself"
	switch {
	case m.reason == "guest-reset":
		how = "ended because the guest reset itself: its kernel panicked, or it was restarted"
	case m.reason == "guest-panic":
		how = "ended because the guest's kernel panicked"
	case status != nil && status.Signaled():
		how = fmt.Sprintf("was ended by signal %d (%s)", status.Signal(), status.Signal())
	case m.reason != "":
		how = "ended: " + m.reason
	case status != nil && status.Exited():
		how = fmt.Sprintf("exited with status %d", status.ExitStatus())
	}
	words := m.proc.lastWords()
	if words != "" {
		words = "; its last words: " + words
	}
	return fmt.Errorf("%w: QEMU of VM %s %s%s%s", vm.ErrExited, m.id, how, words, m.console.quote(quoted))
}

// quoted is how much of the console an error carries, in bytes.
const quoted = 4 << 10

// removeTraces removes what only a running VM needs from its directory.
func removeTraces(dir string) {
	names := []string{monitorSocket, consoleSocket, agentSocket, recordName, interruptedName}
	for i := range vm.MaxNICs {
		names = append(names, nicSocket(i))
	}
	for _, name := range names {
		os.Remove(filepath.Join(dir, name))
	}
}

// explain makes of a monitor call's failure, when the machine has just ended, the reason it ended for.
func (m *machine) explain(err error) error {
	if !errors.Is(err, vm.ErrExited) {
		return err
	}
	select {
	case <-m.done:
		if m.err != nil {
			return m.err
		}
	case <-time.After(time.Second):
	}
	return err
}

// Dial implements vm.VM.
func (m *machine) Dial(ctx context.Context, port uint32) (net.Conn, error) {
	if port != api.AgentPort {
		return nil, fmt.Errorf("%w: no port %d, only %d", vm.ErrInvalid, port, api.AgentPort)
	}
	conn, err := m.dial(ctx, agentSocket)
	if err != nil {
		return nil, fmt.Errorf("dial the agent of VM %s: %w", m.id, err)
	}
	return conn, nil
}

// DialNIC implements vm.Streamer.
func (m *machine) DialNIC(ctx context.Context, nic int) (net.Conn, error) {
	if nic < 0 || nic >= len(m.nics) || !m.nics[nic].Stream {
		return nil, fmt.Errorf("%w: interface %d is no stream", vm.ErrInvalid, nic)
	}
	conn, err := m.dial(ctx, nicSocket(nic))
	if err != nil {
		return nil, fmt.Errorf("dial interface %d of VM %s: %w", nic, m.id, err)
	}
	return conn, nil
}

// CutNIC implements vm.NICCutter. QEMU has no way to connect the interface again.
func (m *machine) CutNIC(ctx context.Context, nic int) error {
	if nic < 0 || nic >= len(m.nics) || m.nics[nic].TAP == "" {
		return fmt.Errorf("%w: interface %d has no TAP", vm.ErrInvalid, nic)
	}
	err := m.mon.run(ctx, "netdev_del", map[string]any{"id": netdevID(nic)})
	var refused *monitorError
	if errors.As(err, &refused) && refused.Class == "DeviceNotFound" {
		return nil // it was cut before
	}
	if err != nil {
		return fmt.Errorf("cut interface %d of VM %s: %w", nic, m.id, err)
	}
	return nil
}

// dial connects to a socket that QEMU listens at. It takes one connection at a time; the next one waits until it sees
// the end of the one before, which this is.
func (m *machine) dial(ctx context.Context, socket string) (net.Conn, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	select {
	case <-m.done:
		return nil, vm.ErrExited
	default:
	}
	if socket == agentSocket && m.early != nil {
		conn := m.early
		m.early = nil
		return conn, nil
	}
	if before := m.streams[socket]; before != nil {
		before.Close()
		delete(m.streams, socket)
	}
	conn, err := connect(ctx, m.dir, socket)
	if err != nil {
		if errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, os.ErrNotExist) {
			err = fmt.Errorf("%w: %w", vm.ErrExited, err)
		}
		return nil, err
	}
	m.streams[socket] = conn
	return conn, nil
}

// Wait implements vm.VM.
func (m *machine) Wait() error {
	<-m.done
	return m.err
}

// Done implements vm.VM.
func (m *machine) Done() <-chan struct{} { return m.done }

// PID implements vm.VM.
func (m *machine) PID() int { return m.proc.pid }

// Console implements vm.VM.
func (m *machine) Console(max int) []byte { return m.console.Tail(max) }

// Pause implements vm.Pauser.
func (m *machine) Pause(ctx context.Context) error {
	m.steady.RLock()
	defer m.steady.RUnlock()
	if err := m.mon.run(ctx, "stop", nil); err != nil {
		return m.explain(fmt.Errorf("pause VM %s: %w", m.id, err))
	}
	return nil
}

// Resume implements vm.Pauser.
func (m *machine) Resume(ctx context.Context) error {
	m.steady.RLock()
	defer m.steady.RUnlock()
	if err := m.mon.run(ctx, "cont", nil); err != nil {
		return m.explain(fmt.Errorf("resume VM %s: %w", m.id, err))
	}
	return nil
}

// Shutdown implements vm.VM.
func (m *machine) Shutdown(ctx context.Context) error {
	m.ask()
	// The answer may be lost with the monitor, which is what was asked for.
	if err := m.mon.run(ctx, "quit", nil); err != nil && !errors.Is(err, vm.ErrExited) {
		return fmt.Errorf("shut down VM %s: %w", m.id, err)
	}
	select {
	case <-m.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("shut down VM %s: %w", m.id, context.Cause(ctx))
	}
}

// Kill implements vm.VM.
func (m *machine) Kill() error {
	select {
	case <-m.done:
		return nil
	default:
	}
	m.ask()
	if err := m.proc.kill(); err != nil {
		return fmt.Errorf("kill VM %s (process %d): %w", m.id, m.proc.pid, err)
	}
	select {
	case <-m.done:
		return nil
	case <-time.After(killLimit):
		return fmt.Errorf("kill VM %s: process %d does not go; it is stuck in the kernel", m.id, m.proc.pid)
	}
}

func (m *machine) ask() {
	m.mu.Lock()
	m.asked = true
	m.mu.Unlock()
}
