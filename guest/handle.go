package guest

import (
	"context"
	"fmt"
	"io"
	"runtime/debug"

	"github.com/cradlevm/cradle/api"
	"github.com/cradlevm/cradle/api/wire"
)

// Handle answers one call. Nothing a call contains can end the agent: a panic is an internal error.
func (a *Agent) Handle(c *wire.Call) {
	defer func() {
		if p := recover(); p != nil {
			fmt.Printf("cradle-init: %.32q: panic: %v\n%s", c.Method, p, debug.Stack())
			c.Fail(api.Errorf(api.CodeInternal, "agent panic: %v", p))
		}
	}()
	switch c.Method {
	case api.MethodStdin, api.MethodOutput:
		a.stream(c)
		return
	case api.MethodRun, api.MethodStart, api.MethodExec:
		a.streamStart(c)
		return
	case api.MethodArchive, api.MethodExport, api.MethodLayer, api.MethodChanges, api.MethodExtract:
		a.streamFiles(c)
		return
	}
	result, err := a.answer(c)
	if err != nil {
		c.Fail(err)
		return
	}
	c.Finish(result)
	if c.Method == api.MethodShutdown {
		a.halt()
	}
}

// answer runs a method that is one request and one response.
func (a *Agent) answer(c *wire.Call) (any, error) {
	switch c.Method {
	case api.MethodPing:
		return a.ping(), nil
	case api.MethodConfigure:
		var r api.ConfigureRequest
		if err := c.Params(&r); err != nil {
			return nil, err
		}
		return nil, a.configure(&r)
	case api.MethodCreate:
		var r api.CreateRequest
		if err := c.Params(&r); err != nil {
			return nil, err
		}
		return nil, a.create(&r)
	case api.MethodPrepare:
		var r api.CreateRequest
		if err := c.Params(&r); err != nil {
			return nil, err
		}
		return nil, a.prepare(&r)
	case api.MethodSignal:
		var r api.SignalRequest
		if err := c.Params(&r); err != nil {
			return nil, err
		}
		if r.Signal == 0 && !r.All {
			return a.known(&r.ProcessRef)
		}
		return nil, a.signal(&r)
	case api.MethodResize:
		var r api.ResizeRequest
		if err := c.Params(&r); err != nil {
			return nil, err
		}
		p, err := a.process(&r.ProcessRef)
		if err != nil {
			return nil, err
		}
		return nil, p.resize(r.Width, r.Height)
	case api.MethodStatPath:
		var r api.PathRequest
		if err := c.Params(&r); err != nil {
			return nil, err
		}
		return a.statPath(&r)
	case api.MethodFreeze:
		var r api.FreezeRequest
		if err := c.Params(&r); err != nil {
			return nil, err
		}
		return nil, a.freeze(&r)
	case api.MethodIdentify:
		var r api.IdentifyRequest
		if err := c.Params(&r); err != nil {
			return nil, err
		}
		return a.identify(&r)
	case api.MethodUpdate:
		var r api.UpdateRequest
		if err := c.Params(&r); err != nil {
			return nil, err
		}
		return nil, a.update(&r)
	case api.MethodNetwork:
		var r api.NetworkRequest
		if err := c.Params(&r); err != nil {
			return nil, err
		}
		return nil, a.setNetwork(&r)
	case api.MethodShutdown:
		a.shutdown()
		return nil, nil
	}
	return a.answerRef(c)
}

// answerRef runs a method whose parameters are a ProcessRef.
func (a *Agent) answerRef(c *wire.Call) (any, error) {
	var r api.ProcessRef
	if err := c.Params(&r); err != nil {
		return nil, err
	}
	switch c.Method {
	case api.MethodWait:
		p, err := a.process(&r)
		if err != nil {
			return nil, err
		}
		ctx, cancel := context.WithCancel(c.Context)
		go func() {
			io.Copy(io.Discard, c.Stream) // ends when the host gives the call up
			cancel()
		}()
		return p.wait(ctx)
	case api.MethodDelete, api.MethodProcesses, api.MethodStats:
	default:
		return nil, api.Errorf(api.CodeUnsupported, "no method %.40q", c.Method)
	}
	ct, err := a.container(r.ID)
	if err != nil {
		return nil, err
	}
	if c.Method == api.MethodDelete {
		if r.Exec != "" {
			return nil, ct.deleteExec(r.Exec)
		}
		return nil, ct.delete()
	}
	if r.Exec != "" {
		return nil, api.Errorf(api.CodeInvalid, "%s of an exec", c.Method)
	}
	if c.Method == api.MethodProcesses {
		return ct.processes()
	}
	return ct.stats()
}

