package sandboxtest

import (
	"encoding/binary"
	"io"

	"github.com/cradlevm/cradle/api"
	"github.com/cradlevm/cradle/api/wire"
)

// guestContainer is a container as the agent has it.
type guestContainer struct {
	id        string
	request   api.CreateRequest
	frozen    bool
	thaw      func()              // begins the process of a restored one; nil once done
	processes map[string]*Process // by exec id; "" is the first one
}

func (c *guestContainer) kill() {
	for _, p := range c.processes {
		p.exit(137)
	}
}

// handle answers one call.
func (m *Machine) handle(call *wire.Call) {
	m.mu.Lock()
	paused := m.paused
	m.mu.Unlock()
	if paused != nil {
		select {
		case <-paused:
		case <-call.Context.Done():
			return
		}
	}
	m.driver.mu.Lock()
	fault := m.driver.fault
	m.driver.mu.Unlock()
	if fault != nil && fault(m, call) {
		return
	}
	result, serve, err := m.answer(call)
	if err != nil {
		call.Fail(err)
		return
	}
	if serve == nil {
		call.Finish(result)
	} else if call.Reply(result) == nil {
		serve()
	}
}

// answer deals with a call; serve is what a streaming method does after the answer.
func (m *Machine) answer(call *wire.Call) (result any, serve func(), err error) {
	switch call.Method {
	case api.MethodPing:
		return api.PingResult{Protocol: api.ProtocolVersion}, nil, nil
	case api.MethodConfigure:
		var r api.ConfigureRequest
		if err := call.Params(&r); err != nil {
			return nil, nil, err
		}
		return nil, nil, m.configure(r)
	case api.MethodShutdown, api.MethodResize, api.MethodUpdate, api.MethodNetwork:
		return nil, nil, nil
	case api.MethodFreeze:
		var r api.FreezeRequest
		if err := call.Params(&r); err != nil {
			return nil, nil, err
		}
		return nil, nil, m.freeze(r)
	case api.MethodIdentify:
		var r api.IdentifyRequest
		if err := call.Params(&r); err != nil {
			return nil, nil, err
		}
		result, err := m.identify(r)
		return result, nil, err
	case api.MethodCreate, api.MethodPrepare:
		var r api.CreateRequest
		if err := call.Params(&r); err != nil {
			return nil, nil, err
		}
		return nil, nil, m.create(r)
	case api.MethodRun:
		var r api.CreateRequest
		if err := call.Params(&r); err != nil {
			return nil, nil, err
		}
		if err := m.create(r); err != nil {
			return nil, nil, err
		}
		return m.begin(call, api.ProcessRef{ID: r.ID}, r.Spec.Process.Args, r.StdinOpen)
	case api.MethodExec:
		var r api.ExecRequest
		if err := call.Params(&r); err != nil {
			return nil, nil, err
		}
		return m.begin(call, api.ProcessRef{ID: r.ID, Exec: r.Exec}, r.Args, r.StdinOpen)
	case api.MethodStart:
		var r api.ProcessRef
		if err := call.Params(&r); err != nil {
			return nil, nil, err
		}
		m.mu.Lock()
		c := m.containers[r.ID]
		m.mu.Unlock()
		if c == nil {
			return nil, nil, api.Errorf(api.CodeNotFound, "no container %s", r.ID)
		}
		return m.begin(call, r, c.request.Spec.Process.Args, c.request.StdinOpen)
	case api.MethodOutput:
		var r api.OutputRequest
		if err := call.Params(&r); err != nil {
			return nil, nil, err
		}
		p, err := m.process(r.ProcessRef)
		if err != nil {
			return nil, nil, err
		}
		at, err := p.begin(r.Offset, r.Left)
		if err != nil {
			return nil, nil, err
		}
		return api.OutputResult{Offset: at}, func() { m.serveOutput(call, r.ProcessRef, p, at) }, nil
	}
	return m.answerProcess(call)
}

// answerProcess deals with the calls about one process.
func (m *Machine) answerProcess(call *wire.Call) (result any, serve func(), err error) {
	var r api.SignalRequest
	if err := call.Params(&r); err != nil {
		return nil, nil, err
	}
	if call.Method == api.MethodDelete {
		return nil, nil, m.delete(r.ProcessRef)
	}
	p, err := m.process(r.ProcessRef)
	if err != nil {
		return nil, nil, err
	}
	switch call.Method {
	case api.MethodWait:
		select {
		case <-p.exited:
			return p.status(), nil, nil
		case <-call.Context.Done():
			return nil, nil, call.Context.Err()
		}
	case api.MethodSignal:
		if r.Signal == 0 && !r.All {
			return api.StartResult{PID: 7}, nil, nil
		}
		return nil, nil, p.Signal(r.Signal)
	case api.MethodStdin:
		return nil, func() { p.serveStdin(call) }, nil
	case api.MethodProcesses:
		return api.ProcessesResult{Processes: []api.Process{{PID: 1, Command: p.Args[0]}}}, nil, nil
	case api.MethodStats:
		return api.StatsResult{Pids: 1, OnlineCPUs: 1, MemoryBytes: 1 << 20, CPUNanos: 5}, nil, nil
	}
	return nil, nil, api.Errorf(api.CodeUnsupported, "no method %s", call.Method)
}

