// Package sandbox owns one microVM and the containers in it.
//
// # States of a sandbox
//
//	Start, Restore ──► ready ──► stopping ──► gone
//	  │                  └──────────────────────▲   the monitor died, or Kill
//	  └─ error: nothing is left
//
// ready: the agent has answered and was configured. stopping: Stop asked the monitor to end. gone: the monitor's
// process has ended; every call answers ErrGone. A daemon that restarts finds ready sandboxes again with Attach.
// Files (the runtime directory, scratch disks) belong to the caller: the sandbox removes none of them.
//
// # States of a container in it
//
//	Create ──► created ──► running ──► stopped ──► (Delete)
//
// as package api defines them; when the sandbox goes, so do they.
package sandbox

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/cradlevm/cradle/api"
	"github.com/cradlevm/cradle/api/wire"
	"github.com/cradlevm/cradle/vm"
)

// Sentinels, to be found with errors.Is.
var (
	// ErrGone means that the sandbox's virtual machine has ended.
	ErrGone = errors.New("the sandbox's virtual machine has ended")
	// ErrNonsense means that the agent has answered what no agent of ours does: the guest is not to be believed any
	// more.
	ErrNonsense = errors.New("the guest's agent answers nonsense")
)

// Config is all that makes a sandbox. It is plain data: a daemon stores it and hands it to Attach after a restart.
type Config struct {
	VM       vm.Config
	Token    wire.Token // secret of this sandbox; see package wire
	Hostname string     // of the guest itself; containers have their own
}

// NewToken returns a fresh secret.
func NewToken() (t wire.Token) {
	rand.Read(t[:])
	return t
}

// Sandbox is one running microVM. All methods may be called from any goroutine.
type Sandbox struct {
	config Config
	vm     vm.VM

	dialing chan struct{} // holds a token while a session is being opened: it may take as long as the guest likes

	mu     sync.Mutex
	client *wire.Client // nil before the first session

	boots int // see Boots; written before anybody else has the sandbox
}

func newSandbox(c Config, machine vm.VM) *Sandbox {
	return &Sandbox{config: c, vm: machine, dialing: make(chan struct{}, 1)}
}

// Restore is Start from a source, whose agent knows the token known. It gets c's, fresh entropy, the time and a
// machine id of its own before Restore returns, so that it shares no secret with others from the same state.
func Restore(ctx context.Context, source vm.Source, c Config, known wire.Token) (*Sandbox, error) {
	machine, err := source.Restore(ctx, c.VM)
	if err != nil {
		return nil, fmt.Errorf("restore virtual machine: %w", err)
	}
	s := newSandbox(c, machine)
	if err := s.bringUp(ctx, known); err != nil {
		return nil, errors.Join(err, s.Kill())
	}
	return s, nil
}

// Attach finds the sandbox that an earlier process started with the same c. The agent is not asked: it may be paused, or
// busy; the first call opens the session. vm.ErrExited when its monitor has gone.
func Attach(ctx context.Context, driver vm.Driver, c Config) (*Sandbox, error) {
	machine, err := driver.Attach(ctx, c.VM)
	if err != nil {
		return nil, fmt.Errorf("find virtual machine: %w", err)
	}
	return newSandbox(c, machine), nil
}

// bringUp waits for the agent, which knows the token known or none, and gives the guest its identity.
func (s *Sandbox) bringUp(ctx context.Context, known wire.Token) error {
	ctx, cancel := context.WithTimeoutCause(ctx, BootTimeout,
		fmt.Errorf("the guest's agent did not answer within %v", BootTimeout))
	defer cancel()
	client, err := s.dial(ctx, known)
	if err != nil {
		return s.explain(err)
	}
	s.mu.Lock()
	s.client = client
	s.mu.Unlock()
	seed := make([]byte, 64)
	rand.Read(seed)
	now := time.Now()
	r := api.ConfigureRequest{
		Hostname:  s.config.Hostname,
		UnixNanos: now.UnixNano(),
		Seed:      seed,
		MachineID: NewMachineID(),
	}
	if known != s.config.Token {
		r.Token = s.config.Token[:]
	}
	err = client.Call(ctx, api.MethodConfigure, r, nil)
	if err == nil && time.Since(now) > clockError {
		err = s.SetClock(ctx)
	}
	return s.explain(err)
}

// dial opens an agent session. The monitor's death ends it at once.
func (s *Sandbox) dial(ctx context.Context, token wire.Token) (*wire.Client, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watched := make(chan struct{})
	defer close(watched)
	go func() {
		select {
		case <-s.vm.Done():
			cancel(ErrGone)
		case <-watched:
		}
	}()
	for patience := firstPatience; ; patience = min(2*patience, mostPatience) {
		client, err := s.dialOnce(ctx, token, patience)
		if err == nil || !errors.Is(err, errNoAnswer) {
			return client, err
		}
	}
}

// An agent that is there answers at once, but the answer may be lost on its way: QEMU holds back all that a guest writes to the port once it has
// written something while it did not know yet that no host was connected any more, until a host that connects after that goes away again. So
// one that has not answered for a while is asked again, by another connection; firstPatience (of a busy machine's) doubles each time.
const (
	firstPatience = time.Second
	mostPatience  = 8 * time.Second
)

var errNoAnswer = errors.New("the guest's agent does not answer")

// dialOnce is dial for as long as patience. errNoAnswer after that.
func (s *Sandbox) dialOnce(ctx context.Context, token wire.Token, patience time.Duration) (*wire.Client, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, patience, errNoAnswer)
	defer cancel()
	conn, err := s.vm.Dial(ctx, api.AgentPort)
	if err != nil {
		return nil, err
	}
	return wire.Dial(ctx, conn, token)
}