// streamStart runs a method that starts a process, and is its output from then on.
func (a *Agent) streamStart(c *wire.Call) {
	started, p, ref, err := a.start(c)
	if err != nil {
		c.Fail(err)
		return
	}
	turn := p.takeOutput()
	if c.Reply(started) == nil && p.serveOutput(c.Context, 0, turn, c.Stream) {
		a.forget(ref)
	}
}

// forget deletes an exec of which the host has all there is to know.
func (a *Agent) forget(r *api.ProcessRef) {
	if ct, err := a.container(r.ID); err == nil && r.Exec != "" {
		ct.deleteExec(r.Exec)
	}
}

// start starts a process.
func (a *Agent) start(c *wire.Call) (started api.StartResult, p *process, ref *api.ProcessRef, err error) {
	switch c.Method {
	case api.MethodExec:
		var r api.ExecRequest
		if err = c.Params(&r); err != nil {
			return
		}
		var ct *container
		if ct, err = a.container(r.ID); err != nil {
			return
		}
		ref = &api.ProcessRef{ID: r.ID, Exec: r.Exec}
		p, err = ct.exec(&r)
	case api.MethodRun:
		var r api.CreateRequest
		if err = c.Params(&r); err != nil {
			return
		}
		began := bootTime()
		if err = a.create(&r); err != nil {
			return
		}
		started.CreateNanos = bootTime() - began
		ref = &api.ProcessRef{ID: r.ID}
		p, err = a.startFirst(ref)
	default:
		ref = new(api.ProcessRef)
		if err = c.Params(ref); err != nil {
			return
		}
		p, err = a.startFirst(ref)
	}
	if err == nil {
		started.PID = p.id()
	}
	return
}

// startFirst starts a container's first process.
func (a *Agent) startFirst(r *api.ProcessRef) (*process, error) {
	ct, err := a.container(r.ID)
	if err != nil {
		return nil, err
	}
	if r.Exec != "" {
		return nil, api.Errorf(api.CodeInvalid, "%s of an exec", api.MethodStart)
	}
	return ct.start()
}

// stream runs a streaming method.
func (a *Agent) stream(c *wire.Call) {
	var r api.OutputRequest // a ProcessRef and an offset, which MethodStdin leaves out
	err := c.Params(&r)
	var p *process
	if err == nil {
		p, err = a.process(&r.ProcessRef)
	}
	if err == nil {
		switch {
		case c.Method == api.MethodOutput:
			r.Offset, err = p.journal.begin(r.Offset, r.Left)
		case p.io.stdin == nil:
			err = api.Errorf(api.CodeFailedPrecondition, "the process was started without standard input")
		}
	}
	if err != nil {
		c.Fail(err)
		return
	}
	if c.Method == api.MethodStdin {
		if c.Reply(nil) == nil {
			p.serveStdin(c.Context, c.Stream)
		}
		return
	}
	turn := p.takeOutput()
	if c.Reply(api.OutputResult{Offset: r.Offset}) == nil && p.serveOutput(c.Context, r.Offset, turn, c.Stream) {
		a.forget(&r.ProcessRef)
	}
}

func (a *Agent) ping() api.PingResult {
	kernel, _ := readSmall("/proc/sys/kernel/osrelease", 128)
	for len(kernel) > 0 && kernel[len(kernel)-1] == '\n' {
		kernel = kernel[:len(kernel)-1]
	}
	return api.PingResult{
		Protocol: api.ProtocolVersion, Kernel: string(kernel), UptimeNanos: bootTime(), ReadyNanos: a.ready,
	}
}