// create makes a container, or prepares one, which is one without a process.
func (m *Machine) create(r api.CreateRequest) error {
	if r.Configure != nil {
		if err := m.configure(*r.Configure); err != nil {
			return err
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if r.Prepared != "" {
		p := m.containers[r.Prepared]
		if p == nil || p.request.Spec.Process != nil || !r.Join(&p.request) {
			return api.Errorf(api.CodeFailedPrecondition, "container %s is not prepared for this", r.Prepared)
		}
		delete(m.containers, r.Prepared)
	}
	if m.containers[r.ID] != nil {
		return api.Errorf(api.CodeExists, "container %s exists", r.ID)
	}
	m.containers[r.ID] = &guestContainer{id: r.ID, request: r, processes: map[string]*Process{}}
	return nil
}

// begin starts a process, whose output the rest of the call is.
func (m *Machine) begin(call *wire.Call, r api.ProcessRef, args []string, stdin bool) (result any, serve func(), err error) {
	if err := m.start(r.ID, r.Exec, args, stdin); err != nil {
		return nil, nil, err
	}
	p, err := m.process(r)
	if err != nil { // it has been deleted already
		return nil, nil, err
	}
	return api.StartResult{PID: 7}, func() { m.serveOutput(call, r, p, 0) }, nil
}

func (m *Machine) start(id, exec string, args []string, stdin bool) error {
	program := m.driver.Programs[args[0]]
	m.mu.Lock()
	defer m.mu.Unlock()
	c := m.containers[id]
	if c == nil {
		return api.Errorf(api.CodeNotFound, "no container %s", id)
	}
	if exec != "" {
		if first := c.processes[""]; first == nil || first.hasExited() {
			return api.Errorf(api.CodeFailedPrecondition, "the container does not run")
		}
	}
	if program == nil {
		return api.Errorf(api.CodeCommandNotFound, "exec: %q: executable file not found in $PATH", args[0])
	}
	p := newProcess(args)
	if !stdin {
		p.stdin.Close()
	}
	c.processes[exec] = p
	go m.run(c, exec, p, program)
	return nil
}

// run runs a process to its end.
func (m *Machine) run(c *guestContainer, exec string, p *Process, program func(*Process) int) {
	code := program(p)
	p.exit(code)
	if exec == "" {
		m.mu.Lock()
		defer m.mu.Unlock()
		c.kill() // the kernel ends what is left in the PID namespace
	}
}

func (m *Machine) freeze(r api.FreezeRequest) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := m.containers[r.ID]
	if c == nil {
		return api.Errorf(api.CodeNotFound, "no container %s", r.ID)
	}
	c.frozen = r.Frozen
	if !r.Frozen && c.thaw != nil {
		c.thaw()
		c.thaw = nil
	}
	return nil
}

// StartExec starts an exec without a call: one that was on its way when its session broke.
func (m *Machine) StartExec(id, exec string, args ...string) error {
	return m.start(id, exec, args, false)
}

func (m *Machine) process(r api.ProcessRef) (*Process, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if c := m.containers[r.ID]; c != nil {
		if p := c.processes[r.Exec]; p != nil {
			return p, nil
		}
	}
	return nil, api.Errorf(api.CodeNotFound, "no process %s of container %s", r.Exec, r.ID)
}

func (m *Machine) delete(r api.ProcessRef) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := m.containers[r.ID]
	if c == nil || (r.Exec != "" && c.processes[r.Exec] == nil) {
		return api.Errorf(api.CodeNotFound, "no process %s of container %s", r.Exec, r.ID)
	}
	if r.Exec == "" {
		c.kill()
		delete(m.containers, r.ID)
	} else {
		c.processes[r.Exec].exit(137)
		delete(c.processes, r.Exec)
	}
	return nil
}

// serveOutput sends the journal until it ends and everything has been sent, and forgets an exec when the host says so.
func (m *Machine) serveOutput(call *wire.Call, r api.ProcessRef, p *Process, at uint64) {
	acks := make(chan struct{})
	go func() {
		defer close(acks)
		var b [8]byte
		for {
			if _, err := io.ReadFull(call.Stream, b[:]); err != nil {
				return
			}
			if at := binary.BigEndian.Uint64(b[:]); at != api.Forget {
				p.acknowledge(at)
			} else if r.Exec != "" {
				m.delete(r)
			}
		}
	}()
	for {
		piece, more, changed := p.journal(at)
		if len(piece) > 0 {
			if _, err := call.Stream.Write(piece); err != nil {
				return
			}
			at += uint64(len(piece))
			continue
		}
		if !more {
			break
		}
		select {
		case <-changed:
		case <-call.Context.Done():
			return
		}
	}
	call.Stream.Last(p.status().AppendRecord(nil))
	select {
	case <-acks:
	case <-call.Context.Done():
	}
}

// serveStdin feeds the process.
func (p *Process) serveStdin(call *wire.Call) {
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		select {
		case <-p.exited:
			p.stdin.CloseWithError(io.ErrClosedPipe)
		case <-stop:
		}
	}()
	buf := make([]byte, 4096)
	for {
		n, err := call.Stream.Read(buf)
		if n > 0 {
			if _, err := p.stdin.Write(buf[:n]); err != nil {
				return
			}
		}
		if err == io.EOF {
			p.stdin.Close()
			return
		}
		if err != nil {
			return
		}
	}
}

// Process is the first process of a container, nil when there is none.
func (m *Machine) Process(id string) *Process { return m.Exec(id, "") }

// Exec is an exec of a container, nil when there is none.
func (m *Machine) Exec(id, exec string) *Process {
	p, err := m.process(api.ProcessRef{ID: id, Exec: exec})
	if err != nil {
		return nil
	}
	return p
}

// Processes is how many processes of a container have not ended.
func (m *Machine) Processes(id string) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := 0
	if c := m.containers[id]; c != nil {
		for _, p := range c.processes {
			if !p.hasExited() {
				n++
			}
		}
	}
	return n
}