// explain adds why the monitor ended, or what the console said last, to an error of a guest that did not come up.
func (s *Sandbox) explain(err error) error {
	if err = s.classify(err); err == nil {
		return nil
	}
	if errors.Is(err, ErrGone) {
		if gone := s.vm.Wait(); gone != nil {
			return fmt.Errorf("%w: %w", ErrGone, gone)
		}
		err = fmt.Errorf("%w: the guest powered itself off", ErrGone)
	}
	return fmt.Errorf("%w; console: %q", err, s.vm.Console(512))
}

// session returns the agent session, opening it when there is none or the one there was broke. One caller opens it;
// the others wait for that as long as their own ctx lets them.
func (s *Sandbox) session(ctx context.Context) (*wire.Client, error) {
	if client := s.open(); client != nil {
		return client, nil
	}
	select {
	case s.dialing <- struct{}{}:
		defer func() { <-s.dialing }()
	case <-s.vm.Done():
		return nil, ErrGone
	case <-ctx.Done():
		return nil, fmt.Errorf("open agent session: %w", context.Cause(ctx))
	}
	if client := s.open(); client != nil {
		return client, nil
	}
	client, err := s.dial(ctx, s.config.Token)
	if err != nil {
		return nil, s.classify(err)
	}
	s.mu.Lock()
	s.client = client
	s.mu.Unlock()
	return client, nil
}

// open returns the session that is open, or nil.
func (s *Sandbox) open() *wire.Client {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.client == nil {
		return nil
	}
	select {
	case <-s.client.Done():
		return nil
	default:
		return s.client
	}
}

// call makes one agent call. When the VM goes meanwhile the error is ErrGone.
func (s *Sandbox) call(ctx context.Context, method string, params, result any) error {
	client, err := s.session(ctx)
	if err != nil {
		return err
	}
	return s.classify(client.Call(ctx, method, params, result))
}

// stream makes a call of a streaming method; broken is closed when the session has ended. When the VM goes meanwhile the error is
// ErrGone.
func (s *Sandbox) stream(ctx context.Context, method string, params, result any) (stream *wire.Stream, broken <-chan struct{}, err error) {
	client, err := s.session(ctx)
	if err != nil {
		return nil, nil, err
	}
	if stream, err = client.Stream(ctx, method, params, result); err != nil {
		return nil, nil, s.classify(err)
	}
	return stream, client.Done(), nil
}

// goneGrace is how long a session that breaks may be ahead of the news that its VM has ended.
const goneGrace = 200 * time.Millisecond

// classify turns the failure of a call on a VM that has ended into ErrGone.
func (s *Sandbox) classify(err error) error {
	var answered *api.Error
	if err == nil || errors.As(err, &answered) {
		return err
	}
	grace := time.Duration(0)
	if errors.Is(err, wire.ErrSession) || errors.Is(err, io.EOF) || errors.As(err, new(*net.OpError)) { // the latter two while it is being opened
		grace = goneGrace
	}
	t := time.NewTimer(grace)
	defer t.Stop()
	select {
	case <-s.vm.Done():
		return ErrGone
	case <-t.C:
	}
	select { // both may have come at once
	case <-s.vm.Done():
		return ErrGone
	default:
		return err
	}
}

// Done is closed when the VM has ended.
func (s *Sandbox) Done() <-chan struct{} { return s.vm.Done() }

// Cause waits for the VM's end and says why it ended: nil after Stop, Kill or the guest's own power-off.
func (s *Sandbox) Cause() error { return s.vm.Wait() }

// PID is the monitor's process id.
func (s *Sandbox) PID() int { return s.vm.PID() }

// Console returns the last bytes, max at most, of what the guest's console printed.
func (s *Sandbox) Console(max int) []byte { return s.vm.Console(max) }

// Disconnect ends the session and the calls on it; the VM runs on. A daemon does so with each sandbox when it stops.
func (s *Sandbox) Disconnect() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.client != nil {
		s.client.Close()
	}
}

// Stop ends the VM so that its disks are whole: containers must have been deleted before. It returns when the
// monitor has gone; when ctx ends first the VM is killed.
func (s *Sandbox) Stop(ctx context.Context) error {
	if err := s.vm.Shutdown(ctx); err != nil {
		return errors.Join(err, s.Kill())
	}
	s.Disconnect()
	return nil
}

// Kill ends the VM the hard way and waits for its end. Idempotent.
func (s *Sandbox) Kill() error {
	if err := s.vm.Kill(); err != nil {
		return fmt.Errorf("kill virtual machine: %w", err)
	}
	<-s.vm.Done()
	s.Disconnect()
	return nil
}

// Pause stops the virtual CPUs. Unsupported drivers answer an api.CodeUnsupported error.
func (s *Sandbox) Pause(ctx context.Context) error {
	p, ok := s.vm.(vm.Pauser)
	if !ok {
		return api.Errorf(api.CodeUnsupported, "this virtual machine monitor cannot pause")
	}
	return p.Pause(ctx)
}

// Resume lets the virtual CPUs run again.
func (s *Sandbox) Resume(ctx context.Context) error {
	p, ok := s.vm.(vm.Pauser)
	if !ok {
		return api.Errorf(api.CodeUnsupported, "this virtual machine monitor cannot pause")
	}
	return p.Resume(ctx)
}

// Network makes the guest's interfaces, and the network's files of its containers, as r says.
func (s *Sandbox) Network(ctx context.Context, r api.NetworkRequest) error {
	return s.call(ctx, api.MethodNetwork, r, nil)
}

// Ping asks the agent how it is.
func (s *Sandbox) Ping(ctx context.Context) (r api.PingResult, err error) {
	err = s.call(ctx, api.MethodPing, nil, &r)
	return r, err
}
